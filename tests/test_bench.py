"""The bench: arms, what a variant takes away, measures by hand, a table from real runs."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

from kswap.benching.arms import Arm, make_arms
from kswap.benching.table import Spread, harmonic, markdown, measures, rows, spread
from kswap.cli import main
from kswap.errors import UserError
from kswap.plan import plan


def run_of(*stages, seconds=1.0):
    names = ("base", "1-learn", "2-forget")
    return {
        "stages": [
            {"name": name, "scores": dict(zip(("learn", "forget", "retain"), one, strict=True))}
            for name, one in zip(names, stages, strict=False)
        ],
        "seconds": {"total": seconds},
    }


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


def test_bench_runs_what_is_missing_and_writes_one_table(values, tmp_path, capsys):
    output = tmp_path / "bench"
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    words = ["bench", str(path), "--output", str(output), "--presets", "default"]
    words += ["--orders", "J", "--seeds", "0", "1", "--jobs", "2", "--data.augment", "flip"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.err.count("done") == 2
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

    finished = (output / "runs/default-J-0/results.json").stat().st_mtime_ns
    (output / "runs/default-J-1/results.json").unlink()
    assert main(words) == 0
    assert capsys.readouterr().err.count("done") == 1
    assert (output / "runs/default-J-0/results.json").stat().st_mtime_ns == finished


@pytest.mark.parametrize(
    ("extra", "named"),
    [
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


def test_a_run_that_fails_is_named(values, tmp_path, capsys):
    values["learn"]["classes"] = ["yelow"]
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump(values))
    words = ["bench", str(path), "--output", str(tmp_path / "bench")]
    assert main([*words, "--presets", "default", "--orders", "LF", "--seeds", "0"]) == 2
    error = capsys.readouterr().err
    assert "default-LF-0" in error
    assert "yelow" in error
