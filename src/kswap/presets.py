"""The presets: every value with its source and reason. A config's own keys go before a preset's.

`paper`        the reference's setting for classification (docs/method.md lists what still differs)
`default`      what we found best on validation (docs/results.md)
`retain-free`  `default` without any retain image in training
"""

from __future__ import annotations

from typing import Any

# ----------------------------------------------------------------------------------------------
# paper
_PAPER_OPTIMISER = {
    "lr": 1e-2,  # reference: AdamW, 1e-2
    "final_lr": 1e-5,  # reference: cosine to 1e-5
    "schedule": "cosine",
    "warmup_fraction": 0.0,  # reference: none
    "weight_decay": 0.05,  # reference
    "clip_norm": None,  # reference: none for classification
}
_PAPER_SPARSITY = {
    "weight": 0.005,
    "method": "subgradient",
    "epsilon": 1e-8,
}  # reference: alpha = 0.005
_PAPER_STREAMS = {
    "learn": {"roles": ["learn"], "batch_size": 80},  # reference: 80 + 80
    "retain": {"roles": ["retain"], "batch_size": 80},
    "kept": {
        "roles": ["retain", "learn"],
        "batch_size": 80,
    },  # replay of learned data in the retain loader
    "forget": {"roles": ["forget"], "batch_size": 80},
}
_PAPER_FORGET = {
    "roles": ["forget"],
    "objective": "bounded_ce_batch",  # reference: ReLU(BND - CE), CE the batch mean
    "weight": 0.2,  # reference: beta
    "bound": 105.0,  # reference: BND, nats
}


def _pick(names: str) -> dict[str, Any]:
    return {name: _PAPER_STREAMS[name] for name in names.split()}


PAPER: dict[str, Any] = {
    "learn": {"fraction": 1.0},  # reference: all of learn
    "forget": {"fraction": 0.1},  # reference: 10 % of forget
    "retain": {"fraction": 0.1},  # reference: 10 % of retain
    "data": {"augment": "none"},  # reference: no augmentation
    "adapter": {"rank": 8, "scale": 0.125, "dropout": 0.0},  # reference: r = 8, alpha / r = 1/8
    "head": {"init": "random", "train": "none"},  # reference: Xavier rows, the head frozen
    "stages": {
        "learn": {
            "epochs": 5.0,  # reference: 5 epochs of the retain loader
            "anchor": "retain",
            "streams": _pick("learn retain forget"),
            "terms": {
                "learn": {"roles": ["learn"], "objective": "cross_entropy", "weight": 1.0},  # w_l
                "retain": {"roles": ["retain"], "objective": "cross_entropy", "weight": 0.2},  # w_r
                # Only after an F stage. The reference has no such term: weight 0 is its F->L.
                "forget": _PAPER_FORGET,
            },
            "optimiser": _PAPER_OPTIMISER,
            "sparsity": _PAPER_SPARSITY,
        },
        "forget": {
            "epochs": 5.0,
            "anchor": "kept",
            "streams": _pick("kept forget"),
            "terms": {
                "kept": {"roles": ["retain", "learn"], "objective": "cross_entropy", "weight": 1.0},
                "forget": _PAPER_FORGET,
            },
            "optimiser": _PAPER_OPTIMISER,
            "sparsity": _PAPER_SPARSITY,
        },
        "joint": {  # not in the reference: the two losses of the paper in one stage
            "epochs": 5.0,  # of the same loader as the forgetting stage
            "anchor": "kept",
            "streams": _pick("kept forget"),
            "terms": {
                "kept": {"roles": ["retain", "learn"], "objective": "cross_entropy", "weight": 1.0},
                "forget": _PAPER_FORGET,
            },
            "optimiser": _PAPER_OPTIMISER,
            "sparsity": _PAPER_SPARSITY,
        },
    },
}

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
_LEARNED = {"roles": ["learn"], "objective": "cross_entropy", "weight": 1.0}
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
            terms={**terms, "learn": _LEARNED},
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
_KNOWN = {"roles": ["learn"], "objective": "restricted_distillation", "weight": 1.0}
RETAIN_FREE: dict[str, Any] = {
    "data": DEFAULT["data"],
    "adapter": DEFAULT["adapter"],
    "head": {"init": "class-mean", "train": "new"},  # no image says where an old row may go
    "stages": _stages({"learn": _LEARN, "known": _KNOWN, "forget": _FORGET}, "learn", "forget"),
}


# -------------------------------------------------------------------- segmentation and detection
# An image holds units of several roles: the role of a unit is that of its class, and what no
# annotation covers is taught by the base model's own answer (role retain).


def _paper_scenes(
    *,
    batch: int,
    length: dict[str, Any],
    weight_decay: float,
    clip_norm: float,
    bound: float,
    augment: str,
) -> dict[str, Any]:
    """Return the reference's setting for segmentation or detection (docs/method.md)."""
    optimiser = {
        "lr": 1e-4,  # reference: AdamW, 1e-4, constant
        "schedule": "constant",
        "warmup_fraction": 0.0,
        "weight_decay": weight_decay,
        "clip_norm": clip_norm,
    }
    sparsity = {"weight": 0.01, "method": "subgradient", "epsilon": 1e-8}  # reference: alpha
    streams = {
        "learn": {"roles": ["learn"], "batch_size": batch},
        "retain": {"roles": ["retain"], "batch_size": batch},
        "kept": {"roles": ["retain", "learn"], "batch_size": batch},  # replay of learned data
        "forget": {"roles": ["forget"], "batch_size": batch},
    }
    own = "cross_entropy"  # the task's whole criterion, boxes and masks included
    forget = {"roles": ["forget"], "objective": "bounded_ce_batch", "weight": 0.2, "bound": bound}
    kept = {"roles": ["retain", "learn"], "objective": own, "weight": 1.0}

    def stage(anchor: str, names: str, terms: dict[str, Any]) -> dict[str, Any]:
        return {
            **length,
            "anchor": anchor,
            "streams": {name: streams[name] for name in names.split()},
            "terms": terms,
            "optimiser": optimiser,
            "sparsity": sparsity,
        }

    learn = {
        "learn": {"roles": ["learn"], "objective": own, "weight": 0.9},  # reference: w_l
        "retain": {"roles": ["retain"], "objective": own, "weight": 1.0},  # reference: w_r
        "forget": forget,  # only after an F stage; the reference has no such term
    }
    return {
        "data": {"augment": augment},
        "adapter": PAPER["adapter"],
        "head": PAPER["head"],
        "stages": {
            "learn": stage("retain", "learn retain forget", learn),
            "forget": stage("kept", "kept forget", {"kept": kept, "forget": forget}),
            "joint": stage("kept", "kept forget", {"kept": kept, "forget": forget}),
        },
    }


PAPER_SEGMENTATION = _paper_scenes(
    batch=6,  # reference: 6 + 6
    length={"epochs": 1.0, "min_steps": 3500, "max_steps": 3500},  # reference: 3,500 iterations
    weight_decay=0.05,
    clip_norm=0.01,
    bound=115.0,
    augment="flip-crop-colour",  # reference: crop 640, colour, flip
)
PAPER_DETECTION = _paper_scenes(
    batch=4,  # reference: 2 + 2 on each of two GPUs
    length={"epochs": 20.0},
    weight_decay=1e-4,
    clip_norm=0.1,
    bound=15.0,
    augment="flip-crop",  # reference: DETR's scales 480 to 800, crop and flip
)


def _share(role: str, objective: str, weight: float) -> dict[str, Any]:
    """Return a term over the units of a role, each with its share in the task's own loss."""
    return {"roles": [role], "objective": objective, "weight": weight, "reduction": "share"}


_SCENE_TERMS = {
    "learn": _share("learn", "cross_entropy", 1.0),
    "retain": _share("retain", "cross_entropy", 1.0),
    "keep": _share("retain", "masked_distillation", 1.0),
    "forget": _share("forget", "masked_distillation", 1.0),
}
# Without retain images: what the base says of all that is not annotated, and of old classes.
_SCENE_TERMS_RETAIN_FREE = {
    "learn": _share("learn", "cross_entropy", 1.0),
    "keep": _share("retain", "masked_distillation", 1.0),
    "forget": _share("forget", "masked_distillation", 1.0),
}


def _scene_stages(terms: dict[str, Any], *roles: str) -> dict[str, Any]:
    batch = dict.fromkeys(roles, 4)
    return {
        "learn": _stage("learn", batch, terms=terms, lr=1e-3, epochs=10.0, min_steps=60),
        "forget": _stage("forget", batch, terms=terms, lr=1e-3, epochs=5.0, min_steps=40),
        "joint": _stage("learn", batch, terms=terms, lr=1e-3, epochs=15.0, min_steps=100),
    }


DEFAULT_SCENES: dict[str, Any] = {
    "data": DEFAULT["data"],
    "adapter": DEFAULT["adapter"],
    "head": DEFAULT["head"],
    "stages": _scene_stages(_SCENE_TERMS, "learn", "retain", "forget"),
}
RETAIN_FREE_SCENES: dict[str, Any] = {
    "data": DEFAULT["data"],
    "adapter": DEFAULT["adapter"],
    "head": RETAIN_FREE["head"],
    "stages": _scene_stages(_SCENE_TERMS_RETAIN_FREE, "learn", "forget"),
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {
        "classification": DEFAULT,
        "segmentation": DEFAULT_SCENES,
        "detection": DEFAULT_SCENES,
    },
    "paper": {
        "classification": PAPER,
        "segmentation": PAPER_SEGMENTATION,
        "detection": PAPER_DETECTION,
    },
    "retain-free": {
        "classification": RETAIN_FREE,
        "segmentation": RETAIN_FREE_SCENES,
        "detection": RETAIN_FREE_SCENES,
    },
}
"""Preset -> task -> values."""
