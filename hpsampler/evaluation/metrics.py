"""Metrics of pictures: Fréchet distance (FID) and CLIP score, with their standard errors.

The networks come from other libraries: FID's Inception from ``torch-fidelity``, which has the original network with the
original resizing, and CLIP from ``transformers``, which every A1111 has. The alternatives were ``clean-fid``, which has
better resizing than the paper's figures were made with but no CLIP score, and ``torchmetrics``, which uses the same two
libraries but gives only the mean CLIP score of a batch and so no standard error. Both libraries are imported only when
they are import_or_explain; nothing is installed.

FID is computed here, from features. tr (A B)^1/2 is the sum of the square roots of the eigenvalues of A^1/2 B A^1/2.
That matrix is symmetric, so nothing becomes complex or fails to converge where A or B is singular, as with fewer
pictures than features.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from ..files import part_beside

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
"""Number of parts of the pictures, each of which is left out once for the standard error of FID."""

Features = Callable[[torch.Tensor], Any]
"""From a batch of pictures, uint8 (n, 3, h, w) on the CPU, to features (n, d)."""


class ScoreError(ValueError):
    """Something cannot be measured; the message is meant for the user."""


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
    """The moments that pictures are compared with; the square root of the covariance is computed once.

    Attributes:
        count: number of reference pictures.
    """

    def __init__(self, moments: Moments, count: int) -> None:
        self.moments, self.count = moments, count
        values, vectors = np.linalg.eigh(moments.covariance)
        self._root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    @classmethod
    def of(cls, features: np.ndarray) -> Reference:
        """From features (n, d). Raises ScoreError: they are too few or not finite."""
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

    The standard error is a jackknife estimate: each of ``GROUPS`` parts is left out once. A bootstrap would draw
    pictures twice, which shrinks the covariance and shifts FID by more than its error. The error does not include the
    reference's, which is the same for all configurations.

    Raises:
        ScoreError: the features are too few, not finite, or not as many as the reference's.
    """
    features = _checked(features)
    if features.shape[1] != len(reference.moments.mean):
        raise ScoreError(
            f"features must be as many as the reference's {len(reference.moments.mean)}, got {features.shape[1]}"
        )
    moments, count = Moments.of(features), len(features)
    value = reference.distance(moments)
    groups = min(GROUPS, count)
    if count - -(-count // groups) < 2:
        return Estimate(value, float("nan"))
    centred = features - moments.mean
    products = moments.covariance * (count - 1)
    distances = []
    for group in np.array_split(centred, groups):
        rest = count - len(group)
        mean = -group.sum(0) / rest
        covariance = (products - group.T @ group - rest * np.outer(mean, mean)) / (rest - 1)
        distances.append(reference.distance(Moments(moments.mean + mean, covariance)))
    return Estimate(value, float(np.std(distances) * (groups - 1) ** 0.5))


def _checked(features: np.ndarray) -> np.ndarray:
    if features.ndim != 2 or len(features) < 2:
        raise ScoreError(f"features must be a table (n, d) of at least 2 pictures, got shape {features.shape}")
    if not np.isfinite(features).all():
        raise ScoreError("features must be finite numbers")
    return features.astype(np.float64, copy=False)


def average(values: np.ndarray) -> Estimate:
    """The mean of one value per picture."""
    error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")
    return Estimate(float(values.mean()), error)


def import_or_explain(module: str, command: str) -> Any:
    """Import a library's module. Raises ScoreError: it is missing; the message has the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ScoreError(
            f"{module.partition('.')[0]} cannot be imported ({error}); install it with: {command}"
        ) from None


def inception(device: str) -> Features:
    """FID's Inception network, 2048 features; the library downloads its weights (92 MB) when first used.

    Raises:
        ScoreError: the library is missing, or its weights cannot be loaded.
    """
    module = import_or_explain("torch_fidelity.feature_extractor_inceptionv3", "pip install torch-fidelity")
    try:
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device).eval()
    except (OSError, RuntimeError) as error:
        raise ScoreError(f"the weights of FID's Inception network cannot be loaded: {error}") from None
    return lambda pictures: network(pictures.to(device))[0]


def features_named(name: Optional[str], device: str) -> Features:
    """The extractor ``module:function``, by default FID's Inception. Raises ScoreError: there is no such function."""
    if name is None:
        return inception(device)
    module, _, function = name.partition(":")
    if not module or not function:
        raise ScoreError(f"features must be module:function, got {name!r}")
    try:
        extract = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ScoreError(f"features: {module} cannot be imported: {error}") from None
    if not callable(extract):
        raise ScoreError(f"features: {module} has no function {function!r}")
    return extract


def read_image(path: Path, size: Optional[tuple[int, int]] = None) -> torch.Tensor:
    """A picture as uint8 (3, h, w), resized (bicubic, without cropping) to ``size`` (width, height) if given.

    Raises:
        ScoreError: it cannot be read.
    """
    pil = import_or_explain("PIL.Image", "pip install Pillow")
    try:
        with pil.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise ScoreError(f"{path} cannot be read as a picture: {error}") from None
    if size is not None and image.size != size:
        image = image.resize(size, pil.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def images_in(folder: Path) -> list[Path]:
    """All pictures in a folder and its subfolders. Raises ScoreError: there is no folder, or fewer than 2 pictures."""
    if not folder.is_dir():
        raise ScoreError(f"there is no folder {folder}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    if len(paths) < 2:
        raise ScoreError(f"{folder} must hold at least 2 pictures ({', '.join(IMAGES)}), found {len(paths)}")
    return paths


def features_of(
    files: Sequence[Path],
    extract: Features,
    size: Optional[tuple[int, int]] = None,
    on_done: Callable[[int], object] = lambda count: None,
) -> np.ndarray:
    """Features (n, d) of picture files. Raises ScoreError: a file cannot be read, or the features' shape is wrong."""
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
    """Batches of pictures of equal shape; a batch ends early where the shape changes."""
    batch: list[torch.Tensor] = []
    for path in files:
        image = read_image(path, size)
        if batch and (len(batch) == BATCH or batch[0].shape != image.shape):
            yield torch.stack(batch)
            batch = []
        batch.append(image)
    if batch:
        yield torch.stack(batch)


def reference_of(
    folder: Path,
    extract: Features,
    size: tuple[int, int],
    cache: Optional[Path] = None,
    on_done: Callable[[int], object] = lambda count: None,
) -> Reference:
    """The reference from the real pictures in a folder, resized to ``size``.

    Args:
        cache: folder in which the moments are stored, so that the same pictures are read only once. For FID's Inception
            only, as the code of other extractors may change under the same name.

    Raises:
        ScoreError: there are no pictures, or one cannot be read.
    """
    files = images_in(folder)
    path = None
    if cache is not None:
        listed = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        digest = hashlib.sha256(json.dumps([str(folder.resolve()), listed, size]).encode()).hexdigest()[:12]
        path = cache / f"references-{digest}.npz"
        moments = _read_moments(path)
        if moments is not None:
            return Reference(moments, len(files))
    features = features_of(files, extract, size, on_done)
    reference = Reference.of(features)
    if path is not None:
        with part_beside(path) as part, part.open("wb") as written:
            np.savez(written, mean=reference.moments.mean, covariance=reference.moments.covariance)
    return reference


def _read_moments(path: Path) -> Optional[Moments]:
    """The stored moments; None if there is no file or it cannot be read, so that it is written again."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Moments(stored["mean"], stored["covariance"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def clip_scorer(model: str, device: str) -> Callable[[Sequence[torch.Tensor], Sequence[str]], np.ndarray]:
    """A function from pictures, uint8 (3, h, w) each, and their captions to 100 max(cos, 0) of CLIP's embeddings.

    Captions are cut at the model's 77 tokens.

    Args:
        model: a name on Hugging Face, which the library downloads when first used, or a folder.

    Raises:
        ScoreError: the library is missing, or the model cannot be loaded.
    """
    module = import_or_explain("transformers", "pip install transformers")
    try:
        network = module.CLIPModel.from_pretrained(model).to(device).eval()
        processor = module.CLIPProcessor.from_pretrained(model)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ScoreError(f"the CLIP model {model!r} cannot be loaded: {error}") from None
    max_tokens = network.config.text_config.max_position_embeddings

    def embedding_of(output: Any) -> torch.Tensor:
        # version 4 of the library returns a tensor, version 5 an object with the tensor
        embedding = output if isinstance(output, torch.Tensor) else output.pooler_output
        return torch.nn.functional.normalize(embedding.float(), dim=-1)

    @torch.no_grad()
    def score(pictures: Sequence[torch.Tensor], captions: Sequence[str]) -> np.ndarray:
        images = [picture.permute(1, 2, 0).numpy() for picture in pictures]
        image_inputs = processor(images=images, return_tensors="pt").to(device)
        text_inputs = processor(
            text=list(captions), return_tensors="pt", padding=True, truncation=True, max_length=max_tokens
        ).to(device)
        image = embedding_of(network.get_image_features(pixel_values=image_inputs["pixel_values"]))
        text = embedding_of(
            network.get_text_features(input_ids=text_inputs["input_ids"], attention_mask=text_inputs["attention_mask"])
        )
        return 100 * (image * text).sum(-1).clamp(min=0).cpu().numpy()

    return score
