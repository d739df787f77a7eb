"""How sure a mean over queries is: bootstrap intervals."""

import numpy as np
import scipy.stats

NUM_DRAWS = 2000
CONFIDENCE = 0.95
MAX_NUMBERS = 1 << 24  # that are drawn at a time


def bootstrap_interval(values: np.ndarray, units: np.ndarray | None = None, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean, by the percentiles of the means of 2,000 samples drawn with replacement.

    Args:
        values: [n], one for each query. For an interval of what two models differ by give the differences, query by
            query: what is hard for both then does not widen it.
        units: [n], what is drawn: the class of each query, whose queries are hard or easy together. By default each
            query by itself.
        seed: of the draws.

    Returns:
        Its ends; of a single unit both are the mean.

    Raises:
        ValueError: for no values, or units that are not one for each.

    Example:
        >>> low, high = bootstrap_interval(np.array([0.0, 0.0, 1.0, 1.0] * 25))
        >>> 0.38 < low < 0.42 and 0.58 < high < 0.62
        True

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; of rankings: Sakai, "Evaluating
        Evaluation Metrics based on the Bootstrap", SIGIR 2006.
    """
    return _ends(values, units, seed, CONFIDENCE)


def lower_bound(values: np.ndarray, units: np.ndarray | None = None) -> float:
    """What a mean surely is: the one-sided bound of 95 % confidence. Arguments are those of `bootstrap_interval`."""
    return _ends(values, units, 0, 2 * CONFIDENCE - 1)[0]


def _ends(values: np.ndarray, units: np.ndarray | None, seed: int, confidence: float) -> tuple[float, float]:
    values = np.asarray(values, np.float64)
    units = np.arange(len(values)) if units is None else np.asarray(units)
    if values.ndim != 1 or not len(values) or units.shape != values.shape:
        raise ValueError(
            f"Received values {values.shape} and units {units.shape}; expected one number and one unit for each query."
        )
    _, places = np.unique(units, return_inverse=True)
    counts = np.bincount(places).astype(np.float64)
    sums = np.bincount(places, values)
    if len(counts) == 1:
        return float(values.mean()), float(values.mean())
    found = scipy.stats.bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        n_resamples=NUM_DRAWS,
        batch=max(1, MAX_NUMBERS // len(counts)),
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
