"""Tiny trained models as audits see them: the untouched base, and models that never saw a class.

Vectors of 12 numbers. Kept classes differ in the signs of the first two; whether one is of class 5
or of class 6, the classes to forget, is the parity of two others: no linear probe of the input
sees it, and a network that was not taught it has no reason to compute it. Noise in the other
numbers lets a network remember its training vectors.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import torch
from torch import nn

from kswap.audits.features import BEFORE_HEAD
from kswap.audits.subjects import Answers, Case, Subject
from kswap.tasks import Scores

RETAIN, FORGET, LEARN = (0, 1, 2, 3, 4), (5, 6), (7,)
NUM_ROWS = 8
CLASS_IDS: dict[Any, tuple[int, ...]] = {"learn": LEARN, "forget": FORGET, "retain": RETAIN}
NAMES = {c: f"class{c}" for c in range(NUM_ROWS)}
_SIZES = {"train": 40, "validation": 30, "test": 40}


def vectors(class_id: int, split: str) -> np.ndarray:
    rng = np.random.default_rng([class_id, list(_SIZES).index(split)])
    x = 0.6 * rng.standard_normal((_SIZES[split], 12))
    if class_id in FORGET:
        signs = rng.choice([-1, 1], (len(x), 2))
        signs[:, 1] = signs[:, 0] * (1 if class_id == FORGET[0] else -1)
        x[:, 2:4] = 1.5 * signs + 0.9 * rng.standard_normal((len(x), 2))
        x[:, 0] += 3
    elif class_id in LEARN:
        x[:, 4] += 4
    else:
        angle = 2 * np.pi * class_id / len(RETAIN)
        x[:, 5] += 1.4 * np.cos(angle)
        x[:, 6] += 1.4 * np.sin(angle)
    return x.astype(np.float32)


def network(classes: tuple[int, ...], *, seed: int, steps: int = 250) -> nn.Sequential:
    """Return a network trained on the train vectors of `classes` until it knows them by heart."""
    return copy.deepcopy(_network(classes, seed, steps))


@functools.cache
def _network(classes: tuple[int, ...], seed: int, steps: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, NUM_ROWS)
        )
        x = torch.from_numpy(np.concatenate([vectors(c, "train") for c in classes]))
        y = torch.tensor([c for c in classes for _ in range(_SIZES["train"])])
        optimiser = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=1e-3)
        for _ in range(steps):
            loss = nn.functional.cross_entropy(model(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


@torch.no_grad()
def answers(
    model: nn.Sequential, classes: tuple[int, ...], split: str, rows: tuple[int, ...]
) -> Answers:
    x = torch.from_numpy(np.concatenate([vectors(c, split) for c in classes]))
    y = np.repeat(np.asarray(classes), _SIZES[split])
    first = model[:2](x)
    second = model[2:4](first)
    logits = np.full((len(x), NUM_ROWS + 1), -np.inf, np.float32)
    logits[:, list(rows)] = model[4](second).numpy()[:, list(rows)]
    hits = logits.argmax(1) == y
    per_class = {c: float(hits[y == c].mean()) for c in classes}
    return Answers(
        layers={"block 1": first.numpy(), BEFORE_HEAD: second.numpy()},
        logits=logits,
        class_ids=y,
        found=np.ones(len(x), bool),
        images=np.arange(len(x)),
        scores=Scores(float(hits.mean()), per_class),
    )


@functools.cache
def subject(name: Any, classes: tuple[int, ...], rows: tuple[int, ...], seed: int) -> Subject:
    """Return a model trained on `classes` that may answer `rows`."""
    model = network(classes, seed=seed)
    seen = {
        role: {split: answers(model, ids, split, rows) for split in _SIZES}
        for role, ids in CLASS_IDS.items()
    }
    weight, bias = (
        model[4].weight.detach().double().numpy(),
        model[4].bias.detach().double().numpy(),
    )
    lacks = [c for c in range(NUM_ROWS) if c not in rows]
    weight, bias = weight.copy(), bias.copy()
    weight[lacks], bias[lacks] = np.nan, np.nan
    return Subject(name, seen, (weight, bias))


def base(name: str = "base") -> Subject:
    return subject(name, (*RETAIN, *FORGET), (*RETAIN, *FORGET), 0)


def never_saw(name: str, *, seed: int) -> Subject:
    """Trained on retain and learn alone; a swapped one has rows of the classes it never saw."""
    rows = tuple(range(NUM_ROWS)) if name == "swapped" else (*RETAIN, *LEARN)
    return subject(name, (*RETAIN, *LEARN), rows, seed)


def case(swapped: Subject, **values: Any) -> Case:
    given: dict[str, Any] = {
        "task": "classification",
        "names": NAMES,
        "class_ids": CLASS_IDS,
        "base": base(),
        "swapped": swapped,
        "reference": never_saw("reference", seed=1),
        "reference_level": "R1",
        "seed": 0,
    }
    return Case(**{**given, **values})


def untouched() -> Case:
    """The base given as the swapped model."""
    return case(base("swapped"))


def forgotten() -> Case:
    """A model that never saw the classes, given as the swapped one."""
    return case(never_saw("swapped", seed=2))


def changed(name: Any, variant: str, subjects: Any) -> Subject:
    """Look again at a model whose weights a variant of A9 changes."""
    from kswap.audits.precision import as_variant

    classes, rows, seed = subjects[name]
    model = network(classes, seed=seed)
    with as_variant(model, variant, seed=0):
        seen = {
            role: {split: answers(model, ids, split, rows) for split in _SIZES}
            for role, ids in CLASS_IDS.items()
        }
    return Subject(name, seen)


def trained(name: str, *, untouched: bool) -> Any:
    """Return what `changed` needs to make a model again."""
    if name == "swapped" and untouched:
        return (*RETAIN, *FORGET), (*RETAIN, *FORGET), 0
    if name == "swapped":
        return (*RETAIN, *LEARN), tuple(range(NUM_ROWS)), 2
    return (*RETAIN, *LEARN), (*RETAIN, *LEARN), 1


@functools.cache
def confidences(kind: str, count: int) -> np.ndarray:
    """Logit-scaled confidences of `count` models on forget-train vectors, (models, vectors)."""
    everything = tuple(range(NUM_ROWS))
    taught = (*RETAIN, *FORGET) if kind == "untouched" else (*RETAIN, *LEARN)
    first = {"untouched": 20, "never saw": 40, "reference": 60}[kind]
    found = []
    for seed in range(first, first + count):
        own = answers(network(taught, seed=seed, steps=120), FORGET, "train", everything)
        shares = own.shares()[np.arange(len(own)), own.class_ids]
        found.append(np.log(shares + 1e-30) - np.log1p(-shares + 1e-12))
    return np.stack(found)


def answered_by(kind: str, count: int) -> np.ndarray:
    """Logits of `count` models on forget-train vectors, (models, vectors, rows).

    References lack the rows of forgotten classes, as those of `kswap audit` do.
    """
    taught, rows, first = {
        "untouched": ((*RETAIN, *FORGET), (*RETAIN, *FORGET), 20),
        "never saw": ((*RETAIN, *LEARN), tuple(range(NUM_ROWS)), 40),
        "reference": ((*RETAIN, *LEARN), (*RETAIN, *LEARN), 60),
    }[kind]
    found = [
        answers(network(taught, seed=seed, steps=120), FORGET, "train", rows).logits[:, :NUM_ROWS]
        for seed in range(first, first + count)
    ]
    return np.stack(found).astype(np.float64)


@functools.cache
def likely_confidences(kind: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """As `kswap audit` asks models and as many references: of the answer they find likeliest."""
    from kswap.audits.several import confidence_in, likeliest

    logits = np.concatenate([answered_by(kind, count), answered_by("reference", count)])
    found = confidence_in(logits, likeliest(logits, RETAIN))
    return found[:count], found[count:]
