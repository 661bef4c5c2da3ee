"""Every audit says "still known" of the untouched base, "forgotten" of one that never saw it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from audits.subjects import (
    base,
    case,
    changed,
    confidences,
    forgotten,
    likely_confidences,
    never_saw,
    trained,
    untouched,
)

from kswap.audits import (
    anomaly,
    collateral,
    membership,
    precision,
    probe,
    quality,
    relearning,
    restore,
    reversal,
    scores,
    shadow,
)
from kswap.audits.statistics import share_interval
from kswap.audits.subjects import EarlierClass, control_of
from kswap.audits.verdict import verdict


def relearn_heads(given):
    def relearn(condition, name, draw):
        return relearning.relearn_head(
            given.subjects[name], condition, seed=0, draw=draw, num_forget=80
        )

    return relearning.audit(given, relearn, relearning.QUICK_HEAD)


def round_weights(given):
    is_base = given.swapped.of("learn", "test").scores.total == 0
    subjects = {name: trained(name, untouched=is_base) for name in ("swapped", "reference")}
    return precision.audit(given, lambda name, variant: changed(name, variant, subjects))


def tell_models_apart(given):
    is_base = given.swapped.of("learn", "test").scores.total == 0
    swapped = confidences("untouched" if is_base else "never saw", 5)
    return quality.audit(given, quality.Models(swapped, confidences("reference", 5)))


AUDITS = {
    "A1": lambda given: scores.audit(given, score_name="top1"),
    "A2": membership.audit,
    "A3": lambda given: shadow.audit(given, pairs=24),
    "A4": tell_models_apart,
    "A5": probe.audit,
    "A6": restore.audit,
    "A7": relearn_heads,
    "A9": round_weights,
    "A10": anomaly.audit,
}


@pytest.mark.parametrize("name", AUDITS)
def test_of_the_untouched_base_it_says_still_known(name):
    found = AUDITS[name](untouched())
    assert found.status == "fail", found.reason


@pytest.mark.parametrize("name", AUDITS)
def test_of_a_model_that_never_saw_the_classes_it_says_forgotten(name):
    found = AUDITS[name](forgotten())
    assert found.status == "pass", found.reason


def with_few_tests(case, count):
    def of(subject):
        tests = subject.answers["forget"]["test"]
        rows = np.linspace(0, len(tests) - 1, count).astype(int)  # of all classes
        few = replace(
            tests,
            layers={layer: found[rows] for layer, found in tests.layers.items()},
            **{f: getattr(tests, f)[rows] for f in ("logits", "class_ids", "found", "images")},
        )
        forget = {**subject.answers["forget"], "test": few}
        return replace(subject, answers={**subject.answers, "forget": forget})

    return replace(case, **{n: of(getattr(case, n)) for n in ("base", "swapped", "reference")})


@pytest.mark.parametrize("name", ["A3", "A5", "A6", "A7", "A9"])
def test_one_test_unit_is_no_evidence(name):
    found = AUDITS[name](with_few_tests(untouched(), 1))
    assert (found.status, found.reason) == (
        "not available",
        "1 test unit of forget, 2 are needed for an interval",
    )


@pytest.mark.parametrize("name", ["A5", "A6"])
def test_a_few_test_units_never_pass(name):
    assert AUDITS[name](with_few_tests(untouched(), 7)).status != "pass"
    found = AUDITS[name](with_few_tests(forgotten(), 7))
    assert found.status == "not available"
    assert "on 7 test units of forget: with fewer than 8" in found.reason
    assert AUDITS[name](with_few_tests(forgotten(), 8)).status == "pass"


@pytest.mark.parametrize("audit", [membership, anomaly])
def test_what_there_are_too_few_of_is_called_units(audit, monkeypatch):
    monkeypatch.setattr(audit, "_LEAST", 10**6)  # of scenes they are objects and regions
    found = audit.audit(forgotten())
    assert found.status == "not available"
    assert " units of " in found.reason


@pytest.mark.parametrize(("kind", "status"), [("untouched", "fail"), ("never saw", "pass")])
def test_models_are_told_apart_where_references_lack_the_rows(kind, status):
    given = untouched() if kind == "untouched" else forgotten()
    found = quality.audit(given, quality.Models(*likely_confidences(kind, 5)))
    assert found.status == status, found.reason
    assert (found.values["N"], found.values["control"].n) == ([5, 5], 252)


def test_swaps_of_one_base_can_pass_but_not_fail():
    """What they share with their base would tell them apart even if it never saw the classes."""
    one = likely_confidences("never saw", 5)[0][:1]
    noise = 0.01 * np.random.default_rng(0).standard_normal((5, one.shape[1]))
    references = likely_confidences("never saw", 5)[1]
    alike = quality.audit(forgotten(), quality.Models(one + noise, references, num_bases=1))
    assert alike.values["p"] <= 0.05
    assert alike.status == "info"
    assert "the swaps are of 1 base, and what they share" in alike.reason
    several = likely_confidences("never saw", 5)
    assert quality.audit(forgotten(), quality.Models(*several, num_bases=1)).status == "pass"


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((4, 5, 80), "N = 4 swapped and 5 reference models, 5 of each are needed"),
        ((5, 5, 9), "9 forget-train images are in the train split of all runs"),
    ],
)
def test_of_too_few_models_or_examples_nothing_is_said(shape, why):
    swapped, references, examples = shape
    rng = np.random.default_rng(0)
    models = quality.Models(*(rng.standard_normal((n, examples)) for n in (swapped, references)))
    found = quality.audit(forgotten(), models)
    assert found.status == "not available"
    assert why in found.reason


@pytest.mark.parametrize("name", AUDITS)
def test_without_a_reference_nothing_but_the_scores_decides(name):
    control = control_of(base())
    given = replace(forgotten(), reference=control, reference_level="R3")
    found = AUDITS[name](given)
    assert found.status == ("pass" if name == "A1" else "info")
    assert not any(cell is None for table in found.tables for row in table.rows for cell in row)
    if name == "A4":
        return
    texts = [str(cell) for table in found.to_mapping()["tables"] for cell in table["rows"]]
    headings = [column for table in found.tables for column in table.columns]
    assert any("R3" in text for text in (*texts, *headings)), found


def test_a_hurt_class_is_named_and_an_unhurt_model_is_not_blamed():
    assert collateral.audit(untouched()).values["hurt"] == []
    swapped = base("swapped")
    answers = swapped.answers["retain"]["test"]
    logits = answers.logits.copy()
    logits[answers.class_ids == 1, 2] = 99
    worse = {**swapped.answers["retain"], "test": replace(answers, logits=logits)}
    hurt = replace(swapped, answers={**swapped.answers, "retain": worse})
    found = collateral.audit(case(hurt))
    assert (found.status, found.values["hurt"]) == ("fail", ["class1"])
    assert found.values["cka"]["block 1"] == pytest.approx(1.0)


def test_a_class_that_an_earlier_swap_forgot_and_that_comes_back_is_a_warning():
    gone, half = share_interval([False] * 20), share_interval([True] * 10 + [False] * 10)
    absent = "not available: no source of the run has test images of it"
    earlier = (
        EarlierClass("stays", 20, gone, gone),
        EarlierClass("back", 20, gone, half),
        EarlierClass("absent", 0, absent, absent),
        EarlierClass("back too", 20, 0.0, 0.4),
    )
    found = scores.audit(replace(forgotten(), earlier=earlier), score_name="top1")
    assert [text.split(",")[0] for text in found.warnings] == ["back", "back too"]
    assert found.status == "pass"


def test_removal_is_never_a_pass_and_finds_the_rank():
    one = {"a": torch.randn(30, 20, generator=torch.Generator().manual_seed(0)), "b": torch.ones(3)}
    low = one["a"][:, :2] @ one["a"][:2, :]
    for other, rank in ((one["a"] + 0.1 * low, 2), (one["a"] + one["a"].tanh(), None)):
        found = reversal.audit(
            untouched(), one, {"a": other, "b": one["b"]}, rank=4, has_adapter=True
        )
        assert found.status == "info"
        assert found.values["ranks"] == {"a": rank}


QUICK = ("A1", "A2", "A5", "A6", "A10")


def findings(given):
    return {name: AUDITS[name](given) for name in QUICK}


def test_the_ladder():
    known = verdict(
        findings(untouched()), level="quick", task="classification", forgets=True, reference=None
    )
    assert (known["level"], known["stopped_by"]) == ("known", "A1")
    good = findings(forgotten())
    said = {"task": "classification", "forgets": True, "reference": None}
    capped = verdict(good, level="quick", **said)
    assert (capped["level"], capped["stopped_by"]) == ("suppressed", None)
    assert "A3, A4 not run at level quick (--level strict)" in capped["reason"]
    scenes = verdict(good, level="quick", **{**said, "task": "detection"})
    assert scenes["level"] == "representation-consistent"
    assert "A3 and A4 exist for classification only" in scenes["reason"]
    passed = dict.fromkeys(("A3", "A4", "A7", "A9"), good["A2"])
    best = verdict({**good, **passed}, level="strict", **said)
    assert (best["level"], best["stopped_by"]) == ("durable", None)
    without = verdict({**good, **passed}, level="strict", **{**said, "reference": "no reference"})
    assert (without["level"], without["stopped_by"]) == ("suppressed", None)
    missing = {**good, **passed, "A4": replace(good["A2"], status="not available")}
    assert verdict(missing, level="strict", **said)["stopped_by"] == "A4"
    inside = {**missing, "A5": replace(good["A5"], status="fail", reason="by 0.3")}
    stopped = verdict(inside, level="strict", **said)
    assert (stopped["level"], stopped["stopped_by"]) == ("suppressed", "A4")
    assert stopped["reason"].endswith("; further up A5 stops it: by 0.3")
    some = {**good, "A3": good["A2"], "A4": good["A2"]}
    ended = verdict(some, level="strict", skip=("A7", "A9"), **said)
    assert (ended["level"], ended["stopped_by"]) == ("representation-consistent", None)
    assert "A7, A9 left out (--skip)" in ended["reason"]
    one = verdict({**some, "A9": good["A2"]}, level="standard", skip=("A7",), **said)
    assert one["reason"].endswith("the ladder ends here: A7 left out (--skip)")
    unanswered = {**good, "A1": replace(good["A1"], status="not available")}
    assert verdict(unanswered, level="quick", **said)["level"] == "not available"
    nothing = verdict({}, level="quick", task="detection", forgets=False, reference=None)
    assert nothing["level"] == "not available"


def test_a_repetition_gives_the_same_numbers():
    once, again = (probe.audit(forgotten()).to_mapping() for _ in range(2))
    assert once == again


def test_a_reference_that_is_another_model_decides_nothing():
    found = probe.audit(replace(untouched(), valid=False))
    assert found.status == "info"
    assert "not valid" in found.reason


def test_over_forgetting_is_flagged():
    """Forget-train images that look less like members than unseen ones are as telling."""
    given = forgotten()
    answers = given.swapped.answers["forget"]["train"]
    shifted = replace(answers, logits=answers.logits * 0.05)
    swapped = replace(
        given.swapped,
        answers={
            **given.swapped.answers,
            "forget": {**given.swapped.answers["forget"], "train": shifted},
        },
    )
    found = membership.audit(case(swapped))
    assert found.status == "fail"
    assert "over-forgetting" in found.warnings[0]


def test_never_saw_is_deterministic():
    assert never_saw("swapped", seed=2) is never_saw("swapped", seed=2)


def test_a_refitted_head_is_regularised_as_does_best_from_as_few_images():
    given = restore.features_of(base(), "before the head")
    draws = [given.draw(2, seed=0, draw=number) for number in range(2)]
    x, y = given.chosen
    by_strength = {
        c: np.mean([probe.balanced(given.refitted(rows, c)(x), y) for rows in draws])
        for c in probe.REGULARISATIONS
    }
    best = max(by_strength, key=by_strength.__getitem__)
    assert len(set(by_strength.values())) > 1
    features = given.tests[0][0]
    for answer, rows in zip(restore._refitted(given, draws), draws, strict=True):
        assert (answer(features) == given.refitted(rows, best)(features)).all()
