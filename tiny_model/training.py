"""The training of a small latent diffusion model, from nothing and from fixed seeds, on a CPU or a GPU.

Four stages, each reading what the ones before it wrote: the classifier (also the metric of the bench), the autoencoder,
the text encoder, the UNet. Losses go to ``losses.csv`` beside the weights. A stage that is interrupted goes on near
where it stopped when the same command is given again; its state is kept in a file beside the weights meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from bench.schedules import stable_diffusion_noise

from .description import CONTEXT, Captioned, Description
from .networks import TEXT_WIDTH, Classifier, TinyDiffusion, read_weights

__all__ = ["STAGES", "AutoencoderPhase", "Course", "train"]

SEED = 2510
CHUNK = 256
STAGES = ("classifier", "vae", "text", "unet")
KEEP_SECONDS = 120
"""How often a stage writes down where it is."""


@dataclass(frozen=True)
class AutoencoderPhase:
    """A part of the autoencoder's training.

    Attributes:
        batch, side: of the crops it learns from.
        whole_every: each so many steps a batch of ``whole`` whole pictures instead; 0 for never.
        noise: most noise on the latents, in their standard deviations.
        kl_weight: of the Kullback-Leibler divergence's mean over the latents' elements, where the errors of pixels
            are means too.
        colour_weight: of the error of the differences between red, green and blue, as means of 4x4 pixels.
    """

    name: str
    steps: int
    batch: int
    side: int
    noise: float
    kl_weight: float
    colour_weight: float = 0.0
    whole_every: int = 0
    whole: int = 0


@dataclass(frozen=True)
class Course:
    """How one model is trained: steps, batches and rates that fit its size.

    Attributes:
        pictures, few: how many the UNet learns from, and the classifier and the autoencoder.
        decay: steps over which the UNet's rate would fall to zero, where that is more than its steps.
    """

    pictures: int
    few: int
    classifier_steps: int
    autoencoder: tuple[AutoencoderPhase, ...]
    text_steps: int
    unet_steps: int
    unet_batch: int
    unet_rate: float
    decay: int = 0


class Trainer:
    """One stage's optimiser: warm-up, cosine towards zero, clipped gradients, averaged weights, losses on record.

    The cosine is as long as the training, or ``decay`` steps where that is longer: the averaged weights make up for an
    end above zero.
    """

    def __init__(
        self, name: str, networks: list[nn.Module], steps: int, rate: float, args: argparse.Namespace, decay: int = 0
    ) -> None:
        self.name, self.steps, self.rate, self.args = name, max(1, round(steps * args.scale)), rate, args
        self.length = max(self.steps, round(decay * args.scale))
        self.weights = [w for network in networks for w in network.parameters() if w.requires_grad]
        self.averages = [w.detach().clone() for w in self.weights]
        self.optimiser = torch.optim.AdamW(self.weights, lr=rate, weight_decay=1e-4, betas=(0.9, 0.99))
        self.losses: list[tuple[int, float]] = []
        self.state = args.out / f"{name.replace(' ', '-')}.state"

    def run(self, loss_of: Callable[[int], torch.Tensor]) -> None:
        """Train, then leave the averaged weights in the networks."""
        recent: list[float] = []
        done = self.resume() if self.state.exists() else 0
        saved = time.monotonic()
        bar = tqdm(range(done + 1, self.steps + 1), desc=self.name, mininterval=5, initial=done, total=self.steps)
        for step in bar:
            with torch.autocast(self.args.device, dtype=torch.bfloat16):
                loss = loss_of(step)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimiser.param_groups[0]["lr"] = self.rate_at(step)
            self.optimiser.step()
            keep = min(0.999, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.averages, [w.detach() for w in self.weights], 1 - keep)
            recent.append(float(loss.detach()))
            if len(recent) == 100 or step == self.steps:
                self.losses.append((step, float(np.mean(recent))))
                bar.set_postfix(loss=f"{self.losses[-1][1]:.4f}")
                recent.clear()
            if time.monotonic() - saved > KEEP_SECONDS:
                self.keep(step)
                saved = time.monotonic()
        self.keep(self.steps)
        with torch.no_grad():
            for weight, average in zip(self.weights, self.averages):
                weight.copy_(average)
        self.record()

    def rate_at(self, step: int) -> float:
        warm = min(300, self.steps // 5 + 1)
        return self.rate * min(step / warm, 0.5 + 0.5 * math.cos(math.pi * min(1, (step - 1) / self.length)))

    def keep(self, step: int) -> None:
        """Write down all that the training needs to go on after this step."""
        moments = [self.optimiser.state[weight] for weight in self.weights]
        parts = {
            "weight": [w.detach() for w in self.weights],
            "average": self.averages,
            "mean": [moment["exp_avg"] for moment in moments],
            "square": [moment["exp_avg_sq"] for moment in moments],
            "loss": [torch.tensor(self.losses, dtype=torch.float64).reshape(-1, 2)],
        }
        tensors = {f"{part}.{i}": t.cpu().contiguous() for part, rows in parts.items() for i, t in enumerate(rows)}
        partial_path = self.state.with_suffix(".part")
        save_file({**tensors, "step": torch.tensor(step)}, partial_path)
        partial_path.replace(self.state)

    def resume(self) -> int:
        """Go back to what :meth:`keep` wrote; returns the steps done."""
        found = load_file(self.state, str(self.args.device))
        step = int(found["step"])
        with torch.no_grad():
            for i, (weight, average) in enumerate(zip(self.weights, self.averages)):
                weight.copy_(found[f"weight.{i}"])
                average.copy_(found[f"average.{i}"])
                moments = {"exp_avg": found[f"mean.{i}"], "exp_avg_sq": found[f"square.{i}"]}
                self.optimiser.state[weight] = {"step": torch.tensor(float(step)), **moments}
        self.losses = [(int(at), loss) for at, loss in found["loss.0"].tolist()]
        # other batches than those of the first steps
        torch.manual_seed(SEED + step)
        return step

    def record(self) -> None:
        path = self.args.out / "losses.csv"
        rows = []
        if path.exists():
            with path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if row[0] not in (self.name, "stage")]
        rows += [[self.name, str(step), f"{loss:.5f}"] for step, loss in self.losses]
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([["stage", "step", "loss"], *rows])


def train(description: Description, course: Course, text: str, argv: Sequence[str] | None = None) -> None:
    """The command line: make the model's weights, all stages or those named; ``text`` explains it."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES], help="stages to run; all when none is named")
    parser.add_argument(
        "--out", type=Path, default=description.weights,
        help="folder to write the weights to, and to read from (default: those that come along)",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the networks are trained (default: cuda if available)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="threads of a CPU (default: all; one where other work runs too)")
    parser.add_argument(
        "--pictures", type=int, default=course.pictures, help="pictures to learn from (default: %(default)s)"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="times the steps of each stage: more on a GPU (default: %(default)g)"
    )
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        run = Stages(description, course, args, pool)
        for stage in args.stages or STAGES:
            torch.manual_seed(SEED + STAGES.index(stage))
            getattr(run, stage)()
            for left in args.out.glob(f"{stage}*.state"):
                left.unlink()


class Stages:
    """The stages of one model's training, by name."""

    def __init__(
        self, description: Description, course: Course, args: argparse.Namespace, pool: ProcessPoolExecutor
    ) -> None:
        self.description, self.course, self.args, self.pool = description, course, args, pool
        self.pictures = description.pictures

    def data(self, count: int) -> Iterator[tuple[list[Captioned], torch.Tensor]]:
        """Chunks of at least ``count`` pictures in all."""
        jobs = [self.pool.submit(self.pictures.chunk, CHUNK, SEED, index) for index in range(-(-count // CHUNK))]
        for job in tqdm(jobs, desc="drawing pictures", unit=f"x{CHUNK}", mininterval=5):
            told, pixels = job.result()
            yield told, torch.from_numpy(pixels)

    @cached_property
    def few(self) -> tuple[list[Captioned], torch.Tensor]:
        """Pictures for the classifier and the autoencoder, all at once."""
        parts = list(self.data(min(self.args.pictures, self.course.few)))
        return [told for some, _ in parts for told in some], torch.cat([pixels for _, pixels in parts])

    def new_classifier(self) -> Classifier:
        return Classifier(self.pictures.answers(), self.pictures.side).to(self.args.device)

    def classifier(self) -> None:
        device = self.args.device
        told, pixels = self.few
        labels = {name: index.to(device) for name, index in self.pictures.truth(told).items()}
        pixels = pixels.to(device)
        network = self.new_classifier()

        def loss_of(step: int) -> torch.Tensor:
            pick = torch.randint(len(pixels), (64,), device=device)
            batch = pixels[pick].float() / 255
            # samples of a diffusion model are never as clean as drawings: read through a little noise and blur
            batch = batch + torch.randn_like(batch) * torch.rand(len(batch), 1, 1, 1, device=device) * 0.1
            if step % 2:
                batch = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
            given = network(batch)
            return sum((F.cross_entropy(given[name].float(), labels[name][pick]) for name in labels), torch.zeros(()))

        Trainer("classifier", [network], self.course.classifier_steps, 2e-3, self.args).run(loss_of)
        _save({"": network}, self.args.out / "classifier.safetensors")

    def vae(self) -> None:
        """Pixels, their differences, the classifier's stages in place of LPIPS, KL; and, where the course says so,
        noise on the latents, which is what lets the decoder swallow the noise that a cut schedule leaves."""
        device, full = self.args.device, self.pictures.side
        _, pixels = self.few
        pixels = pixels.to(device)
        model = TinyDiffusion(self.description)
        vae = model.vae.to(device)
        reader = self.new_classifier()
        reader.load_state_dict(read_weights(self.args.out / "classifier.safetensors"))
        reader.requires_grad_(False)
        layers = [nn.Sequential(*list(reader.body)[: 3 * count]) for count in (1, 2, 3, 4)]

        def some(count: int, side: int) -> torch.Tensor:
            top, left = torch.randint(full - side + 1, (2,)).tolist()
            picked = pixels[torch.randint(len(pixels), (count,), device=device)]
            return picked[:, :, top : top + side, left : left + side].float() / 127.5 - 1

        def loss_of(phase: AutoencoderPhase, step: int) -> torch.Tensor:
            whole = phase.whole_every and step % phase.whole_every == 0
            batch = some(phase.whole, full) if whole else some(phase.batch, phase.side)
            mean, log_variance = vae.encode(batch)
            mean, log_variance = mean.float(), log_variance.float()
            latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            if phase.noise:
                disturbed = (torch.rand(len(mean), 1, 1, 1, device=device) * 1.2 - 0.2).clamp(min=0) * phase.noise
                latents = latents + torch.randn_like(mean) * disturbed * mean.detach().std()
            given = vae.decode(latents).float()
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
            loss = F.l1_loss(given, batch) + 2 * F.mse_loss(given, batch) + phase.kl_weight * kl
            for axis in (-1, -2):
                loss = loss + F.l1_loss(given.diff(dim=axis), batch.diff(dim=axis))
            if phase.colour_weight:
                ours, theirs = (F.avg_pool2d(each, 4).diff(dim=1) for each in (given, batch))
                loss = loss + phase.colour_weight * F.l1_loss(ours, theirs)
            for layer in layers:
                ours, theirs = layer(given), layer(batch)
                loss = loss + 0.25 * (F.normalize(ours, dim=1) - F.normalize(theirs, dim=1)).square().sum(1).mean()
            return loss

        for phase in self.course.autoencoder:
            Trainer(phase.name, [vae], phase.steps, 1.5e-3, self.args).run(partial(loss_of, phase))
        with torch.no_grad():
            spread = torch.cat([vae.encode(part.float() / 127.5 - 1)[0] for part in pixels[:2048].split(64)]).std()
        _save({"": vae}, self.args.out / "vae.safetensors", latent_scale=1 / spread.cpu())

    def text(self) -> None:
        """Learn to say at every position after the end what the caption told and what it left open: as in SD, the UNet
        then finds a text encoder that is done, and may read it at any position."""
        device = self.args.device
        model = TinyDiffusion(self.description)
        text = model.text.to(device)
        # the last layer's affine part is the UNet's to learn; with this bias a token's mean is never near 0, by which
        # the WebUI's prompt weights divide
        norm = text.text_model.final_layer_norm
        norm.requires_grad_(False)
        norm.bias.fill_(0.2)
        answers = self.pictures.answers()
        heads = nn.ModuleDict({name: nn.Linear(TEXT_WIDTH, count + 1) for name, count in answers.items()}).to(device)
        rng = np.random.default_rng(SEED)

        def loss_of(step: int) -> torch.Tensor:
            told = [self.pictures.random(rng) for _ in range(64)]
            captions = [picture.caption(rng) for picture in told]
            hidden = model.embed(captions)
            loss = torch.zeros((), device=device)
            for name, labels in self.pictures.truth(told).items():
                said = torch.tensor([picture.tells(name, caption) for picture, caption in zip(told, captions)])
                wanted = torch.where(said, labels, answers[name]).to(device)
                given = heads[name](hidden[:, 18:])
                loss = loss + F.cross_entropy(given.flatten(0, 1), wanted.repeat_interleave(given.shape[1]))
            return loss

        Trainer("text", [text, heads], self.course.text_steps, 2e-3, self.args).run(loss_of)
        _save({"": text}, self.args.out / "text.safetensors")

    def unet(self) -> None:
        """On SD's noise table, a tenth of the captions empty.

        The error of eps is weighted by min-SNR-5 (arXiv 2303.09556); that of v by itself, as in SD 2, but where there
        is little noise no more than five times the clean latent's.
        """
        args, size = self.args, self.course.unet_batch
        model = TinyDiffusion(self.description)
        stored = read_weights(args.out / "vae.safetensors")
        scale = stored.pop("latent_scale")
        model.vae.load_state_dict(stored)
        model.text.load_state_dict(read_weights(args.out / "text.safetensors"))
        model.to(args.device).requires_grad_(False)
        rng = np.random.default_rng(SEED + 1)

        captions: list[str] = []
        latents = []
        for told, pixels in self.data(args.pictures):
            captions += [picture.caption(rng) for picture in told]
            with torch.no_grad(), torch.autocast(args.device, dtype=torch.bfloat16):
                mean, _ = model.vae.encode(pixels.to(args.device).float() / 127.5 - 1)
            latents.append(mean.float() * scale.to(args.device))
        clean = torch.cat(latents)
        distinct = sorted({*captions, ""})
        contexts = torch.empty(len(distinct), CONTEXT, TEXT_WIDTH, dtype=torch.bfloat16, device=args.device)
        with torch.no_grad():
            for start in tqdm(range(0, len(distinct), 256), desc="reading captions", mininterval=5):
                contexts[start : start + 256] = model.embed(distinct[start : start + 256])
        place = {caption: index for index, caption in enumerate(distinct)}
        said = torch.tensor([place[caption] for caption in captions], device=args.device)

        unet = model.unet.requires_grad_(True)
        kept = torch.from_numpy(stable_diffusion_noise().alphas_cumprod).to(args.device, torch.float32)
        by_v = self.description.prediction == "v"
        weight = (5 * (1 - kept)).clamp(max=1) if by_v else (5 * (1 - kept) / kept).clamp(max=1)

        def loss_of(step: int) -> torch.Tensor:
            pick = torch.randint(len(clean), (size,), device=args.device)
            caption = torch.where(torch.rand(size, device=args.device) < 0.1, place[""], said[pick])
            timestep = torch.randint(1000, (size,), device=args.device)
            share = kept[timestep][:, None, None, None]
            noise = torch.randn_like(clean[pick])
            noisy = share.sqrt() * clean[pick] + (1 - share).sqrt() * noise
            wanted = share.sqrt() * noise - (1 - share).sqrt() * clean[pick] if by_v else noise
            given = unet(noisy, timestep, context=contexts[caption])
            return ((given.float() - wanted).square().mean((1, 2, 3)) * weight[timestep]).mean()

        steps, decay = self.course.unet_steps, self.course.decay
        Trainer("unet", [unet], steps, self.course.unet_rate, args, decay).run(loss_of)
        _save({"": unet}, args.out / "unet.safetensors")


def _save(parts: dict[str, nn.Module], path: Path, **more: torch.Tensor) -> None:
    tensors = {f"{prefix}{key}": value for prefix, part in parts.items() for key, value in part.state_dict().items()}
    half = {
        key: value.detach().cpu().half().contiguous() for key, value in tensors.items() if value.is_floating_point()
    }
    save_file({**half, **{key: value.float().contiguous() for key, value in more.items()}}, path)
