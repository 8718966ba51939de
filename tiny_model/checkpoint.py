"""``python -m tiny_model.checkpoint``: the tiny model as a checkpoint that AUTOMATIC1111's WebUI loads.

Into the folder ``--out`` (best the WebUI's own ``models/Stable-diffusion``) it writes

* ``hps-tiny.safetensors``: UNet, autoencoder and text encoder under the names of SD 1.x checkpoints, half precision;
* ``hps-tiny.yaml``: the networks' widths, which the WebUI reads from beside a checkpoint;
* ``hps-tiny-clip/``: CLIP's tokenizer and the text encoder's configuration. The ``.yaml`` names this folder by its full
  path, so write the files where they will stay.

The tokenizer is made from CLIP's vocabulary, which comes with the WebUI: ``--webui`` says where the WebUI is (its
``venv`` is searched), and ``--bpe`` names the file itself, ``bpe_simple_vocab_16e6.txt.gz``.

The model was trained for pictures of 96x96 pixels and knows the words in ``tiny_model.words.WORDS``, as in "a large red
heart on a striped teal background at the left". It reads all other words, and punctuation, as one unknown word.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .words import CLIP_ROWS, CONTEXT, WORDS

__all__ = [
    "CLIP_VOCABULARY",
    "NAME",
    "CheckpointError",
    "clip_embedding",
    "find_bpe",
    "ldm_config",
    "main",
    "tensors",
    "vocabulary",
    "write_checkpoint",
    "write_tokenizer",
]

NAME = "hps-tiny"
BPE = "bpe_simple_vocab_16e6.txt.gz"

CLIP_VOCABULARY = 49408
_MERGES = CLIP_VOCABULARY - 2 * 256 - 2
"""CLIP's words are the 256 bytes, these at the end of a word, the results of its merges, and the prompt's two ends."""

START, END = "<|startoftext|>", "<|endoftext|>"


class CheckpointError(Exception):
    """A required file or folder is missing or wrong; the message says which."""


def vocabulary(merges: Sequence[str]) -> dict[str, int]:
    """CLIP's words and their numbers, from its merges, each of which is two words with a space between them.

    Raises:
        ValueError: the words of the tiny model do not have their numbers in it.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    # bytes that cannot be printed are represented by the first characters after the printable ones
    characters = [chr(code) for code in [*printable, *range(0x100, 0x200 - len(printable))]]
    merged = ("".join(pair.split()) for pair in merges)
    words = [*characters, *(character + "</w>" for character in characters), *merged, START, END]
    numbers = {word: number for number, word in enumerate(words)}
    if len(words) != CLIP_VOCABULARY or any(numbers.get(f"{word}</w>") != row for word, row in WORDS.items()):
        raise ValueError("it is not CLIP's vocabulary")
    return numbers


def find_bpe(webui: Path) -> Path:
    """CLIP's vocabulary in the WebUI's ``venv``.

    Raises:
        CheckpointError: there is no such folder, or no such file in it.
    """
    if not (webui / "webui.py").is_file():
        raise CheckpointError(f"{webui} is not the WebUI's folder: there is no webui.py in it")
    for packages in ("venv/lib/python3*/site-packages", "venv/Lib/site-packages"):
        for package in ("open_clip", "clip"):
            for found in sorted(webui.glob(f"{packages}/{package}/{BPE}")):
                return found
    raise CheckpointError(
        f"no {BPE} in {webui / 'venv'}: start the WebUI once, so that it installs its packages, or give --bpe"
    )


def write_tokenizer(folder: Path, bpe: Path) -> None:
    """CLIP's tokenizer in the form that transformers reads, from the vocabulary file of open_clip or clip.

    Raises:
        CheckpointError: the file is missing or holds something else.
    """
    try:
        _, *lines = gzip.decompress(bpe.read_bytes()).decode("utf-8").split("\n")
        # the file has more merges, which CLIP does not use
        merges = lines[:_MERGES]
        numbers = vocabulary(merges)
    except (OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{bpe} cannot be read: {error}") from None
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "do_lower_case": True, **special}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(numbers), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), "utf-8", newline="\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), "utf-8")


def ldm_config(
    unet: Mapping[str, Any], vae: Mapping[str, Any], tokenizer: Path, scale_factor: float, parameterization: str = "eps"
) -> dict[str, Any]:
    """SD 1.x's configuration with these widths; ``tokenizer`` is the folder of the tokenizer and the text's widths."""
    return {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "parameterization": parameterization,
            "linear_start": 0.00085,
            "linear_end": 0.0120,
            "num_timesteps_cond": 1,
            "timesteps": 1000,
            "first_stage_key": "jpg",
            "cond_stage_key": "txt",
            "image_size": 64,
            "channels": 4,
            "cond_stage_trainable": False,
            "conditioning_key": "crossattn",
            "scale_factor": scale_factor,
            "use_ema": False,
            "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": dict(unet)},
            "first_stage_config": {
                "target": "ldm.models.autoencoder.AutoencoderKL",
                "params": {"embed_dim": 4, "ddconfig": dict(vae), "lossconfig": {"target": "torch.nn.Identity"}},
            },
            "cond_stage_config": {
                "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
                "params": {"version": str(tokenizer)},
            },
        },
    }


def write_checkpoint(path: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Write the weights, and beside them the configuration as ``.yaml``."""
    save_file({key: value.contiguous().clone() for key, value in weights.items()}, path, metadata={"format": "pt"})
    path.with_suffix(".yaml").write_text(json.dumps({"model": config}, indent=1), "utf-8")  # JSON is YAML


def clip_embedding(small: torch.Tensor) -> torch.Tensor:
    """The small embedding's rows, (len(CLIP_ROWS), width), at their places in CLIP's embedding, (49408, width).

    All other rows are that of the unknown word.
    """
    large = small[CLIP_ROWS.index(-1)].repeat(CLIP_VOCABULARY, 1)
    rows = [(small_row, row) for small_row, row in enumerate(CLIP_ROWS) if row >= 0]
    large[[row for _, row in rows]] = small[[small_row for small_row, _ in rows]]
    return large


def tensors(folder: Path) -> tuple[dict[str, torch.Tensor], float]:
    """The trained weights under the names of SD 1.x checkpoints, and the factor of the latents.

    Raises:
        CheckpointError: a file of weights is missing or broken.
    """
    unet, vae, text = (_read(folder / f"{name}.safetensors") for name in ("unet", "vae", "text"))
    scale_factor = float(vae.pop("latent_scale"))
    embeddings = "text_model.embeddings"
    token_embedding = f"{embeddings}.token_embedding.weight"
    text[token_embedding] = clip_embedding(text[token_embedding])
    # newer versions of transformers do not store this, but the WebUI's reads it, as SD 1.x checkpoints have it
    text[f"{embeddings}.position_ids"] = torch.arange(CONTEXT)[None]
    parts = {"model.diffusion_model": unet, "first_stage_model": vae, "cond_stage_model.transformer": text}
    return {f"{prefix}.{key}": value for prefix, part in parts.items() for key, value in part.items()}, scale_factor


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); python -m tiny_model.train makes it") from None


def write(out: Path, bpe: Path, weights: Path) -> Path:
    """Write all files into ``out``, which is created if missing; returns the checkpoint's path.

    Raises:
        CheckpointError: the vocabulary or the weights are missing or broken.
    """
    # imported late, as this needs ldm, which the WebUI's Python cannot import when it uses the functions above
    from .networks import UNET, VAE, text_config

    state, scale_factor = tensors(weights)
    clip = out.resolve() / f"{NAME}-clip"
    write_tokenizer(clip, bpe)
    text = text_config(CLIP_VOCABULARY)
    # the small embedding has other numbers for these
    end = CLIP_VOCABULARY - 1
    text.update({"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end})
    text.save_pretrained(clip)
    path = out / f"{NAME}.safetensors"
    write_checkpoint(path, ldm_config(UNET, VAE, clip, scale_factor), state)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    from .networks import WEIGHTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--webui", type=Path, metavar="FOLDER", help="the WebUI's folder (no default: this or --bpe)")
    source.add_argument(
        "--bpe", type=Path, metavar="FILE", help="CLIP's vocabulary, if the WebUI has no venv (no default)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder in which the files are written")
    parser.add_argument(
        "--weights",
        type=Path,
        default=WEIGHTS,
        metavar="DIR",
        help="folder of the trained weights (default: those that come along)",
    )
    args = parser.parse_args(argv)
    try:
        path = write(args.out, args.bpe or find_bpe(args.webui), args.weights)
    except CheckpointError as error:
        parser.exit(1, f"{error}\n")
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): choose it in the WebUI and draw at 96x96 pixels")


if __name__ == "__main__":
    main()
