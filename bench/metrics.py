"""How good pictures are: Fréchet distance, shares, relative errors, all with their standard errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpsampler.evaluation.metrics import Estimate, Moments, frechet_distance

__all__ = ["Estimate", "Moments", "bootstrap", "frechet", "frechet_distance", "relative_rmse", "share"]

RESAMPLES = 40


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
