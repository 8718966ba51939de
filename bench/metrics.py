"""Metrics of the bench: Fréchet distance, shares and relative errors, with their standard errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpsampler.evaluation.metrics import Estimate, Moments, frechet_distance

__all__ = ["Estimate", "Moments", "bootstrap", "frechet", "frechet_distance", "relative_rmse", "share"]

RESAMPLES = 40


def bootstrap(figure: Callable[[np.ndarray], float], rows: np.ndarray, seed: int = 0) -> Estimate:
    """A figure of rows (n, ...), with its standard error from samples of the rows drawn with replacement."""
    rng = np.random.default_rng(seed)
    resampled = [figure(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(RESAMPLES)]
    return Estimate(figure(rows), float(np.std(resampled, ddof=1)))


def frechet(features: np.ndarray, reference: Moments) -> Estimate:
    """Fréchet distance of features (n, d) to a reference, with a bootstrap error over the samples."""
    return bootstrap(lambda rows: frechet_distance(Moments.of(rows), reference), features)


def share(correct: np.ndarray) -> Estimate:
    """The share of true values in an array of bool."""
    value = float(correct.mean())
    return Estimate(value, (value * (1 - value) / len(correct)) ** 0.5)


def relative_rmse(squared_errors: np.ndarray, squared_sizes: np.ndarray) -> Estimate:
    """RMSE relative to the reference's RMS, from the sums of squares of each sample, (n,)."""
    rows = np.stack([squared_errors, squared_sizes], 1)
    return bootstrap(lambda sample: float((sample[:, 0].sum() / sample[:, 1].sum()) ** 0.5), rows)
