"""What drawn pictures are worth: Fréchet distance (FID), CLIP score, and their standard errors.

Both figures come from networks that other libraries keep: FID's Inception from ``torch-fidelity``, CLIP from
``transformers``, which every A1111 has. The other choices were ``clean-fid``, whose better resizing the paper's figures
were not made with and which does not score a picture against its caption; and ``torchmetrics``, which asks these same
two libraries but gives only the mean CLIP score of a batch, so that no error could be had from it. ``torch-fidelity``
has the original network with the original resizing. Both are imported only where they are needed; nothing is installed.

FID is computed here, from features. tr (A B)^1/2 is taken as the sum of the roots of the eigenvalues of A^1/2 B A^1/2:
that matrix is symmetric, so nothing becomes complex or fails to converge where A or B is singular, as it is with fewer
pictures than features.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

__all__ = [
    "CLIP",
    "Estimate",
    "Features",
    "Moments",
    "Reference",
    "ScoreError",
    "average",
    "clip_scorer",
    "features_named",
    "features_of",
    "frechet",
    "frechet_distance",
    "images_in",
    "inception",
    "read_image",
    "reference_of",
]

CLIP = "openai/clip-vit-base-patch32"
"""The model of the paper's CLIP scores."""

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
BATCH = 32
GROUPS = 20
"""Parts of the pictures, each left out once for the error of FID."""

Features = Callable[[torch.Tensor], Any]
"""From a batch of pictures, uint8 (n, 3, h, w) on the CPU, to features (n, d)."""


class ScoreError(ValueError):
    """Something cannot be measured; the message is for people."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of features."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Of features (n, d), n at least 2."""
        return cls(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


class Reference:
    """What pictures are compared to. The root of its covariance is taken once.

    Attributes:
        count: of the pictures behind it.
    """

    def __init__(self, moments: Moments, count: int) -> None:
        self.moments, self.count = moments, count
        values, vectors = np.linalg.eigh(moments.covariance)
        self._root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    @classmethod
    def of(cls, features: np.ndarray) -> Reference:
        """Raises ScoreError: too few features, or not finite."""
        return cls(Moments.of(_checked(features)), len(features))

    def distance(self, other: Moments) -> float:
        """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2) (Dowson and Landau 1982; FID)."""
        middle = np.linalg.eigvalsh(self._root @ other.covariance @ self._root)
        spread = np.trace(self.moments.covariance) + np.trace(other.covariance)
        spread -= 2 * np.sqrt(middle.clip(min=0)).sum()
        return float(((self.moments.mean - other.mean) ** 2).sum() + spread)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Fréchet distance (squared, as FID is) of two Gaussians."""
    return Reference(a, 0).distance(b)


def frechet(features: np.ndarray, reference: Reference) -> Estimate:
    """Fréchet distance of features (n, d) to a reference.

    The error is the jackknife's: each of ``GROUPS`` parts is left out once. A bootstrap would draw pictures
    twice, which shrinks the covariance and shifts FID by more than its error. It is of the pictures drawn alone; that
    of the reference is common to all configurations.

    Raises:
        ScoreError: too few features, not finite, or not as many as the reference's.
    """
    features = _checked(features)
    if features.shape[1] != len(reference.moments.mean):
        raise ScoreError(
            f"features must be as many as the reference's {len(reference.moments.mean)}, got {features.shape[1]}"
        )
    total, count = Moments.of(features), len(features)
    value = reference.distance(total)
    groups = min(GROUPS, count)
    if count - -(-count // groups) < 2:
        return Estimate(value, float("nan"))
    centred = features - total.mean
    products = total.covariance * (count - 1)
    left = []
    for group in np.array_split(centred, groups):
        kept = count - len(group)
        mean = -group.sum(0) / kept
        covariance = (products - group.T @ group - kept * np.outer(mean, mean)) / (kept - 1)
        left.append(reference.distance(Moments(total.mean + mean, covariance)))
    return Estimate(value, float(np.std(left) * (groups - 1) ** 0.5))


def _checked(features: np.ndarray) -> np.ndarray:
    if features.ndim != 2 or len(features) < 2:
        raise ScoreError(f"features must be a table (n, d) of at least 2 pictures, got shape {features.shape}")
    if not np.isfinite(features).all():
        raise ScoreError("features must be finite numbers")
    return features.astype(np.float64, copy=False)


def average(values: np.ndarray) -> Estimate:
    """The mean of one figure per picture."""
    error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")
    return Estimate(float(values.mean()), error)


def needed(module: str, command: str) -> Any:
    """A library's module. Raises ScoreError: with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ScoreError(
            f"{module.partition('.')[0]} cannot be imported ({error}); install it with: {command}"
        ) from None


def inception(device: str) -> Features:
    """FID's Inception network, 2048 features; its weights (92 MB) are fetched by the library when first used.

    Raises:
        ScoreError: the library is missing, or its weights cannot be had.
    """
    module = needed("torch_fidelity.feature_extractor_inceptionv3", "pip install torch-fidelity")
    try:
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device).eval()
    except (OSError, RuntimeError) as error:
        raise ScoreError(f"the weights of FID's Inception network cannot be loaded: {error}") from None
    return lambda pictures: network(pictures.to(device))[0]


def features_named(name: Optional[str], device: str) -> Features:
    """``module:function``, or FID's Inception where nothing is named. Raises ScoreError: there is no such function."""
    if name is None:
        return inception(device)
    module, _, function = name.partition(":")
    if not module or not function:
        raise ScoreError(f"features must be module:function, got {name!r}")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ScoreError(f"features: {module} cannot be imported: {error}") from None
    if not callable(found):
        raise ScoreError(f"features: {module} has no function {function!r}")
    return found


def read_image(path: Path, size: Optional[tuple[int, int]] = None) -> torch.Tensor:
    """A picture as uint8 (3, h, w), resized (bicubic, not cropped) where ``size`` (width, height) is another.

    Raises:
        ScoreError: it cannot be read.
    """
    pil = needed("PIL.Image", "pip install Pillow")
    try:
        with pil.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow calls a broken PNG a SyntaxError
        raise ScoreError(f"{path} cannot be read as a picture: {error}") from None
    if size is not None and image.size != size:
        image = image.resize(size, pil.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def images_in(folder: Path) -> list[Path]:
    """Every picture in a folder and those below it. Raises ScoreError: no folder, or fewer than 2 pictures."""
    if not folder.is_dir():
        raise ScoreError(f"there is no folder {folder}")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    if len(found) < 2:
        raise ScoreError(f"{folder} must hold at least 2 pictures ({', '.join(IMAGES)}), found {len(found)}")
    return found


def features_of(
    files: Sequence[Path],
    extract: Features,
    size: Optional[tuple[int, int]] = None,
    on_done: Callable[[int], object] = lambda count: None,
) -> np.ndarray:
    """Features (n, d) of picture files. Raises ScoreError: a file cannot be read, or what is extracted is no table."""
    parts = []
    for batch in _batches(files, size):
        with torch.no_grad():
            part = extract(batch)
        part = part.detach().float().cpu().numpy() if isinstance(part, torch.Tensor) else np.asarray(part)
        if part.ndim != 2 or len(part) != len(batch):
            raise ScoreError(f"features of {len(batch)} pictures must have shape ({len(batch)}, d), got {part.shape}")
        parts.append(part)
        on_done(len(batch))
    return np.concatenate(parts)


def _batches(files: Sequence[Path], size: Optional[tuple[int, int]]) -> Iterator[torch.Tensor]:
    """Pictures of one shape each; where shapes differ a batch ends early."""
    held: list[torch.Tensor] = []
    for path in files:
        image = read_image(path, size)
        if held and (len(held) == BATCH or held[0].shape != image.shape):
            yield torch.stack(held)
            held = []
        held.append(image)
    if held:
        yield torch.stack(held)


def reference_of(
    folder: Path,
    extract: Features,
    size: tuple[int, int],
    kept: Optional[Path] = None,
    on_done: Callable[[int], object] = lambda count: None,
) -> Reference:
    """Of the real pictures in a folder, resized to ``size``.

    Args:
        kept: a folder where the moments of FID's Inception are kept, so that the same references are read once. Not
            for other extractors: their code may change under the same name.

    Raises:
        ScoreError: no pictures, or one cannot be read.
    """
    files = images_in(folder)
    path = None
    if kept is not None:
        listed = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        digest = hashlib.sha256(json.dumps([str(folder.resolve()), listed, size]).encode()).hexdigest()[:12]
        path = kept / f"references-{digest}.npz"
        found = _read_moments(path)
        if found is not None:
            return Reference(found, len(files))
    features = features_of(files, extract, size, on_done)
    reference = Reference.of(features)
    if path is not None:
        part = path.with_name(f"{path.stem}.{os.getpid()}.part.npz")
        try:
            np.savez(part, mean=reference.moments.mean, covariance=reference.moments.covariance)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return reference


def _read_moments(path: Path) -> Optional[Moments]:
    """None where there are none, or a file that cannot be read; it is then written anew."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Moments(stored["mean"], stored["covariance"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def clip_scorer(model: str, device: str) -> Callable[[Sequence[torch.Tensor], Sequence[str]], np.ndarray]:
    """A function from pictures, uint8 (3, h, w) each, and their captions to 100 max(cos, 0) of CLIP's embeddings.

    Captions are cut at the model's 77 tokens.

    Args:
        model: a name on Hugging Face, or a folder; fetched by the library when first used.

    Raises:
        ScoreError: the library is missing, or the model cannot be had.
    """
    module = needed("transformers", "pip install transformers")
    try:
        network = module.CLIPModel.from_pretrained(model).to(device).eval()
        processor = module.CLIPProcessor.from_pretrained(model)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ScoreError(f"the CLIP model {model!r} cannot be loaded: {error}") from None
    longest = network.config.text_config.max_position_embeddings

    def embedded(output: Any) -> torch.Tensor:
        # a tensor up to version 4 of the library, an output that holds it from 5 on
        found = output if isinstance(output, torch.Tensor) else output.pooler_output
        return torch.nn.functional.normalize(found.float(), dim=-1)

    @torch.no_grad()
    def score(pictures: Sequence[torch.Tensor], captions: Sequence[str]) -> np.ndarray:
        images = [picture.permute(1, 2, 0).numpy() for picture in pictures]
        seen = processor(images=images, return_tensors="pt").to(device)
        read = processor(
            text=list(captions), return_tensors="pt", padding=True, truncation=True, max_length=longest
        ).to(device)
        image = embedded(network.get_image_features(pixel_values=seen["pixel_values"]))
        text = embedded(network.get_text_features(input_ids=read["input_ids"], attention_mask=read["attention_mask"]))
        return 100 * (image * text).sum(-1).clamp(min=0).cpu().numpy()

    return score
