"""``python -m tiny_model.train``: make the tiny model's weights from nothing, on a CPU or a GPU, from fixed seeds.

Four stages, each reading what the ones before it wrote: the classifier (also the metric of the bench), the autoencoder,
the text encoder, the UNet. Losses go to ``losses.csv`` beside the weights.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from bench.schedules import stable_diffusion_noise

from .networks import TEXT_WIDTH, WEIGHTS, Classifier, TinyDiffusion, read_weights
from .pictures import SIDE, Picture, answers, draw, random_picture, truth
from .words import CONTEXT

__all__ = ["main"]

SEED = 2510
CHUNK = 256
STAGES = ("classifier", "vae", "text", "unet")


class Trainer:
    """One stage's optimiser: warm-up, cosine towards zero, clipped gradients, averaged weights, losses on record.

    The cosine is as long as the training, or ``decay`` steps where that is longer: the averaged weights make up for an
    end above zero.
    """

    def __init__(
        self, name: str, networks: list[nn.Module], steps: int, rate: float, args: argparse.Namespace, decay: int = 0
    ) -> None:
        self.name, self.steps, self.args = name, max(1, round(steps * args.scale)), args
        length = max(self.steps, round(decay * args.scale))
        self.weights = [w for network in networks for w in network.parameters() if w.requires_grad]
        self.averages = [w.detach().clone() for w in self.weights]
        self.optimiser = torch.optim.AdamW(self.weights, lr=rate, weight_decay=1e-4, betas=(0.9, 0.99))
        warm = min(300, self.steps // 5 + 1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda k: min((k + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(1, k / length)))
        )
        self.losses: list[tuple[int, float]] = []

    def run(self, loss_of: Callable[[int], torch.Tensor], checkpoint: Callable[[], None] | None = None) -> None:
        """Train, then leave the averaged weights in the networks."""
        recent: list[float] = []
        saved = time.monotonic()
        bar = tqdm(range(1, self.steps + 1), desc=self.name, mininterval=5)
        for step in bar:
            with torch.autocast(self.args.device, dtype=torch.bfloat16):
                loss = loss_of(step)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimiser.step()
            self.schedule.step()
            keep = min(0.999, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.averages, [w.detach() for w in self.weights], 1 - keep)
            recent.append(float(loss.detach()))
            if len(recent) == 100 or step == self.steps:
                self.losses.append((step, float(np.mean(recent))))
                bar.set_postfix(loss=f"{self.losses[-1][1]:.4f}")
                recent.clear()
            if checkpoint and time.monotonic() - saved > 240:
                self.swap()
                checkpoint()
                self.swap()
                saved = time.monotonic()
        self.swap()
        self.record()

    def swap(self) -> None:
        """Exchange the networks' weights with the averaged ones."""
        with torch.no_grad():
            for weight, average in zip(self.weights, self.averages):
                held = weight.clone()
                weight.copy_(average)
                average.copy_(held)

    def record(self) -> None:
        path = self.args.out / "losses.csv"
        rows = []
        if path.exists():
            with path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if row[0] not in (self.name, "stage")]
        rows += [[self.name, str(step), f"{loss:.5f}"] for step, loss in self.losses]
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([["stage", "step", "loss"], *rows])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES], help="stages to run; all when none is named")
    parser.add_argument(
        "--out",
        type=Path,
        default=WEIGHTS,
        help="folder to write the weights to, and to read from (default: those that come along)",
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the networks are trained (default: cuda if available)",
    )  # fmt: skip
    parser.add_argument("--pictures", type=int, default=49152, help="pictures to learn from (default: %(default)s)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="times the steps of each stage: more on a GPU (default: %(default)g)"
    )
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for stage in args.stages or STAGES:
            torch.manual_seed(SEED + STAGES.index(stage))
            {"classifier": train_classifier, "vae": train_vae, "text": train_text, "unet": train_unet}[stage](
                args, pool
            )


def chunk(seed: int, index: int) -> tuple[list[Picture], np.ndarray]:
    """A piece of a data set: the same for the same seed and index. Pictures as bytes, (CHUNK, 3, SIDE, SIDE)."""
    torch.set_num_threads(1)
    rng = np.random.default_rng((seed, index))
    pictures = [random_picture(rng) for _ in range(CHUNK)]
    return pictures, (draw(pictures, rng) * 255).round().byte().numpy()


def data(pool: ProcessPoolExecutor, count: int, seed: int = SEED) -> Iterator[tuple[list[Picture], torch.Tensor]]:
    """Chunks of at least ``count`` pictures in all."""
    jobs = [pool.submit(chunk, seed, index) for index in range(-(-count // CHUNK))]
    for job in tqdm(jobs, desc="drawing pictures", unit=f"x{CHUNK}", mininterval=5):
        pictures, pixels = job.result()
        yield pictures, torch.from_numpy(pixels)


def train_classifier(args: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
    pictures, pixels = _all(data(pool, min(args.pictures, 24576)))
    labels = {name: index.to(args.device) for name, index in truth(pictures).items()}
    pixels = pixels.to(args.device)
    network = Classifier(answers()).to(args.device)

    def loss_of(step: int) -> torch.Tensor:
        pick = torch.randint(len(pixels), (64,), device=args.device)
        batch = pixels[pick].float() / 255
        # samples of a diffusion model are never as clean as drawings: read through a little noise and blur
        batch = batch + torch.randn_like(batch) * torch.rand(len(batch), 1, 1, 1, device=args.device) * 0.1
        if step % 2:
            batch = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        given = network(batch)
        return sum((F.cross_entropy(given[name].float(), labels[name][pick]) for name in labels), torch.zeros(()))

    Trainer("classifier", [network], 2500, 2e-3, args).run(loss_of)
    _save({"": network}, args.out / "classifier.safetensors")


def train_vae(args: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
    """Pixels, their differences, the classifier's stages in place of LPIPS, KL; and noise on the latents, which is what
    lets the decoder swallow the noise that a cut schedule leaves.

    First whole pictures under much noise, then crops, in which the shape is most of the picture, under less.
    """
    _, pixels = _all(data(pool, min(args.pictures, 24576)))
    pixels = pixels.to(args.device)
    model = TinyDiffusion()
    vae = model.vae.to(args.device)
    reader = Classifier(answers()).to(args.device)
    reader.load_state_dict(read_weights(args.out / "classifier.safetensors"))
    reader.requires_grad_(False)
    stages = [nn.Sequential(*list(reader.body)[: 3 * count]) for count in (1, 2, 3, 4)]

    def some(count: int, side: int) -> torch.Tensor:
        top, left = torch.randint(SIDE - side + 1, (2,)).tolist()
        picked = pixels[torch.randint(len(pixels), (count,), device=args.device)]
        return picked[:, :, top : top + side, left : left + side].float() / 127.5 - 1

    def loss_of(batch: torch.Tensor, most_noise: float, kl_weight: float) -> torch.Tensor:
        mean, log_variance = vae.encode(batch)
        mean, log_variance = mean.float(), log_variance.float()
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        disturbed = (torch.rand(len(mean), 1, 1, 1, device=args.device) * 1.2 - 0.2).clamp(min=0) * most_noise
        latents = latents + torch.randn_like(mean) * disturbed * mean.detach().std()
        given = vae.decode(latents).float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = F.l1_loss(given, batch) + 2 * F.mse_loss(given, batch) + kl_weight * kl
        for axis in (-1, -2):
            loss = loss + F.l1_loss(given.diff(dim=axis), batch.diff(dim=axis))
        for stage in stages:
            ours, theirs = stage(given), stage(batch)
            loss = loss + 0.25 * (F.normalize(ours, dim=1) - F.normalize(theirs, dim=1)).square().sum(1).mean()
        return loss

    Trainer("vae", [vae], 2200, 1.5e-3, args).run(lambda step: loss_of(some(16, SIDE), 0.25, 1e-3))
    Trainer("vae crops", [vae], 4000, 1.5e-3, args).run(
        lambda step: loss_of(some(7, SIDE) if step % 4 == 0 else some(16, 64), 0.18, 1e-4)
    )
    with torch.no_grad():
        spread = torch.cat([vae.encode(part.float() / 127.5 - 1)[0] for part in pixels[:2048].split(64)]).std()
    _save({"": vae}, args.out / "vae.safetensors", latent_scale=1 / spread.cpu())


def train_text(args: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
    """Learn to say at every position after the end what the caption told and what it left open: as in SD, the UNet
    then finds a text encoder that is done, and may read it at any position."""
    model = TinyDiffusion()
    text = model.text.to(args.device)
    # the last layer's affine part is the UNet's to learn; with this bias a token's mean is never near 0, by which the
    # WebUI's prompt weights divide
    norm = text.text_model.final_layer_norm
    norm.requires_grad_(False)
    norm.bias.fill_(0.2)
    heads = nn.ModuleDict({name: nn.Linear(TEXT_WIDTH, count + 1) for name, count in answers().items()}).to(args.device)
    rng = np.random.default_rng(SEED)
    open_answer = answers()

    def loss_of(step: int) -> torch.Tensor:
        pictures = [random_picture(rng) for _ in range(64)]
        captions = [picture.caption(rng) for picture in pictures]
        hidden = model.embed(captions)
        words = [set(caption.split()) for caption in captions]
        loss = torch.zeros((), device=args.device)
        for name, labels in truth(pictures).items():
            told = torch.tensor([getattr(p, name) in w for p, w in zip(pictures, words)])
            wanted = torch.where(told, labels, open_answer[name]).to(args.device)
            given = heads[name](hidden[:, 18:])
            loss = loss + F.cross_entropy(given.flatten(0, 1), wanted.repeat_interleave(given.shape[1]))
        return loss

    Trainer("text", [text, heads], 700, 2e-3, args).run(loss_of)
    _save({"": text}, args.out / "text.safetensors")


def train_unet(args: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
    """eps-prediction on SD's noise table, a tenth of the captions empty, weighted by min-SNR-5 (arXiv 2303.09556)."""
    model = TinyDiffusion()
    stored = read_weights(args.out / "vae.safetensors")
    scale = stored.pop("latent_scale")
    model.vae.load_state_dict(stored)
    model.text.load_state_dict(read_weights(args.out / "text.safetensors"))
    model.to(args.device).requires_grad_(False)
    rng = np.random.default_rng(SEED + 1)

    captions: list[str] = []
    latents = []
    for pictures, pixels in data(pool, args.pictures):
        captions += [picture.caption(rng) for picture in pictures]
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
    weight = (5 * (1 - kept) / kept).clamp(max=1)

    def loss_of(step: int) -> torch.Tensor:
        pick = torch.randint(len(clean), (64,), device=args.device)
        caption = torch.where(torch.rand(64, device=args.device) < 0.1, place[""], said[pick])
        timestep = torch.randint(1000, (64,), device=args.device)
        share = kept[timestep][:, None, None, None]
        noise = torch.randn_like(clean[pick])
        given = unet(share.sqrt() * clean[pick] + (1 - share).sqrt() * noise, timestep, context=contexts[caption])
        return ((given.float() - noise).square().mean((1, 2, 3)) * weight[timestep]).mean()

    trainer = Trainer("unet", [unet], 10300, 1e-3, args, decay=13000)
    trainer.run(loss_of, lambda: _save({"": unet}, args.out / "unet.safetensors"))
    _save({"": unet}, args.out / "unet.safetensors")


def _all(chunks: Iterator[tuple[list[Picture], torch.Tensor]]) -> tuple[list[Picture], torch.Tensor]:
    parts = list(chunks)
    return [picture for pictures, _ in parts for picture in pictures], torch.cat([pixels for _, pixels in parts])


def _save(parts: dict[str, nn.Module], path: Path, **more: torch.Tensor) -> None:
    tensors = {f"{prefix}{key}": value for prefix, part in parts.items() for key, value in part.state_dict().items()}
    half = {
        key: value.detach().cpu().half().contiguous() for key, value in tensors.items() if value.is_floating_point()
    }
    save_file({**half, **{key: value.float().contiguous() for key, value in more.items()}}, path)


if __name__ == "__main__":
    main()
