"""Presets of the methods that users compare with, for classification; `ssd` for every task.

All learn as `default` does and forget for as long, at its rate and from the same batches, so that
what differs is the objective. What each method says is in docs/method.md; values without a source
beside them are ours, chosen once and not tuned.
"""

from __future__ import annotations

from typing import Any

from kswap.presets.default import DEFAULT, DEFAULT_SCENES
from kswap.presets.paper import PAPER


def _term(role: str, objective: str, weight: float = 1.0, **settings: Any) -> dict[str, Any]:
    return {"roles": [role], "objective": objective, "weight": weight, **settings}


_LEARN = _term("learn", "cross_entropy")
_RETAIN = _term("retain", "cross_entropy")


def _baseline(forget: dict[str, Any], *, stage: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the preset of a method that forgets by the terms of `forget`.

    Args:
        forget: terms of the stages that forget, beside those on learned classes.
        stage: other settings of these stages.
    """
    stages = {"learn": DEFAULT["stages"]["learn"]}
    for kind in ("forget", "joint"):
        stages[kind] = {
            **DEFAULT["stages"][kind],
            "terms": {"learn": _LEARN, **forget},
            **(stage or {}),
        }
    return {**DEFAULT, "stages": stages}


# Fine-tuning on what is kept; forget images are never shown, and what is lost is lost by neglect.
# There is no stage that forgets: with an order other than L the plan says so.
_FINE_TUNE = {
    **DEFAULT["stages"]["joint"],  # as long as learning and forgetting together
    "terms": {"learn": _LEARN, "retain": _RETAIN},
}
FINE_TUNE: dict[str, Any] = {
    **DEFAULT,
    "order": "L",
    "stages": dict.fromkeys(("learn", "forget", "joint"), _FINE_TUNE),
}
NEGGRAD_PLUS = _baseline(
    {
        # Kurmanji et al. 2023: beta · CE(retain) - (1 - beta) · CE(forget), beta near 1.
        "retain": _term("retain", "cross_entropy", 0.95),
        "forget": _term("forget", "negative_ce", 0.05),
    }
)
RANDOM_LABELS = _baseline({"retain": _RETAIN, "forget": _term("forget", "random_labels")})
SCRUB = _baseline(
    {
        # Kurmanji et al. 2023: alpha · KL(retain) + gamma · CE(retain) - KL(forget).
        "keep": _term("retain", "distillation", 0.5),
        "retain": _RETAIN,
        # Theirs alternates epochs of ascent and descent and stops the ascent early; here both are
        # in every step, the ascent with a tenth of the weight, so that it does not run away.
        "forget": _term("forget", "negative_distillation", 0.1),
    }
)
SALUN = _baseline(
    {"retain": _RETAIN, "forget": _term("forget", "random_labels")},
    stage={"saliency": 0.5},  # Fan et al. 2024: the median
)
TASK_ARITHMETIC: dict[str, Any] = {
    **DEFAULT,
    "head": {**DEFAULT["head"], "train": "new"},  # the vector is that of the layers
    "stages": {
        **DEFAULT["stages"],
        # Ilharco et al. 2023: fine-tune on what is to be forgotten, then go the other way.
        "forget": {
            **DEFAULT["stages"]["forget"],
            "terms": {"forget": _term("forget", "cross_entropy")},
            "negate": 1.0,
        },
    },
}
BAD_TEACHER = _baseline(
    {"keep": _term("retain", "distillation"), "forget": _term("forget", "uniform")}
)
BOUNDARY_SHRINK = _baseline({"retain": _RETAIN, "forget": _term("forget", "nearest_class")})
TILTED = _baseline({"retain": _RETAIN, "forget": _term("forget", "tilted_distillation", tilt=2.0)})
SUBSPACE = _baseline(
    {
        "retain": _RETAIN,
        "keep": _term("retain", "masked_distillation"),
        "forget": _term("forget", "masked_distillation", 0.5),
        "off": _term("forget", "subspace", 0.5, layers=["all"]),
    }
)
_BOUNDED = _term("forget", "bounded_ce_batch", 0.15, bound=105.0)  # its scripts: beta, BND
GS_LORA: dict[str, Any] = {
    **PAPER,  # rank 8, scale 1/8, AdamW 1e-2 to 1e-5, alpha: those of the paper that grew from it
    "head": DEFAULT["head"],  # it learns no classes: they are learnt as in `default`
    "stages": {
        "learn": PAPER["stages"]["learn"],
        **{
            kind: {
                **PAPER["stages"][kind],
                "terms": {**PAPER["stages"][kind]["terms"], "forget": _BOUNDED},
            }
            for kind in ("forget", "joint")
        },
    },
}
GS_LORA_PLUS: dict[str, Any] = {
    **GS_LORA,
    "stages": {
        "learn": PAPER["stages"]["learn"],
        **{
            kind: {
                **GS_LORA["stages"][kind],
                "terms": {
                    **GS_LORA["stages"][kind]["terms"],
                    # Its scripts: weight 0.01 of the forget prototypes; the bound is ours: the
                    # nats of a feature that says nothing of its class.
                    "prototypes": _term("forget", "bounded_prototype", 0.01),
                    "kept prototypes": _term("retain", "prototype", 0.01),
                },
            }
            for kind in ("forget", "joint")
        },
    },
}
# Learning without Forgetting (Li and Hoiem 2016): no retained image, the base's answers on the
# images that are there, at temperature 2.
_LWF = _term("learn", "restricted_distillation", temperature=2.0)
LWF: dict[str, Any] = {
    **DEFAULT,
    "stages": {
        "learn": {**DEFAULT["stages"]["learn"], "terms": {"learn": _LEARN, "known": _LWF}},
        **{
            kind: {
                **DEFAULT["stages"][kind],
                "terms": {
                    "learn": _LEARN,
                    "known": {**_LWF, "roles": ["learn", "forget"]},
                    "forget": _term("forget", "bounded_ce_sample", 0.5),
                },
            }
            for kind in ("forget", "joint")
        },
    },
}
# Elastic weight consolidation (Kirkpatrick et al. 2017): the Fisher information stands for the
# images to retain, which no term names.
_EWC = {"consolidation": 100.0}
EWC: dict[str, Any] = {
    **DEFAULT,
    "stages": {
        "learn": {**DEFAULT["stages"]["learn"], "terms": {"learn": _LEARN}, **_EWC},
        **{
            kind: {
                **DEFAULT["stages"][kind],
                "terms": {
                    "learn": _LEARN,
                    "forget": _term("forget", "bounded_ce_sample", 0.5),
                },
                **_EWC,
            }
            for kind in ("forget", "joint")
        },
    },
}

# Foster et al. 2024: weights whose Fisher information on what is to be forgotten is large beside
# that on the rest are shrunk; nothing trains. Streams say whose images are looked at, terms whose
# loss it is of. Lambda is theirs; alpha, 10 there, was chosen on validation images of the demos for
# a rest without the images to be forgotten (LOG.md, 2026-11-24).


def _ssd(default: dict[str, Any], selection: float, **terms: Any) -> dict[str, Any]:
    stage = default["stages"]["forget"]
    streams = {role: stage["streams"][role] for role in ("learn", "retain", "forget")}
    dampening = {"selection": selection, "strength": 1.0}
    forget = {**stage, "streams": streams, "terms": terms, "dampening": dampening}
    return {**default, "stages": {**default["stages"], "forget": forget}}


def _of(role: str, **settings: Any) -> dict[str, Any]:
    return {role: _term(role, "cross_entropy", **settings)}


SSD = _ssd(DEFAULT, 100.0, **_of("learn"), **_of("retain"), **_of("forget"))
_SHARE = {"reduction": "share"}
# Of 1 to 1000 what forgets most on the detection demo's validation scenes, which is not much: in an
# image of a scene what is kept has gradients as large as what is to be forgotten.
SSD_SCENES = _ssd(
    DEFAULT_SCENES,
    2.0,
    **_of("learn", **_SHARE),
    **_of("retain", **_SHARE),
    **_of("forget", **_SHARE),
)

BASELINES: dict[str, dict[str, Any]] = {
    "ft": FINE_TUNE,
    "neggrad+": NEGGRAD_PLUS,
    "random-labels": RANDOM_LABELS,
    "scrub": SCRUB,
    "salun": SALUN,
    "bad-teacher": BAD_TEACHER,
    "boundary-shrink": BOUNDARY_SHRINK,
    "tilted": TILTED,
    "subspace": SUBSPACE,
    "gs-lora": GS_LORA,
    "gs-lora++": GS_LORA_PLUS,
    "lwf": LWF,
    "ewc": EWC,
    "task-arithmetic": TASK_ARITHMETIC,
}
