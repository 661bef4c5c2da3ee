"""Intervals and tests that the audits share. Pure functions of numbers.

Shares of images have Wilson's interval (1927); repetitions (seeds, draws) a t-interval; two models
on the same images are compared in pairs; areas under ROC curves have DeLong's variance (1988).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kswap.audits.findings import Interval

Numbers = NDArray[np.float64]

LEAST_UNITS = 2
"""One leaves open how far apart two models are."""


def t_interval(values: Sequence[float] | NDArray[Any]) -> Interval:
    """Return mean and 95 % t-interval of repetitions; without an extent where there is one only."""
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    half = 0.0
    if len(array) > 1:
        half = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return Interval(mean, mean - half, mean + half, len(array))


def jackknife(whole: float, without: Sequence[float], count: int) -> Interval:
    """Return a number over a set of images with its 95 % interval, by the delete-a-group jackknife.

    For numbers that are no mean over images, such as mean IoU and average precision. The groups are
    of equal size, up to one image; Shao and Wu (1989).

    Args:
        whole: over all images.
        without: over all but those of each group, of two groups or more.
        count: images.
    """
    groups = len(without)
    spread = math.sqrt((groups - 1) * float(np.var(np.asarray(without, np.float64))))
    half = float(stats.t.ppf(0.975, groups - 1)) * spread
    return Interval(whole, max(0.0, whole - half), min(1.0, whole + half), count)


def share_interval(hits: NDArray[Any] | Sequence[bool]) -> Interval:
    """Return a share of images with Wilson's 95 % interval."""
    array = np.asarray(hits, np.float64)
    count = len(array)
    if not count:
        raise ValueError("a share of no images has no value")
    share, z = float(array.mean()), 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), count)


def paired_difference(one: NDArray[Any], other: NDArray[Any], *, num_tests: int = 1) -> Interval:
    """Return the mean of one − other over the same images, with a 95 % interval.

    The interval is widened by Bonferroni's rule for `num_tests` comparisons that are read together.
    """
    differences = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    mean, count = float(differences.mean()), len(differences)
    spread = differences.std(ddof=1) / math.sqrt(count) if count >= LEAST_UNITS else math.inf
    half = float(stats.norm.ppf(1 - 0.025 / max(num_tests, 1)) * spread)
    return Interval(mean, mean - half, mean + half, count)


def difference(one: NDArray[Any], other: NDArray[Any], *, num_tests: int = 1) -> Interval:
    """Return mean of one − mean of other, in pairs where both are of the same images.

    See `paired_difference`; of different images: Welch's interval.
    """
    if len(one) == len(other):
        return paired_difference(one, other, num_tests=num_tests)
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    mean = float(one.mean() - other.mean())
    spread = math.sqrt(
        sum(x.var(ddof=1) / len(x) if len(x) > 1 else math.inf for x in (one, other))
    )
    half = float(stats.norm.ppf(1 - 0.025 / max(num_tests, 1)) * spread)
    return Interval(mean, mean - half, mean + half, min(len(one), len(other)))


def auc(positive: NDArray[Any], negative: NDArray[Any]) -> Interval:
    """Return P(positive > negative), ties counted half, with DeLong's 95 % interval."""
    positive, negative = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    m, n = len(positive), len(negative)
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    area = float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))
    of_positive = (ranks[:m] - stats.rankdata(positive)) / n
    of_negative = 1 - (ranks[m:] - stats.rankdata(negative)) / m
    variance = sum(
        values.var(ddof=1) / len(values) for values in (of_positive, of_negative) if len(values) > 1
    )
    half = 1.959964 * math.sqrt(variance)
    return Interval(area, max(0.0, area - half), min(1.0, area + half), m + n)


def tpr_at_fpr(positive: NDArray[Any], negative: NDArray[Any], fpr: float) -> float | None:
    """Return the share of positives above the threshold that `fpr` of the negatives pass.

    None where there are too few negatives to show such a rate (fewer than 1 / fpr).
    """
    if len(negative) * fpr < 1:
        return None
    ordered = np.sort(np.asarray(negative, np.float64))[::-1]
    threshold = ordered[int(len(ordered) * fpr)]
    return float((np.asarray(positive) > threshold).mean())


def harmonic_mean(*values: float) -> float:
    """Return the harmonic mean; 0 where one of the values is not positive."""
    if any(value <= 0 for value in values):
        return 0.0
    return len(values) / sum(1 / value for value in values)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given."""
    order = np.argsort(p_values)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def softmax(logits: NDArray[Any]) -> Numbers:
    """Return probabilities along the last axis; rows of −inf have probability 0."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(-1, keepdims=True)
    weights = np.exp(shifted)
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def entropy(shares: NDArray[Any]) -> Numbers:
    """Return the entropy of each row, in nats."""
    return np.asarray(-(shares * np.log(np.maximum(shares, 1e-300))).sum(-1))
