"""A4: how far is the output distribution from the reference's? The NeurIPS-2023 metric.

After the unlearning challenge's evaluation (Triantafillou et al. 2024): N models that were swapped
and N references that never saw the forget data, each with its own seed; per forget-train example
the logit-scaled confidences of both are told apart by the best single and the best double
threshold; ε = max over them of max(log((1 − δ − FPR)/FNR), log((1 − δ − FNR)/FPR)). Examples are
put into bins of ε, a bin k counts 2^(−k); the mean is the score F. N models of a side show no ε
above log(N·(1 − δ)), which is printed beside it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kswap.audits.findings import Cell, Finding, Interval, Table, missing
from kswap.audits.statistics import t_interval
from kswap.audits.subjects import NO_FORGET, Case

TITLE = "Forgetting quality"
QUESTION = "How far is its output distribution from the reference's?"
DELTA = 1e-5
LEAST_MODELS = 5
_BIN = 0.5
_MOST_BINS = 13
_MARGIN = 1.0
"""ε by which the median may exceed what references show among themselves."""


def audit(
    case: Case,
    swapped: NDArray[np.float64] | None,
    references: NDArray[np.float64] | None,
) -> Finding:
    """Tell N swapped models from N references by their confidences on forget-train examples.

    Args:
        case: for scores of use.
        swapped: (models, examples) logit-scaled confidences; None: there is one model only.
        references: the same of references.
    """
    if not case.forgets:
        return missing(TITLE, QUESTION, NO_FORGET)
    counts = [1 if group is None else len(group) for group in (swapped, references)]
    if swapped is None or references is None or min(counts) < LEAST_MODELS:
        return missing(
            TITLE,
            QUESTION,
            f"N = {counts[0]} swapped and {counts[1]} reference models, {LEAST_MODELS} of each are "
            "needed (runs of the same config with other seeds beside this one, and references "
            f"RUN-reference-2 …); so few show no ε above {largest_epsilon(min(counts)):.2f}",
        )
    epsilons = epsilon_per_example(swapped, references)
    half = len(references) // 2
    null = epsilon_per_example(references[:half], references[half : 2 * half])
    most = largest_epsilon(max(counts))
    score = forgetting_score(epsilons)
    utility = _utility(case)
    histogram = np.histogram(epsilons, bins=np.arange(0, most + _BIN, _BIN))
    table = Table(
        f"ε per forget-train example, δ = {DELTA:g}",
        (
            "N swapped",
            "N references",
            "largest ε that N shows",
            "median ε",
            "among references",
            "F",
            "F × utility",
        ),
        [
            [
                *counts,
                most,
                float(np.median(epsilons)),
                float(np.median(null)),
                score,
                score * utility,
            ]
        ],
    )
    bins = Table(
        "Histogram of ε",
        ("from", "examples"),
        [
            [float(edge), int(count)]
            for edge, count in zip(histogram[1], histogram[0], strict=False)
        ],
    )
    spread = _interval(epsilons)
    failed = float(np.median(epsilons)) > float(np.median(null)) + _MARGIN
    reason = (
        f"median ε {np.median(epsilons):.2f} with N = {counts[0]} and {counts[1]} (at most "
        f"{most:.2f} can show), {np.median(null):.2f} among references"
    )
    values: dict[str, Any] = {"epsilon": spread, "F": score, "N": counts, "largest": most}
    return Finding(TITLE, QUESTION, case.status(failed=failed), reason, (table, bins), (), values)


def _interval(epsilons: NDArray[np.float64]) -> Cell | Interval:
    return t_interval(epsilons)


def largest_epsilon(num_models: int) -> float:
    """Return the largest ε that so many models on either side can show."""
    return max(0.0, math.log(num_models * (1 - DELTA)))


def forgetting_score(epsilons: NDArray[np.float64]) -> float:
    """Return the mean over examples of 2^(−bin): 1 where nothing can be told."""
    bins = np.minimum(np.floor(np.maximum(epsilons, 0) / _BIN), _MOST_BINS - 1)
    return float(np.mean(2.0**-bins))


def epsilon_per_example(
    swapped: NDArray[np.float64], references: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return ε of each example: the best of single and double thresholds.

    Args:
        swapped: (models, examples).
        references: (models, examples).
    """
    return np.array([_epsilon(swapped[:, i], references[:, i]) for i in range(swapped.shape[1])])


def _epsilon(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    cuts = np.unique(np.concatenate([ours, theirs, [-np.inf, np.inf]]))
    below_ours = (ours[None] < cuts[:, None]).mean(1)
    below_theirs = (theirs[None] < cuts[:, None]).mean(1)
    # answers "swapped" between cut i and cut j; single thresholds are those with an infinite end
    fpr = below_theirs[None] - below_theirs[:, None]
    fnr = 1 - (below_ours[None] - below_ours[:, None])
    upper = np.triu(np.ones_like(fpr, dtype=bool), 1)
    best = 0.0
    for wrong, missed in ((fpr[upper], fnr[upper]), (1 - fpr[upper], 1 - fnr[upper])):
        best = max(best, _most(wrong, missed, len(ours)), _most(missed, wrong, len(theirs)))
    return best


def _most(one: NDArray[np.float64], other: NDArray[np.float64], count: int) -> float:
    """Return the largest log((1 − δ − one) / other); a rate of 0 counts as one model in `count`."""
    above = np.maximum(1 - DELTA - one, 1e-12)
    return float(np.log(above / np.maximum(other, 1 / count)).max(initial=0.0))


def _utility(case: Case) -> float:
    """Return the product of the ratios of retain and learn scores to the reference's."""
    ratio = 1.0
    for role in ("retain", "learn"):
        pair = [
            subject.of(role, "test") if subject is not None else None
            for subject in (case.swapped, case.reference)
        ]
        if pair[0] is not None and pair[1] is not None and pair[1].scores.total:
            ratio *= min(1.0, pair[0].scores.total / pair[1].scores.total)
    return float(ratio)
