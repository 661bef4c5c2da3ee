"""Presets `default` and `retain-free`: what we found best on validation (docs/results.md)."""

from __future__ import annotations

from typing import Any

# -------------------------------------------------------------------------------------- default
# Chosen on validation images (LOG.md, 2026-11-23); what it reaches is in docs/results.md.


def _optimiser(lr: float) -> dict[str, Any]:
    return {
        "lr": lr,
        "final_lr": 0.0,
        "schedule": "cosine",
        "warmup_fraction": 0.1,  # B starts at 0, so that the first steps have no scale yet
        "weight_decay": 0.0,
        "clip_norm": 1.0,  # one bad batch cannot throw the adapter away
    }


_SPARSITY = {"weight": 0.005, "method": "proximal"}  # the paper's alpha; exact zeros, no NaN
# A mean over few learned classes outweighs one over many retained ones: less than 1 while learning.
_LEARN = {"roles": ["learn"], "objective": "cross_entropy", "weight": 0.7}
# While forgetting, the forget images push the new rows down as well, so that they need more.
_LEARNED_WEIGHT = 1.0
# Labels mend what the base got wrong; its answers, without forgotten classes, keep the rest.
_RETAIN = {"roles": ["retain"], "objective": "cross_entropy", "weight": 0.5}
_KEEP = {"roles": ["retain"], "objective": "masked_distillation", "weight": 0.5}
# Bounded, so that a light weight is enough and p_true stays that of a look-alike class.
_FORGET = {"roles": ["forget"], "objective": "masked_distillation", "weight": 0.5}
_TERMS = {"learn": _LEARN, "retain": _RETAIN, "keep": _KEEP, "forget": _FORGET}


def _stage(
    anchor: str, batch: dict[str, int], *, terms: dict[str, Any], lr: float, **length: Any
) -> dict[str, Any]:
    return {
        **length,
        "anchor": anchor,
        "streams": {role: {"roles": [role], "batch_size": size} for role, size in batch.items()},
        "terms": terms,
        "optimiser": _optimiser(lr),
        "sparsity": _SPARSITY,
    }


def _stages(terms: dict[str, Any], *roles: str) -> dict[str, Any]:
    """Return the three kinds of stage over streams of `roles`."""

    def batch(**sizes: int) -> dict[str, int]:
        return {role: size for role, size in sizes.items() if role in roles}

    learn = batch(learn=32, retain=32, forget=16)
    forget = batch(learn=16, retain=32, forget=16)
    joint = batch(learn=32, retain=32, forget=16)
    return {
        "learn": _stage("learn", learn, terms=terms, lr=3e-3, epochs=2.0, min_steps=40),
        # Forgetting an answer is quick; half the rate keeps what the learning stage reached.
        "forget": _stage(
            "forget",
            forget,
            terms={**terms, "learn": {**terms["learn"], "weight": _LEARNED_WEIGHT}},
            lr=1.5e-3,
            epochs=1.0,
            min_steps=30,
        ),
        "joint": _stage("learn", joint, terms=terms, lr=3e-3, epochs=4.0, min_steps=70),
    }


DEFAULT: dict[str, Any] = {
    "data": {"augment": "none"},  # which changes leave a class what it is, only its user knows
    "adapter": {"rank": 16, "scale": 1.0, "dropout": 0.0},
    "head": {"init": "class-mean", "train": "all"},  # old rows give way to new ones
    "stages": _stages(_TERMS, "learn", "retain", "forget"),
}

# ---------------------------------------------------------------------------------- retain-free
# No term and no stream has the role retain. What the base knows is kept by its own answers, among
# the classes that stay, on the images that are there: of the learn classes (Learning without
# Forgetting) and of the forget classes, whose masked distillation teaches those answers anyway.
# Nothing shows the new rows where not to answer, so that they may lead by a little only: by
# ln(0.7 / 0.3) nats over the old classes that their images look like (LOG.md, 2026-11-24).
_HEDGED = {"roles": ["learn"], "objective": "hedged_cross_entropy", "weight": 0.7, "hedge": 0.3}
_KNOWN = {"roles": ["learn"], "objective": "restricted_distillation", "weight": 1.0}
RETAIN_FREE: dict[str, Any] = {
    "data": DEFAULT["data"],
    "adapter": DEFAULT["adapter"],
    "head": {"init": "class-mean", "train": "new"},  # no image says where an old row may go
    "stages": _stages({"learn": _HEDGED, "known": _KNOWN, "forget": _FORGET}, "learn", "forget"),
}


# -------------------------------------------------------------------- segmentation and detection
# An image holds units of several roles: the role of a unit is that of its class, and what no
# annotation covers is taught by the base model's own answer (role retain).


def _share(role: str, objective: str, weight: float) -> dict[str, Any]:
    """Return a term over the units of a role, each with its share in the task's own loss."""
    return {"roles": [role], "objective": objective, "weight": weight, "reduction": "share"}


_SCENE_TERMS = {
    "learn": _share("learn", "cross_entropy", 1.0),
    "retain": _share("retain", "cross_entropy", 1.0),
    "keep": _share("retain", "masked_distillation", 1.0),
    "forget": _share("forget", "masked_distillation", 1.0),
}
# Where forgetting is the point, it takes what is left of the class at no cost to retain (LOG.md,
# 2026-11-26: chosen on scenes in no split, for a segmenter and a detector).
_FORGOTTEN_WEIGHT = 3.0
# Without retain images: what the base says of all that is not annotated, and of old classes.
_SCENE_TERMS_RETAIN_FREE = {
    "learn": _share("learn", "cross_entropy", 1.0),
    "keep": _share("retain", "masked_distillation", 1.0),
    "forget": _share("forget", "masked_distillation", 1.0),
}


def _scene_stages(terms: dict[str, Any], weight: float, *roles: str) -> dict[str, Any]:
    batch = dict.fromkeys(roles, 4)
    forgetting = {**terms, "forget": {**terms["forget"], "weight": weight}}
    return {
        "learn": _stage("learn", batch, terms=terms, lr=1e-3, epochs=10.0, min_steps=60),
        "forget": _stage("forget", batch, terms=forgetting, lr=1e-3, epochs=5.0, min_steps=40),
        "joint": _stage("learn", batch, terms=forgetting, lr=1e-3, epochs=15.0, min_steps=100),
    }


DEFAULT_SCENES: dict[str, Any] = {
    "data": DEFAULT["data"],
    "adapter": DEFAULT["adapter"],
    "head": DEFAULT["head"],
    "stages": _scene_stages(_SCENE_TERMS, _FORGOTTEN_WEIGHT, "learn", "retain", "forget"),
}
RETAIN_FREE_SCENES: dict[str, Any] = {
    "data": DEFAULT["data"],
    "adapter": DEFAULT["adapter"],
    "head": RETAIN_FREE["head"],
    "stages": _scene_stages(_SCENE_TERMS_RETAIN_FREE, 1.0, "learn", "forget"),
}
