"""Preset `paper`: the reference's settings (docs/method.md lists what still differs)."""

from __future__ import annotations

from typing import Any

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

# -------------------------------------------------------------------- segmentation and detection


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
