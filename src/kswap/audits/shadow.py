"""A3: would a strong attacker know of a single example? U-LiRA over a frozen backbone.

After LiRA (Carlini et al., S&P 2022) and U-LiRA (Hayes et al. 2024). K shadow pairs share one
backbone, the reference's (the base's where there is none), which never saw the pool: a head trained
on retained images and a random half of the pool (forget-train and forget-test), and the same head
after it has forgotten that half (masked distillation). Per example the logit-scaled confidences
log p − log(1 − p) of shadows that had it and of those that had not are Gaussians. The attack on a
model that forgot is the likelihood ratio of its own confidence; the attack on one that did not is
the distance from the shadows that never had it (LiRA's offline attack). The model's level is
matched to the shadows' over the pool first, as heads train otherwise than models. The control is
how well an attack tells held out shadows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kswap.audits.findings import Cell, Finding, Interval, Table, missing, not_available
from kswap.audits.membership import signals
from kswap.audits.probe import lacking, moments
from kswap.audits.statistics import auc, t_interval, tpr_at_fpr
from kswap.audits.subjects import NO_FORGET, Case, Subject

TITLE = "Membership, per example"
QUESTION = "Would a strong attacker know?"
PAIRS = 64
_STEPS = 80
_RATE = 2e-2
_DECAY = 1e-3
_HELD = 0.25
"""Share of the shadows that are targets of the control."""
_WIDER = 2.2414 / 1.96
"""Bonferroni's factor on 95 % intervals, for two attacks that are read together."""
_Score = Callable[
    [NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]], NDArray[np.float64]
]
_ATTACKS = ("trained on it", "trained on it, then forgot it")


@dataclass(frozen=True)
class Shadows:
    """Confidences of shadow heads on a pool."""

    trained: NDArray[np.float64]
    """(shadows, pool) logit-scaled confidences of heads that were trained on their half."""
    forgot: NDArray[np.float64]
    """The same after forgetting the half."""
    inside: NDArray[np.bool_]
    """(shadows, pool): the halves."""


def audit(case: Case, *, pairs: int = PAIRS) -> Finding:
    """Attack every model's forgotten examples."""
    if not case.forgets:
        return missing(TITLE, QUESTION, NO_FORGET)
    if case.task != "classification":
        return missing(TITLE, QUESTION, "for classification only")
    if why := lacking(case.swapped):
        return missing(TITLE, QUESTION, why)
    table = Table(
        f"U-LiRA, {pairs} shadow pairs on the frozen backbone of the "
        f"{case.column(_backbone(case).name)}; forget train against test",
        ("model", "shadows", "AUC", "TPR at 1 % FPR", "TPR at 0.1 % FPR", "control: held out"),
    )
    areas: dict[tuple[str, str], Interval] = {}
    shadows = shadows_of(_backbone(case), pairs, seed=case.seed)
    for name, subject in case.subjects.items():
        if lacking(subject) or (name == "reference" and case.reference_level == "R3"):
            why = lacking(subject) or "no reference"
            table.rows.append([case.column(name), *[not_available(why)] * 5])
            continue
        for attack, (members, others, control) in attacks(subject, shadows).items():
            areas[name, attack] = auc(members, others)
            rates: list[Cell] = []
            for fpr in (0.01, 0.001):
                rate = tpr_at_fpr(members, others, fpr)
                why = f"{len(others)} others cannot show it"
                rates.append(not_available(why) if rate is None else rate)
            table.rows.append([case.column(name), attack, areas[name, attack], *rates, control])
    over = [a for a in _ATTACKS if _apart(areas["swapped", a], areas.get(("reference", a)))]
    reason = "; ".join(
        f"{a}: AUC {areas['swapped', a].mean:.3f}"
        + (f", reference {areas['reference', a].mean:.3f}" if ("reference", a) in areas else "")
        for a in _ATTACKS
    )
    if not case.decides:
        reason += f"; {case.without_decision()}"
    values: dict[str, Any] = {f"{name}, {attack}": area for (name, attack), area in areas.items()}
    status, reason = case.decision(reason, failed=bool(over))
    return Finding(
        TITLE,
        QUESTION,
        status,
        reason,
        (table,),
        (),
        {**values, "pairs": pairs},
    )


def _apart(swapped: Interval, reference: Interval | None) -> bool:
    """Whether members are told, on either side, and otherwise than in the reference."""
    if reference is None:
        return False
    own, other = (_WIDER * (area.high - area.low) / 2 for area in (swapped, reference))
    telling = abs(swapped.mean - 0.5) > own
    return telling and abs(swapped.mean - reference.mean) > float(np.hypot(own, other))


def _backbone(case: Case) -> Subject:
    """Return the model whose backbone the shadows share."""
    if case.reference is None or case.reference_level == "R3":
        return case.base
    return case.reference


def shadows_of(backbone: Subject, pairs: int, *, seed: int) -> Shadows:
    """Train the shadows on features of a backbone."""
    layer, pool, labels = _pool(backbone)
    kept = backbone.of("retain", "train")
    assert kept is not None
    return train_shadows(kept.layers[layer], kept.class_ids, pool, labels, pairs=pairs, seed=seed)


def attacks(
    subject: Subject, shadows: Shadows
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64], Interval]]:
    """Return for each attack the scores of forget-train and forget-test, and its own quality."""
    parts = [_confidence(subject.of("forget", split)) for split in ("train", "test")]
    own, count = np.concatenate(parts), len(parts[0])
    found = {}
    for name, confidences, score in (
        (_ATTACKS[0], shadows.trained, surprise),
        (_ATTACKS[1], shadows.forgot, likelihood_ratio),
    ):
        scores = score(confidences, shadows.inside, own)
        control = _held_out(confidences, shadows.inside, score)
        found[name] = (scores[:count], scores[count:], control)
    return found


def _pool(subject: Subject) -> tuple[str, NDArray[np.float32], NDArray[np.int64]]:
    train, test = subject.of("forget", "train"), subject.of("forget", "test")
    assert train is not None
    assert test is not None
    layer = list(test.layers)[-1]
    features = np.concatenate([train.layers[layer], test.layers[layer]])
    return layer, features, np.concatenate([train.class_ids, test.class_ids])


def _confidence(answers: Any) -> NDArray[np.float64]:
    """Return log p − log(1 − p) of the class; of the answered one where the model lacks its row."""
    loss = signals(answers)[:, 2]
    return np.asarray(-loss - np.log(-np.expm1(-np.maximum(loss, 1e-12))))


def train_shadows(
    x_kept: NDArray[np.float32],
    y_kept: NDArray[np.int64],
    pool: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    pairs: int,
    seed: int,
) -> Shadows:
    """Train all shadow heads at once; each sees the kept units and its half of the pool."""
    x = np.concatenate([x_kept, pool])
    mean, spread = moments(x)
    inputs = torch.from_numpy((x - mean) / spread).float()
    classes, targets = np.unique(np.concatenate([y_kept, labels]), return_inverse=True)
    y = torch.from_numpy(targets)
    gone = torch.from_numpy(np.isin(classes, np.unique(labels)))
    rng = np.random.default_rng(seed)
    inside = np.stack([rng.permutation(len(pool)) < len(pool) // 2 for _ in range(pairs)])
    used = torch.ones(pairs, len(x))
    used[:, len(x_kept) :] = torch.from_numpy(inside).float()
    weight = torch.zeros(pairs, len(classes), inputs.shape[1] + 1, requires_grad=True)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    truth = functional.one_hot(y, len(classes)).float().expand(pairs, -1, -1)
    _descend(weight, inputs, truth, used)
    trained = _scaled_confidence(weight, inputs[len(x_kept) :], y[len(x_kept) :])
    with torch.no_grad():
        logits = torch.einsum("nd,kcd->knc", inputs, weight)
        masked = logits.masked_fill(gone, -torch.inf).softmax(-1)
        wanted = truth.clone()
        wanted[:, len(x_kept) :] = masked[:, len(x_kept) :]
    _descend(weight, inputs, wanted, used)
    forgot = _scaled_confidence(weight, inputs[len(x_kept) :], y[len(x_kept) :])
    return Shadows(trained, forgot, inside)


def _descend(weight: Tensor, inputs: Tensor, wanted: Tensor, used: Tensor) -> None:
    """Minimise the mean cross-entropy to `wanted` over the units that each head uses, in place."""
    optimiser = torch.optim.Adam([weight], lr=_RATE)
    for _ in range(_STEPS):
        logits = torch.einsum("nd,kcd->knc", inputs, weight)
        loss = -(wanted * logits.log_softmax(-1)).sum(-1)
        total = ((loss * used).sum(1) / used.sum(1)).sum() + _DECAY * weight.square().sum()
        optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


@torch.no_grad()
def _scaled_confidence(weight: Tensor, inputs: Tensor, y: Tensor) -> NDArray[np.float64]:
    """Return (heads, units): log p − log(1 − p) = z_y − log Σ of the others' exp."""
    logits = torch.einsum("nd,kcd->knc", inputs, weight).double()
    own = logits.gather(-1, y.expand(len(logits), -1)[..., None])
    others = logits.scatter(-1, y.expand(len(logits), -1)[..., None], -torch.inf)
    return np.asarray((own[..., 0] - others.logsumexp(-1)).numpy())


def likelihood_ratio(
    confidences: NDArray[np.float64], inside: NDArray[np.bool_], own: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return log N(own; in) − log N(own; out) of each example, one variance for all of a side.

    Args:
        confidences: (shadows, pool).
        inside: (shadows, pool).
        own: (pool,), of the audited model; brought to the shadows' mean and spread first.
    """
    matched = _matched(confidences, own)
    total = np.zeros(len(own))
    for side, sign in ((inside, 1.0), (~inside, -1.0)):
        count = side.sum(0).clip(1)
        mean = (confidences * side).sum(0) / count
        variance = float(((confidences - mean) ** 2)[side].mean()) + 1e-9
        total += sign * (-((matched - mean) ** 2) / (2 * variance) - 0.5 * np.log(variance))
    return total


def surprise(
    confidences: NDArray[np.float64], inside: NDArray[np.bool_], own: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return by how much each example is more confident than in shadows without it.

    LiRA's offline attack: the score against the Gaussian of shadows that never had the example.
    """
    outside = ~inside
    mean = (confidences * outside).sum(0) / outside.sum(0).clip(1)
    spread = float(np.sqrt(((confidences - mean) ** 2)[outside].mean())) + 1e-9
    return np.asarray((_matched(confidences, own) - mean) / spread)


def _matched(confidences: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the model's confidences at the level and spread of the shadows' means."""
    scaled = (own - own.mean()) / max(float(own.std()), 1e-9)
    return np.asarray(scaled * confidences.mean(0).std() + confidences.mean())


def _held_out(
    confidences: NDArray[np.float64], inside: NDArray[np.bool_], score: _Score
) -> Interval:
    """Return the AUC on shadows that the Gaussians were not taken from, over these shadows."""
    held = max(1, round(_HELD * len(inside)))
    areas = []
    for target in range(len(inside) - held, len(inside)):
        rest = slice(0, len(inside) - held)
        scores = score(confidences[rest], inside[rest], confidences[target])
        areas.append(auc(scores[inside[target]], scores[~inside[target]]).mean)
    return t_interval(areas)
