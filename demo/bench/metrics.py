"""How good pictures are: Fréchet distance, shares, relative errors, all with their standard errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "Moments", "bootstrap", "frechet", "frechet_distance", "relative_rmse", "share"]

RESAMPLES = 40


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
        """Of features (n, d)."""
        return cls(features.mean(0), np.cov(features, rowvar=False))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), of Gaussians (Dowson and Landau 1982; FID)."""
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    middle = np.linalg.eigvalsh(root @ b.covariance @ root)
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(middle.clip(min=0)).sum()
    return float(((a.mean - b.mean) ** 2).sum() + spread)


def bootstrap(figure: Callable[[np.ndarray], float], rows: np.ndarray, seed: int = 0) -> Estimate:
    """A figure of rows (n, ...), and its spread over samples of the rows drawn with replacement."""
    rng = np.random.default_rng(seed)
    drawn = [figure(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(RESAMPLES)]
    return Estimate(figure(rows), float(np.std(drawn, ddof=1)))


def frechet(features: np.ndarray, reference: Moments) -> Estimate:
    """Fréchet distance of features (n, d) to a reference, by bootstrap over the samples."""
    return bootstrap(lambda rows: frechet_distance(Moments.of(rows), reference), features)


def share(right: np.ndarray) -> Estimate:
    """Of a row of bool: the share that is true."""
    value = float(right.mean())
    return Estimate(value, (value * (1 - value) / len(right)) ** 0.5)


def relative_rmse(squared_errors: np.ndarray, squared_sizes: np.ndarray) -> Estimate:
    """RMSE over the reference's RMS, from each sample's sums of squares (n,)."""
    rows = np.stack([squared_errors, squared_sizes], 1)
    return bootstrap(lambda drawn: float((drawn[:, 0].sum() / drawn[:, 1].sum()) ** 0.5), rows)
