"""A11: who else was hurt? Retained classes, the ones nearest to what was forgotten, and layers.

Per class the base and the swapped model are compared on the same test units by McNemar's exact
test, p-values adjusted by Holm. The tenth of the retained test units whose base features are
nearest (cosine) to the mean of a forgotten class is scored apart. Linear CKA (Kornblith et al.
2019) says how far each layer moved on retained units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kswap.audits.findings import Cell, Curve, Finding, Interval, Table, missing, not_available
from kswap.audits.statistics import holm, paired_difference, share_interval
from kswap.audits.subjects import Answers, Case

TITLE = "Collateral"
QUESTION = "Who else was hurt?"
_NEAREST = 0.1
_LEVEL = 0.05


def audit(case: Case) -> Finding:
    """Compare base and swapped model on what was to be retained."""
    before, after = case.base.of("retain", "test"), case.swapped.of("retain", "test")
    if before is None or after is None:
        return missing(TITLE, QUESTION, "no test images of retained classes")
    table, hurt = _by_class(case, before, after)
    tables = [table]
    if near := _nearest(case, before):
        tables.append(near)
    curve = _similarity(case, before, after)
    reason = (
        f"worse than the base beyond chance: {', '.join(hurt)}"
        if hurt
        else f"no class is worse than the base beyond chance ({len(before)} test units)"
    )
    return Finding(
        TITLE,
        QUESTION,
        "fail" if hurt else "pass",
        reason,
        tuple(tables),
        (curve,),
        {"hurt": hurt, "cka": dict(zip(curve.x, curve.series["swapped"], strict=True))},
    )


def _by_class(case: Case, before: Answers, after: Answers) -> tuple[Table, list[str]]:
    table = Table(
        "Score of retained classes, test",
        ("class", *case.columns, "swapped − base", "p (McNemar, Holm)"),
    )
    classes = [int(c) for c in np.unique(before.class_ids)]
    hits = {
        name: answers.hits()
        for name, subject in case.subjects.items()
        if (answers := subject.of("retain", "test")) is not None
    }
    adjusted = holm(
        [
            mcnemar(hits["base"][before.class_ids == c], hits["swapped"][after.class_ids == c])
            for c in classes
        ]
    )
    hurt = []
    for class_id, p_value in zip(classes, adjusted, strict=True):
        own = before.class_ids == class_id
        change = paired_difference(hits["swapped"][own], hits["base"][own])
        cells: list[Cell | Interval] = [
            share_interval(hits[name][own])
            if name in hits and not (name == "reference" and case.reference_level == "R3")
            else not_available("no reference")
            for name in case.subjects
        ]
        shown: Cell | Interval = change if own.sum() > 1 else not_available("one image")
        table.rows.append([case.names[class_id], *cells, shown, p_value])
        if p_value < _LEVEL and change.mean < 0:
            hurt.append(case.names[class_id])
    return table, hurt


def mcnemar(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> float:
    """Return the two-sided exact p-value that as many units were lost as were won."""
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    if not lost + won:
        return 1.0
    return float(stats.binomtest(lost, lost + won).pvalue)


def _nearest(case: Case, before: Answers) -> Table | None:
    """Return scores of the retained units that look most like forgotten classes to the base."""
    forgotten = case.base.of("forget", "train") or case.base.of("forget", "test")
    if forgotten is None:
        return None
    layer = list(before.layers)[-1]
    means = np.stack(
        [
            forgotten.layers[layer][forgotten.class_ids == c].mean(0)
            for c in np.unique(forgotten.class_ids)
        ]
    )
    near = cosine(before.layers[layer], means).max(1)
    chosen = np.argsort(-near)[: max(1, round(_NEAREST * len(near)))]
    table = Table(
        "The tenth of retained test units nearest to forgotten classes",
        ("units", *case.columns),
        [[len(chosen)]],
    )
    for name, subject in case.subjects.items():
        answers = subject.of("retain", "test")
        if answers is None or (name == "reference" and case.reference_level == "R3"):
            table.rows[0].append(not_available("no reference"))
        else:
            table.rows[0].append(share_interval(answers.hits()[chosen]))
    return table


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (n, m) cosine similarities of rows."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12) for rows in (one, other)]
    return np.asarray(unit[0] @ unit[1].T)


def _similarity(case: Case, before: Answers, after: Answers) -> Curve:
    layers: Sequence[str] = [name for name in before.layers if name in after.layers]
    series = {"swapped": [cka(before.layers[x], after.layers[x]) for x in layers]}
    other = case.reference.of("retain", "test") if case.reference is not None else None
    if other is not None and case.reference_level != "R3":
        series["reference"] = [
            cka(before.layers[x], other.layers[x]) if x in other.layers else float("nan")
            for x in layers
        ]
    return Curve("Linear CKA with the base on retained test units", "layer", "CKA", layers, series)


def cka(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return linear centred kernel alignment of two sets of features of the same units."""
    centred = [np.asarray(f, np.float64) - f.mean(0, dtype=np.float64) for f in (one, other)]
    grams = [f @ f.T for f in centred]
    norms = [float(np.linalg.norm(g)) for g in grams]
    if min(norms) < 1e-12:
        return float("nan")
    return float((grams[0] * grams[1]).sum() / (norms[0] * norms[1]))
