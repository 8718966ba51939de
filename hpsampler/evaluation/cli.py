"""``python -m hpsampler.evaluate``: draw many pictures through a WebUI that was started with ``--api``, and score them.

It reproduces the paper's tables on a machine with a GPU: the same prompts and seeds for every configuration, FID
against real pictures and CLIP scores against the prompts. Every configuration has a folder of its own, and an
interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from ..client import ClientError, RequestRefused, printable
from ..files import write_atomically
from . import metrics
from .configurations import NAMED, Configuration
from .drawing import MANIFEST, Drawing, DrawingConfig, WebUI
from .metrics import ScoreError
from .progress import ProgressBar
from .prompts import EvaluationError, prompts_of
from .report import Row, write_report
from .scoring import Scorer, prompts_path

__all__ = ["main"]


def _draw_all(
    args: argparse.Namespace, config: DrawingConfig, configurations: Sequence[Configuration], bar: ProgressBar
) -> tuple[list[Path], list[str]]:
    """The folders that are complete, and sentences on failures. Raises EvaluationError: nothing can be drawn."""
    webui = WebUI(args.url, args.auth, args.timeout)
    host = webui.inspect()
    problems = [problem for problem in map(host.problem_with, configurations) if problem]
    if problems:
        raise EvaluationError("\n".join(problems))
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(prompts_path(args.out, config.digest), json.dumps(config.prompts, ensure_ascii=False, indent=0))
    print(f"{len(configurations)} configurations, {config.count} pictures of {config.width}x{config.height} each")
    finished, failed = [], []
    for configuration in configurations:
        drawing = Drawing(args.out, config, configuration, host)
        try:
            drawing.draw(webui, bar)
        except RequestRefused as error:
            failed.append(f"{configuration}: {error}")
            print(printable(failed[-1]), file=sys.stderr)
        else:
            finished.append(drawing.folder)
        finally:
            bar.end()
    return finished, failed


def _config_of(args: argparse.Namespace) -> DrawingConfig:
    if args.prompts is None:
        raise EvaluationError("no prompts: --prompts file.txt, or COCO's captions_val2014.json")
    prompts, sentences = prompts_of(args.prompts)
    count = args.count or len(prompts) * args.batch
    needed = -(-count // args.batch)
    if needed > len(prompts):
        raise EvaluationError(f"--count {count} needs {needed} prompts, {args.prompts} holds {len(prompts)}")
    side = 1024 if any("sdxl" in name for name in args.named) else 512
    return DrawingConfig(
        tuple(prompts), sentences, count, args.width or side, args.height or side, args.seed, args.batch, args.negative
    )


def _score_all(scorer: Scorer, folders: Sequence[Path], bar: ProgressBar) -> tuple[list[Row], list[str]]:
    """A row for every folder that could be scored, and sentences on failures."""
    rows, failed = [], []
    for folder in folders:
        try:
            rows.append(scorer.row(folder, bar))
        except (ScoreError, EvaluationError) as error:
            failed.append(f"{folder.name}: {error}")
            print(failed[-1], file=sys.stderr)
        finally:
            bar.end()
    return rows, failed


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; returns the exit status: 0 for success, 3 in part, 1 failure, 130 interrupted."""
    args = _options(argv)
    bar = ProgressBar(args.quiet)
    try:
        return _run(args, bar)
    except (EvaluationError, ClientError, ScoreError) as error:
        bar.end()
        print(printable(str(error)), file=sys.stderr)
    except OSError as error:
        bar.end()
        print(f"{error.filename or args.out}: {error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:
        bar.end()
        print("Interrupted. The same command continues from here.", file=sys.stderr)
        return 130
    return 1


def _run(args: argparse.Namespace, bar: ProgressBar) -> int:
    configurations = _configurations(args)
    failed: list[str] = []
    # what costs nothing to check comes before the networks, which take minutes to load
    if args.command != "draw" and args.references is not None:
        metrics.images_in(args.references)
    if args.command == "score":
        folders = sorted(path.parent for path in args.out.glob(f"*/{MANIFEST}"))
        if not folders:
            raise EvaluationError(f"{args.out} holds no drawn configurations")
        scorer: Optional[Scorer] = Scorer(args)
    else:
        if not configurations:
            raise EvaluationError(
                f"no configurations: --config sampler/schedule/steps/cfg, or --named {', '.join(NAMED)}"
            )
        config = _config_of(args)
        # before hours of drawing, so that a missing library is reported at once
        scorer = None if args.command == "draw" else Scorer(args)
        folders, failed = _draw_all(args, config, configurations, bar)
        for folder in folders:
            print(f"Drawn: {folder}")
    if scorer is None:
        return _status(bool(folders), failed)
    rows, unmeasured = _score_all(scorer, folders, bar)
    if not any({"fid", "clip"} & set(row.figures) for row in rows):
        raise EvaluationError(
            "nothing could be measured: " + ("; ".join([*failed, *unmeasured]) or "give --references")
        )
    notes = [*scorer.notes, *(f"Not measured: {failure}" for failure in [*failed, *unmeasured])]
    for path in write_report(rows, notes, args.out):
        print(f"Written: {path}")
    return _status(True, [*failed, *unmeasured])


def _status(any_done: bool, failed: Sequence[str]) -> int:
    return 1 if not any_done else 3 if failed else 0


def _configurations(args: argparse.Namespace) -> list[Configuration]:
    """The configurations that the options name, without repetitions."""
    texts = [text for name in args.named for text in NAMED[name]] + args.config
    try:
        return list(dict.fromkeys(map(Configuration.parse, texts)))
    except ValueError as error:
        raise EvaluationError(str(error)) from None


def _options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hpsampler.evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "command", nargs="?", choices=("run", "draw", "score"), default="run",
        help="draw and score, draw alone, or score all finished folders in --out (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and the table")
    draw = parser.add_argument_group("drawing")
    draw.add_argument("--url", default="http://127.0.0.1:7860", help="address of the WebUI (default: %(default)s)")
    draw.add_argument("--auth", help="user:password, if the WebUI was started with --api-auth (default: none)")
    draw.add_argument(
        "--timeout", type=float, default=600, help="time limit of a request in seconds (default: %(default)g)"
    )
    draw.add_argument(
        "--prompts", type=Path,
        help="a text file with a prompt on each line, or COCO's captions as JSON (no default: drawing needs one)",
    )  # fmt: skip
    draw.add_argument("--count", type=_positive, help="number of pictures of each configuration (default: all prompts)")
    draw.add_argument(
        "--config", action="append", default=[], metavar="SAMPLER/SCHEDULE/STEPS/CFG?NAME=VALUE&...",
        help="a configuration; may be given several times (default: those of --named)",
    )  # fmt: skip
    draw.add_argument(
        "--named",
        action="append",
        default=[],
        choices=tuple(NAMED),
        help="a named set of configurations; may be given several times (default: none)",
    )
    draw.add_argument("--negative", default="", help="negative prompt (default: none, as in the paper)")
    for name in ("width", "height"):
        draw.add_argument(
            f"--{name}", type=_positive, help=f"{name} in pixels (default: 512, or 1024 with --named paper-sdxl)"
        )
    draw.add_argument(
        "--seed", type=_seed, default=0, help="seed of the first picture; each further one has the next (default: 0)"
    )
    draw.add_argument(
        "--batch", type=_positive, default=1, help="pictures of each prompt, drawn in one request (default: 1)"
    )
    score = parser.add_argument_group("scoring")
    score.add_argument("--references", type=Path, help="folder of real pictures (default: none, and then no FID)")
    score.add_argument(
        "--reference-size",
        type=_positive,
        default=512,
        help="width and height to which they are resized, as in the paper (default: 512)",
    )
    score.add_argument(
        "--features", metavar="MODULE:FUNCTION", help="a feature extractor (default: FID's Inception network)"
    )
    score.add_argument("--clip", default=metrics.CLIP, help="model of the CLIP score (default: %(default)s)")
    score.add_argument("--no-clip", action="store_true", help="compute no CLIP score")
    score.add_argument("--device", help="device of the scoring networks (default: cuda if available)")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    return parser.parse_args(argv)


def _whole_number(text: str, least: int) -> int:
    value = int(text) if text.isascii() and text.isdigit() else -1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text}")
    return value


def _positive(text: str) -> int:
    return _whole_number(text, 1)


def _seed(text: str) -> int:
    return _whole_number(text, 0)  # to the WebUI -1 means a random seed
