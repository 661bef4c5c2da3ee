"""A4: how far is the output distribution from the reference's? The NeurIPS-2023 metric.

After the unlearning challenge's evaluation (Triantafillou et al. 2024): N models that were swapped
and N references that never saw the forget data, each with its own seed; per forget-train example
the logit-scaled confidences of both are told apart by the best single and the best double
threshold; ε = max over them of max(log((1 − δ − FPR)/FNR), log((1 − δ − FNR)/FPR)). Examples are
put into bins of ε, a bin k counts 2^(−k); the mean is the score F. N models of a side show no ε
above log(N·(1 − δ)), which is printed beside it.

So few models can be told apart by chance, as the thresholds are the best ones. The control is the
same number with the models' sides drawn anew (all ways where they are few): what it would be if
swapped models and references were of one kind. The audit fails where no more than 5 % of the draws
reach the mean ε.

Swaps of one base share what it makes of each image. Five of them are told from five references even
where the base never saw the class (docs/audits.md), so that fewer bases than models can pass, but
not fail.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
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
"""Of either side: fewer draws of sides than 252 show little."""
LEAST_EXAMPLES = 10
_BIN = 0.5
_MOST_BINS = 13
_MOST_DRAWS = 300
_LEVEL = 0.05
"""Share of draws that may reach what was found."""


@dataclass(frozen=True)
class Models:
    """What several swapped and reference models make of the same forget-train examples."""

    swapped: NDArray[np.float64]
    """(models, examples) logit-scaled confidences."""
    references: NDArray[np.float64]
    """The same of references."""
    answer: str = "the class"
    """Whose confidence it is."""
    num_bases: int = LEAST_MODELS
    """Different models that the swapped ones were made of."""


def audit(case: Case, models: Models | None) -> Finding:
    """Tell N swapped models from N references by their confidences on forget-train examples.

    Args:
        case: for scores of use.
        models: None: there is one swapped model only.
    """
    if not case.forgets:
        return missing(TITLE, QUESTION, NO_FORGET)
    if why := _too_few(case, models):
        return missing(TITLE, QUESTION, why)
    assert models is not None
    swapped, references = models.swapped, models.references
    counts = [len(swapped), len(references)]
    epsilons = epsilon_per_example(swapped, references)
    null, draws = relabelled(swapped, references, seed=case.seed)
    reached = float((draws >= epsilons.mean() - 1e-9).mean())
    found, most = t_interval(epsilons), largest_epsilon(max(counts))
    score = forgetting_score(epsilons)
    columns: dict[str, Cell | Interval] = {
        "N swapped": counts[0],
        "N references": counts[1],
        "bases": models.num_bases,
        "examples": len(epsilons),
        "largest ε that N shows": most,
        "mean ε": found,
        "control: sides drawn anew": null,
        "share of draws that reach it": reached,
        "median ε": float(np.median(epsilons)),
        "F": score,
        "F × utility": score * _utility(case),
    }
    table = Table(
        f"ε per forget-train example, confidence of {models.answer}, δ = {DELTA:g}",
        tuple(columns),
        [list(columns.values())],
    )
    reason = (
        f"mean ε {found.mean:.2f} with N = {counts[0]} and {counts[1]} (at most {most:.2f} can "
        f"show); {null.mean:.2f} ({null.low:.2f} to {null.high:.2f}) with sides drawn anew, "
        f"{reached:.1%} of {null.n} draws reach it"
    )
    if not case.decides:
        reason += f"; {case.without_decision()}"
    values: dict[str, Any] = {
        "epsilon": found,
        "control": null,
        "p": reached,
        "F": score,
        "N": counts,
        "largest": most,
        "bases": models.num_bases,
    }
    status = case.status(failed=reached <= _LEVEL)
    if status == "fail" and models.num_bases < LEAST_MODELS:
        status = "info"
        reason += (
            f"; the swaps are of {models.num_bases} base{'s' * (models.num_bases > 1)}, and what "
            "they share would show as well if it never saw the classes, so this decides nothing: "
            f"audit runs of {LEAST_MODELS} bases that were trained with other seeds"
        )
    return Finding(TITLE, QUESTION, status, reason, (table, _bins(epsilons, most)), (), values)


def _too_few(case: Case, models: Models | None) -> str | None:
    """Return what is missing; None where there are models and examples enough."""
    counts = [1, int(case.reference is not None and case.reference_level != "R3")]
    if models is not None:
        counts = [len(models.swapped), len(models.references)]
    if models is None or min(counts) < LEAST_MODELS:
        return (
            f"N = {counts[0]} swapped and {counts[1]} reference models, {LEAST_MODELS} of each are "
            "needed: give `kswap audit` the runs of one config with other seeds, and as many "
            f"references; so few show no ε above {largest_epsilon(max(1, min(counts))):.2f}"
        )
    if (count := models.swapped.shape[1]) < LEAST_EXAMPLES:
        return (
            f"{count} forget-train images are in the train split of all runs, {LEAST_EXAMPLES} are "
            "needed (validation and fractions are drawn by the seed)"
        )
    return None


def _bins(epsilons: NDArray[np.float64], most: float) -> Table:
    counts, edges = np.histogram(epsilons, bins=np.arange(0, most + 2 * _BIN, _BIN))
    rows = [[float(e), int(n)] for e, n in zip(edges, counts, strict=False)]
    return Table("Histogram of ε", ("from", "examples"), [list(row) for row in rows])


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
    pooled = np.concatenate([swapped, references])
    return _epsilons(*_sorted(pooled), np.arange(len(pooled)) < len(swapped))


def relabelled(
    swapped: NDArray[np.float64], references: NDArray[np.float64], *, seed: int
) -> tuple[Interval, NDArray[np.float64]]:
    """Return the mean ε with sides drawn anew: mean and middle 95 % of the draws, and all draws.

    Every way to split the models is taken where there are 300 at most; else 299 random ones and the
    split as it is.

    Args:
        swapped: (models, examples).
        references: (models, examples).
        seed: of the draws.
    """
    pooled = np.concatenate([swapped, references])
    count, own = len(pooled), len(swapped)
    order, cuts = _sorted(pooled)
    if math.comb(count, own) <= _MOST_DRAWS:
        chosen = [np.array(rows) for rows in itertools.combinations(range(count), own)]
    else:
        rng = np.random.default_rng(seed)
        chosen = [rng.permutation(count)[:own] for _ in range(_MOST_DRAWS - 1)]
        chosen.append(np.arange(own))
    draws = np.array(
        [_epsilons(order, cuts, np.isin(np.arange(count), rows)).mean() for rows in chosen]
    )
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(draws.mean()), float(low), float(high), len(draws)), draws


def _sorted(
    pooled: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the models in order of each example's values, and where a threshold may lie.

    Shapes: (examples, models) and (examples, models + 1): none lies between equal values.
    """
    order = np.argsort(pooled, axis=0, kind="stable").T
    values = np.take_along_axis(pooled.T, order, 1)
    cuts = np.ones((len(values), len(pooled) + 1), bool)
    cuts[:, 1:-1] = values[:, 1:] > values[:, :-1]
    return order, cuts


def _epsilons(
    order: NDArray[np.int64], cuts: NDArray[np.bool_], ours: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return ε of each example where the models `ours` are told from the others.

    An answer "ours" is given between two thresholds, or outside of them; single thresholds are
    those with an end of the line.
    """
    own = ours[order]
    start = np.zeros((len(own), 1))
    below_ours = np.concatenate([start, own.cumsum(1) / ours.sum()], 1)
    below_theirs = np.concatenate([start, (~own).cumsum(1) / (~ours).sum()], 1)
    counts = int(ours.sum()), int((~ours).sum())
    best = np.zeros(len(own))
    for first in range(own.shape[1]):
        rest = slice(first + 1, None)
        fpr = below_theirs[:, rest] - below_theirs[:, first, None]
        fnr = 1 - (below_ours[:, rest] - below_ours[:, first, None])
        allowed = cuts[:, rest] & cuts[:, first, None]
        for wrong, missed in ((fpr, fnr), (1 - fpr, 1 - fnr)):
            found = np.maximum(_ratio(wrong, missed, counts[0]), _ratio(missed, wrong, counts[1]))
            best = np.maximum(best, np.where(allowed, found, 0.0).max(1))
    return np.asarray(best)


def _ratio(one: NDArray[np.float64], other: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return log((1 − δ − one) / other); a rate of 0 counts as one model in `count`."""
    above = np.maximum(1 - DELTA - one, 1e-12)
    return np.asarray(np.log(above / np.maximum(other, 1 / count)))


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
