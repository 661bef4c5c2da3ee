"""The table of methods: what is equal between them, and what a row says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from kswap.config import resolve
from kswap.errors import UserError
from kswap.plan import plan
from kswap.presets import PRESETS
from kswap.run_folder import RunFolder, write_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def methods(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import methods

    return methods


@pytest.fixture
def planned(methods, tmp_path):
    """Preset -> its stages; the demo's files are not written."""

    def stages(preset):
        arm = methods.arm_of(preset)
        config = arm.config(methods.values(arm, tmp_path), seed=0, output=str(tmp_path / "run"))
        return config, plan(config.for_task("classification"))

    return {preset: stages(preset) for preset in methods.METHODS}


def test_every_classification_preset_with_a_name_of_its_own_is_compared(methods):
    missing = {p for p in PRESETS if "classification" in PRESETS[p]} - set(methods.METHODS)
    assert missing == {"retain-free", "tilted", "subspace"}  # ours, without a published name


def test_methods_get_the_same_images_flips_and_blocks(planned):
    configs = [config.to_mapping() for config, _ in planned.values()]
    assert {c["data"]["augment"] for c in configs} == {"flip"}
    assert {c[role]["fraction"] for c in configs for role in ("learn", "forget", "retain")} == {1.0}
    depths = {name: {s.config.depth for s in stages} for name, (_, stages) in planned.items()}
    assert depths.pop("deep") == {"last-4", "last-6"}
    assert all(depth == {"last-4"} for depth in depths.values())


def test_methods_train_for_as_many_steps_as_the_demo(methods, planned):
    for name, (_, stages) in planned.items():
        if name not in ("default", "deep"):  # the demo's own: by epochs
            assert sum(s.config.max_steps for s in stages) == sum(methods.STEPS.values())
    _, stages = planned["default"]
    for stage, role, classes in ((stages[0], "learn", 3), (stages[1], "forget", 2)):
        batches = math.ceil(250 * classes / stage.config.streams[role].batch_size)
        assert math.ceil(stage.config.epochs * batches) == methods.STEPS[role]


def test_those_without_a_learning_stage_of_their_own_learn_as_the_demo_does(planned):
    learning = {n: dict(stages[0].config.terms) for n, (_, stages) in planned.items()}
    own = {n for n, terms in learning.items() if terms != learning["default"]}
    assert own == {"deep", "paper", "ft", "gs-lora", "gs-lora++", "lwf", "ewc"}


def test_a_row_counts_what_fails_as_the_audits_do(methods):
    gap = {"low": 0.01, "high": 0.2, "n": 9}
    audits = {
        "A1": {"status": "pass"},
        "A2": {"status": "pass"},
        "A10": {"status": "fail"},
        "A5": {
            "values": {
                "excess over the reference": {
                    "block 1": {**gap, "mean": 0.1},
                    "block 2": {**gap, "mean": 0.015},  # within the margin
                    "before the head": {**gap, "low": -0.1, "mean": 0.05},  # may be chance
                },
                "before the head": {"swapped": {"mean": 0.8}},
                "residual": {"block 1": "not available: none", "before the head": {"mean": 0.25}},
            }
        },
        "A6": {
            "values": {
                "excess over the reference": {"one": {**gap, "mean": 0.1}},
                "forget": {
                    way: {"swapped": {"mean": 0.6 + n / 10}, "reference": {"mean": 0.5}}
                    for n, way in enumerate(methods.RESTORE)
                },
            }
        },
    }
    scores = {"learn": 0.8, "forget": 0.0, "retain": 0.9}
    run = {
        "seed": 0,
        "stages": [
            {"name": "base", "scores": {**scores, "learn": 0.0, "forget": 0.8}},
            {"name": "2-forget", "scores": scores},
        ],
        "seconds": {"total": 1.0},
    }
    text = methods.methods_table(
        {"a-LF": [{**run, "audit": {"audits": audits}}], "b-c-LF": [run]}, {}
    )
    audited, bare = text.splitlines()[2:]
    assert audited.startswith("| `a` | 1 | 80.0 | 0.0 | 90.0 |")
    assert audited.endswith("| 1/1 1/1 0/1 | 1.0 | 80.0 | 0.25 | 1.0 | 60.0 (50.0) | 70.0 (50.0) |")
    assert bare.startswith("| `b-c` |")
    assert bare.count("not audited") == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "defualt"], "--only: 'defualt' is not there; closest: 'default'"),
        (["--task", "detection", "--only", "scrub"], "--only: 'scrub' is not there"),
    ],
)
def test_what_would_choose_nothing_is_refused(words, said, methods, tmp_path):
    with pytest.raises(UserError, match=said):
        methods.main([*words, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_jobs_are_from_one_up(number, methods, capsys):
    with pytest.raises(SystemExit):
        methods.main(["--jobs", number])
    assert f"argument --jobs: {number!r} is no number from 1 up" in capsys.readouterr().err


def test_the_table_of_swaps_is_not_made_of_runs_of_another_config(methods, monkeypatch, tmp_path):
    import swaps

    monkeypatch.setattr(swaps, "CACHE", tmp_path)
    monkeypatch.setattr(swaps, "write_table", lambda task, jobs: pytest.fail("was written"))
    with pytest.raises(UserError, match="--only: 'default-LX' is not there"):
        swaps.main(["classification", "--table", "--only", "default-LX"])
    arm = swaps.SEEDED["classification"][0]
    output = tmp_path / "runs" / f"{arm.name}-0"
    kept = arm.config(swaps.sources("classification", arm.preset), seed=7, output=str(output))
    output.mkdir(parents=True)
    write_config(RunFolder(output), resolve(kept.for_task("classification")), {})
    (output / "results.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="another config: seed was 7, now 0"):
        swaps.main(["classification", "--table"])
