"""The bench: arms, what a variant takes away, measures by hand, a table from real runs."""

from __future__ import annotations

import csv
import importlib
import json
import os
import sys

import pytest
import yaml
from conftest import NEW, OLD, tiny_processor, tiny_vit
from tiny_runs import tiny_run

from kswap.benching.arms import Arm, make_arms, matched_steps
from kswap.benching.execution import check_runs, make_jobs
from kswap.benching.processes import threads_each
from kswap.benching.suites import suite_values
from kswap.benching.table import (
    Spread,
    Yardstick,
    describe,
    harmonic,
    markdown,
    measures,
    plain,
    rows,
    spread,
)
from kswap.cli import main
from kswap.config import SwapConfig, resolve
from kswap.errors import Terminated, UserError
from kswap.plan import plan
from kswap.run_folder import RunFolder, write_config
from kswap.settings import ROLES


def run_of(*stages, seconds=1.0, seed=0):
    names = ("base", "1-learn", "2-forget")
    return {
        "stages": [
            {"name": name, "scores": dict(zip(("learn", "forget", "retain"), one, strict=True))}
            for name, one in zip(names, stages, strict=False)
        ],
        "seconds": {"total": seconds},
        "seed": seed,
    }


REFERENCE = Yardstick("R2", ("never-saw",), {"learn": 0.9, "forget": 0.0, "retain": 0.8})


@pytest.mark.parametrize(
    ("orders", "variants", "expected"),
    [
        (["LF"], ["full", "no-replay", "no-forget-term", "neither"], ["LF", "LF-no-replay"]),
        (["FL"], ["full", "no-replay", "no-forget-term"], ["FL", "FL-no-forget-term"]),
        (["FLF"], ["neither"], ["FLF-neither"]),
        (["J", "J"], ["full", "no-replay"], ["J"]),
    ],
)
def test_arms_leave_out_variants_that_take_nothing_away(orders, variants, expected):
    arms = make_arms(["paper"], orders, variants)
    assert [arm.name for arm in arms] == [f"paper-{name}" for name in expected]


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_variant_takes_one_role_out_of_the_later_stage_and_leaves_the_rest(preset, values):
    values.pop("stages")

    def roles(arm, stage):
        stages = plan(arm.config(values, seed=0, output=values["output"]))
        return {role for term in stages[stage].config.terms.values() for role in term.roles}

    assert roles(Arm(preset, "LF"), 1) == {"learn", "forget", "retain"}
    assert roles(Arm(preset, "LF", "no-replay"), 1) == {"forget", "retain"}
    assert roles(Arm(preset, "LF", "no-replay"), 0) == {"learn", "retain"}
    assert roles(Arm(preset, "FL"), 1) == {"learn", "forget", "retain"}
    assert roles(Arm(preset, "FL", "no-forget-term"), 1) == {"learn", "retain"}


@pytest.mark.parametrize("order", ["LF", "FL", "LFL", "FLF", "J", "LFLF", "FLFL", "JLF", "L"])
def test_every_order_has_the_same_steps_of_each_kind(order, values):
    lengths = matched_steps(order, {"learn": 24, "forget": 12})["stages"]
    steps = {kind: length["max_steps"] for kind, length in lengths.items()}
    assert steps["joint"] == steps["learn"] + steps["forget"]
    kinds = {"L": "learn", "F": "forget", "J": "joint"}
    total = sum(steps[kinds[letter]] for letter in order)
    assert total == (24 if order == "L" else 36)
    values.pop("stages")
    arm = Arm("default", order)
    config = arm.config({**values, "stages": lengths}, seed=0, output=values["output"])
    assert [s.config.max_steps for s in plan(config)] == [s.config.min_steps for s in plan(config)]


def test_an_unknown_variant_is_refused():
    with pytest.raises(UserError, match="no-replai"):
        make_arms(["default"], ["LF"], ["no-replai"])


def test_measures_by_hand():
    run = run_of((0.0, 0.8, 0.9), (0.8, 0.2, 0.6))
    found = measures(run, 1)
    assert found["h"] == pytest.approx(2 * 0.6 * 0.6 / 1.2)
    assert found["h3"] == pytest.approx(3 / (1 / 0.8 + 1 / 0.6 + 1 / 0.6))
    assert measures(run, 0)["h3"] == 0.0
    assert measures(run_of((None, 0.8, 0.9), (None, 0.2, 0.6)), 1)["h3"] is None
    assert harmonic([0.5, -0.1]) == 0.0


def test_interval_is_that_of_students_t():
    assert spread([0.5]) == Spread(0.5, None, 1)
    three = spread([0.1, 0.2, 0.3])
    assert three.mean == pytest.approx(0.2)
    assert three.half == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)


def test_the_best_is_bold_only_where_its_interval_is_clear():
    good = [run_of((0.0, 0.8, 0.9), (0.9 + d, 0.0, 0.9)) for d in (0.0, 0.001, 0.002)]
    poor = [run_of((0.0, 0.8, 0.9), (0.4 + d, 0.0, 0.9)) for d in (0.0, 0.001, 0.002)]
    near = [run_of((0.0, 0.8, 0.9), (0.9 - d, 0.0, 0.9)) for d in (0.0, 0.001, 0.002)]
    bold = [
        line for line in markdown(rows({"a": good, "b": poor}), timed=False).splitlines()
        if "**" in line
    ]  # fmt: skip
    assert len(bold) == 1
    assert bold[0].startswith("|  |  | 1-learn | 90.1")
    assert "**" not in markdown(rows({"a": good, "b": near}), timed=False)
    assert "**" not in markdown(rows({"a": good[:1], "b": poor[:1]}), timed=False)


def test_comparisons_with_a_reference_by_hand():
    run = run_of((0.0, 0.8, 0.9), (0.8, 0.2, 0.9))
    found = measures(run, 1, REFERENCE)
    assert found["tow"] == pytest.approx(0.9 * 0.8 * 0.9)
    assert found["gap"] == pytest.approx((0.1 + 0.2 + 0.1) / 3)
    as_reference = measures(run_of((0.0, 0.8, 0.9), (0.9, 0.0, 0.8)), 1, REFERENCE)
    assert (as_reference["tow"], as_reference["gap"]) == (1.0, 0.0)
    assert measures(run, 1)["tow"] is None
    only_forgets = measures(run_of((None, 0.8, 0.9), (None, 0.2, 0.8)), 1, REFERENCE)
    assert only_forgets["tow"] == pytest.approx(0.8)
    lacking = Yardstick("R2", ("m",), {"learn": None, "forget": 0.0, "retain": 0.8})
    assert measures(run, 1, lacking)["gap"] is None


def test_time_against_retraining_is_a_ratio_of_the_same_seed():
    runs = [run_of((0.0, 0.8, 0.9), (0.9, 0.0, 0.9), seconds=s, seed=s) for s in (10, 20)]
    trained = {
        seed: Yardstick("R2", ("m",), REFERENCE.scores, seconds) for seed, seconds in
        ((10, 40.0), (20, 40.0))
    }  # fmt: skip
    row = rows({"a": runs}, trained)[-1]
    assert row["ratio"].mean == pytest.approx(3.0)
    assert "| 3.00 ± 12.71 |" in markdown([row], timed=True)
    assert "trained in 40 s" in describe(trained)


@pytest.mark.parametrize(
    ("given", "timed", "why"),
    [
        ({}, True, "no reference was given"),
        ({0: REFERENCE}, True, "not trained here"),
        ({0: Yardstick("R2", ("m",), REFERENCE.scores, 9.0)}, False, "side by side"),
    ],
)
def test_what_could_not_be_had_says_why(given, timed, why):
    made = rows({"a": [run_of((0.0, 0.8, 0.9), (0.9, 0.0, 0.9))]}, given, timed=timed)
    text = markdown(made, timed=timed)
    assert "| not available |" in text.splitlines()[3]
    assert why in text.splitlines()[-1]
    values = plain(made)[-1]
    assert values["ratio"].startswith("not available: ")
    assert why in values["ratio"]
    assert isinstance(values["tow"], float if given else str)


def test_the_smallest_gap_and_the_largest_tow_are_bold():
    near = [run_of((0.0, 0.8, 0.9), (0.9 + d, 0.0, 0.8)) for d in (0.0, 0.001, 0.002)]
    far = [run_of((0.0, 0.8, 0.9), (0.4 + d, 0.0, 0.8)) for d in (0.0, 0.001, 0.002)]
    text = markdown(rows({"near": near, "far": far}, {0: REFERENCE}), timed=False)
    assert text.splitlines()[0].count("(R2)") == 2
    assert [line.count("**") for line in text.splitlines()[3:6:2]] == [6, 0]
    assert "**0.0 ± 0.1**" not in text.splitlines()[5]


def in_this_process(num_jobs):
    """Stand for `in_processes`: the same commands one after the other, without its children.

    Starting a child, which imports all anew, takes ten times as long as a tiny run.
    """

    def run_all(commands, on_end):
        for command in commands:
            assert main(list(command.words)) == 0
            on_end(command.name, "")
        return []

    return run_all


def test_bench_runs_what_is_missing_and_writes_one_table(values, tmp_path, capsys, monkeypatch):
    output = tmp_path / "bench"
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    words = ["bench", str(path), "--output", str(output), "--presets", "default"]
    words += ["--orders", "J", "--data.augment", "flip", "--seeds", "0"]
    assert main(words) == 0  # in a process of its own
    assert capsys.readouterr().err.count("done") == 1
    finished = (output / "runs/default-J-0/results.json").stat().st_mtime_ns
    monkeypatch.setattr(
        importlib.import_module("kswap.benching.bench"), "in_processes", in_this_process
    )
    words += ["1", "--jobs", "2"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.err.count("done") == 1
    assert (output / "runs/default-J-0/results.json").stat().st_mtime_ns == finished
    table = json.loads((output / "bench.json").read_text())
    assert [(row["run"], row["stage"]) for row in table] == [
        ("default-J", "base"),
        ("default-J", "1-joint"),
    ]
    scores = [
        json.loads((output / f"runs/default-J-{seed}/results.json").read_text())["stages"][1]
        for seed in (0, 1)
    ]
    mean = sum(one["scores"]["retain"] for one in scores) / 2
    assert table[-1]["retain"] == pytest.approx(mean, abs=1e-6)
    assert table[-1]["retain_half"] is not None
    with (output / "bench.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert (output / "bench.md").read_text().strip() in said.out
    assert "augment: flip" in (output / "configs/default-J-0.yaml").read_text()

    (output / "runs/default-J-1/results.json").unlink()
    before = (output / "bench.md").stat().st_mtime_ns
    assert main([*words, "--stages.joint.max_steps", "9"]) == 2  # of another config: refused
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"--output: {output}/runs/default-J-0 holds a run with another config" in line
    assert "stages.joint.max_steps was 6, now 9; name another folder, or restore" in line
    assert not (output / "runs/default-J-1/results.json").exists()
    assert (output / "bench.md").stat().st_mtime_ns == before
    assert main(words) == 0
    assert capsys.readouterr().err.count("done") == 1
    assert (output / "runs/default-J-0/results.json").stat().st_mtime_ns == finished

    (output / "runs/default-J-0/config.yaml").unlink()
    assert main(words) == 2
    assert "a run whose config.yaml is gone" in capsys.readouterr().err


def test_relative_paths_are_those_of_the_run(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values["model"] = os.path.relpath(values["model"])
    (job,) = make_jobs(lambda arm: values, [Arm("default", "J")], [0], tmp_path / "runs")
    job.config.output.mkdir(parents=True)
    write_config(RunFolder(job.config.output), resolve(job.config), {})
    check_runs([job])
    changed = {**values, "training": {**values["training"], "views": 3}}
    (job,) = make_jobs(lambda arm: changed, [Arm("default", "J")], [0], tmp_path / "runs")
    with pytest.raises(UserError, match=r"training\.views was 2, now 3"):
        check_runs([job])


def test_what_is_written_for_a_run_is_the_preset_of_the_models_task(tmp_path):
    scenes = tiny_run("segmentation", tmp_path)
    scenes.pop("stages")
    full, variant = make_jobs(
        lambda arm: scenes,
        [Arm("default", "LF"), Arm("default", "LF", "no-replay")],
        [0],
        tmp_path / "runs",
    )
    wanted = SwapConfig.from_mapping({**scenes, "task": "segmentation"})
    for job in (full, variant):
        read = SwapConfig.from_mapping(job.config.to_mapping()).for_task("segmentation")
        assert read.stages.learn == wanted.stages.learn
        assert read.adapter == wanted.adapter
    terms = wanted.stages.forget.terms
    assert full.config.stages.forget.terms == terms
    assert variant.config.stages.forget.terms.keys() == terms.keys()


@pytest.mark.parametrize("environment", [{}, {"environment": {"kswap": "0.1.0"}}])
def test_a_resolved_config_is_compared_with_no_other_preset(environment, values, tmp_path, capsys):
    config = SwapConfig.from_mapping(values).for_task("classification")
    path, output = tmp_path / "config.yaml", tmp_path / "bench"
    path.write_text(yaml.safe_dump({**config.to_mapping(), **environment}))
    words = ["bench", str(path), "--output", str(output), "--presets", "default", "paper"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "this is a run's resolved config, in which preset 'default' is written out" in line
    assert "give the YAML that the run was started from, or --presets default" in line
    assert not output.exists()
    arm = Arm("default", "LF")
    made = arm.config(suite_values(path, output, {})(arm), seed=0, output=values["output"])
    assert made == config


def finish(job):
    """Leave what a run leaves for the table."""
    stages = [{"name": name, "scores": dict.fromkeys(ROLES, 0.5)} for name in ("base", "1-joint")]
    results = {"seed": job.seed, "stages": stages, "seconds": {"total": 1.0}}
    results["classes"] = {role: [] for role in ROLES}
    write_config(RunFolder(job.config.output), resolve(job.config.for_task("classification")), {})
    job.results_path.write_text(json.dumps(results))


@pytest.mark.parametrize("stopped_in", ["the second run", "the audits"])
def test_a_stopped_bench_leaves_the_table_of_what_is_finished(
    stopped_in, values, tmp_path, monkeypatch
):
    path, output = tmp_path / "swap.yaml", tmp_path / "bench"
    path.write_text(yaml.safe_dump(values))
    runs = {}

    def make(*given):
        made = make_jobs(*given)
        runs.update({job.name: job for job in made})
        return made

    def run_all(commands, on_end):
        for number, command in enumerate(commands):
            if command.words[0] == "audit":
                assert (output / "bench.md").is_file()
                raise Terminated
            if number == 1 and stopped_in == "the second run":
                raise Terminated
            runs[command.name].config.output.mkdir(parents=True)
            finish(runs[command.name])
        return []

    module = importlib.import_module("kswap.benching.bench")
    monkeypatch.setattr(module, "make_jobs", make)
    monkeypatch.setattr(module, "in_processes", lambda num_jobs: run_all)
    words = {"presets": ["default"], "orders": ["J"], "seeds": [0, 1], "audit": "quick"}
    with pytest.raises(Terminated):
        module.bench(path, output, **words)
    table = json.loads((output / "bench.json").read_text())
    assert table[-1]["seeds"] == (1 if stopped_in == "the second run" else 2)
    assert table[-1]["retain"] == 0.5


@pytest.mark.parametrize(
    ("said", "num_jobs", "threads"),
    [(None, 1, 6), (None, 4, 1), ("2", 1, 2), ("2", 4, 1), ("99", 2, 3), ("4,2", 1, 4),
     ("0", 1, 6), ("many", 1, 6), ("", 9, 1)],
)  # fmt: skip
def test_threads_are_a_share_or_fewer_where_the_user_says_so(said, num_jobs, threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert threads_each(num_jobs) == threads


@pytest.fixture
def never_saw(tmp_path):
    """A model of the classes to retain and to learn."""
    names = (*OLD[1:], *NEW)
    tiny_vit(names).save_pretrained(tmp_path / "never-saw")
    tiny_processor().save_pretrained(tmp_path / "never-saw")
    return tmp_path / "never-saw"


@pytest.mark.slow
def test_references_are_trained_once_per_seed_and_measured(values, never_saw, tmp_path, capsys):
    output = tmp_path / "bench"
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    words = ["bench", str(path), "--output", str(output), "--presets", "default"]
    words += ["--orders", "J", "--seeds", "0", "1"]
    assert main([*words, "--references", str(never_saw)]) == 0
    capsys.readouterr()
    named = json.loads((output / "bench.json").read_text())[-1]
    assert named["reference"] == "R2"
    assert 0 <= named["gap"] <= 1
    assert named["ratio"].startswith("not available: the reference was not trained here")
    assert main([*words, "--references", str(never_saw), "--train-references"]) == 0
    said = capsys.readouterr()
    assert said.err.count("reference of seed") == 2
    assert "R2" in said.out
    row = json.loads((output / "bench.json").read_text())[-1]
    assert row["ratio"] > 0
    took = [json.loads((output / f"references/{s}/reference.json").read_text()) for s in (0, 1)]
    assert [one["seed"] for one in took] == [0, 1]
    runs = [json.loads((output / f"runs/default-J-{s}/results.json").read_text()) for s in (0, 1)]
    by_hand = [
        one["seconds"] / run["seconds"]["total"] for one, run in zip(took, runs, strict=True)
    ]
    assert row["ratio"] == pytest.approx(sum(by_hand) / 2, abs=1e-6)
    assert len(json.loads((output / "references.json").read_text())) == 4
    assert main([*words, "--references", str(never_saw), "--train-references"]) == 0
    assert "reference of seed" not in capsys.readouterr().err


@pytest.mark.slow
def test_arms_are_audited_once_with_their_seeds_together(values, never_saw, tmp_path, capsys):
    output = tmp_path / "bench"
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    words = ["bench", str(path), "--output", str(output), "--presets", "default", "--orders", "J"]
    words += ["--seeds", "0", "1", "--references", str(never_saw), "--audit", "quick"]
    assert main(words) == 0
    assert "audit of default-J: done" in capsys.readouterr().err
    row = json.loads((output / "bench.json").read_text())[-1]
    assert set(row["verdict"].split(", ")) <= {"known", "suppressed", "not available"}
    runs = [json.loads((output / f"runs/default-J-{s}/results.json").read_text()) for s in (0, 1)]
    reason = runs[0]["audit"]["audits"]["A4"]["reason"]
    assert reason == runs[1]["audit"]["audits"]["A4"]["reason"]
    assert "N = 2 swapped and 1 reference" in reason
    assert main(words) == 0
    assert "audit of" not in capsys.readouterr().err


def test_a_reference_scores_what_its_own_answers_say(values, never_saw):
    from kswap.audits.measuring import measure_reference
    from kswap.config import SwapConfig
    from kswap.swapping import swap

    values["order"] = "J"
    run_dir = swap(SwapConfig.from_mapping(values)).run_dir
    scores = measure_reference(run_dir, str(never_saw), "R2")
    assert scores["forget"] == 0.0  # it has no row for red
    assert set(scores) == {"learn", "forget", "retain"}
    assert all(value is not None for value in scores.values())


@pytest.mark.slow
def test_a_reference_that_knows_the_class_is_named_and_the_table_says_so(
    values, base_dir, tmp_path, capsys
):
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    words = ["bench", str(path), "--output", str(tmp_path / "bench"), "--presets", "default"]
    words += ["--orders", "J", "--seeds", "0", "--references", str(base_dir)]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "red among its labels" in said.err.strip().splitlines()[-1]
    assert "not available: the reference cannot be used" in said.out


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--references", "/none"], "--references: there is no folder"),
        (["--train-references"], "0 backbones"),
        (["--reference-level", "R3"], "R3"),
        (["--audit", "deep"], "deep"),
        (["--steps", "4", "0"], "0 steps of forget cannot be shared out among the 1 stages"),
        (["--steps", "4"], "--steps"),
        (["--presets", "defualt"], "defualt"),
        (["--orders", "LX"], "LX"),
        (["--jobs", "0"], "--jobs"),
        (["--seeds", "-1"], "seed"),
        (["--seeds", "x"], "--seeds"),
        (["--seed", "1"], "--seed"),
        (["--stages.learn.nope", "1"], "nope"),
        (["--stages.learn.terms.learn.weight", "0"], "learn"),
    ],
)
def test_bad_input_is_one_line_and_nothing_runs(extra, named, values, tmp_path, capsys):
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    output = tmp_path / "bench"
    assert main(["bench", str(path), "--output", str(output), *extra]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert named in error[0]
    assert not output.exists()


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        ("clasification", "no such file; name a YAML config, or classification, segmentation or"),
        ("x" * 5000, "cannot be read"),
    ],
)
def test_a_suite_that_is_not_there_is_one_line(suite, said, tmp_path, capsys):
    assert main(["bench", suite, "--output", str(tmp_path / "bench")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


FAILS = """#!/bin/sh
# stands for Python: ends as `kswap run` does where a class is not there
echo "kswap: note" >&2
echo "kswap: error: learn.classes: yelow is not there" >&2
exit 2
"""


def test_a_run_that_fails_is_named(values, tmp_path, capsys, monkeypatch):
    python, path = tmp_path / "python", tmp_path / "swap.yaml"
    python.write_text(FAILS)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    path.write_text(yaml.safe_dump(values))
    words = ["bench", str(path), "--output", str(tmp_path / "bench")]
    assert main([*words, "--presets", "default", "--orders", "LF", "--seeds", "0"]) == 2
    error = capsys.readouterr().err
    assert "default-LF-0" in error
    assert "yelow" in error
    assert "note" not in error
