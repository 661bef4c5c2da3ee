"""The order study at a tiny size: equal steps, its section of the page, mistakes in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from kswap.config import resolve
from kswap.errors import UserError
from kswap.run_folder import RunFolder, write_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def study(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import order_study
    import records

    monkeypatch.setattr(records, "FOLDER", tmp_path / "records")
    return order_study


@pytest.fixture
def page(study, monkeypatch, tmp_path):
    import tables

    path = tmp_path / "results.md"
    path.write_text("before\n<!-- begin: order study -->\n<!-- end: order study -->\nafter\n")
    monkeypatch.setattr(tables, "RESULTS", path)
    return path


@pytest.fixture
def tiny(values, tmp_path) -> Path:
    (tmp_path / "swap.yaml").write_text(yaml.safe_dump({**values, "stages": {}}))
    chosen = {
        "suite": "swap.yaml",
        "preset": "default",
        "orders": ["FL", "J"],
        "variants": ["full", "no-forget-term"],
        "seeds": [0],
        "steps": {"learn": 3, "forget": 2},
        "contrasts": [["FL", "J"], ["FL", "LF"]],
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(chosen))
    return path


def test_the_study_that_ships_has_every_order_with_and_without_each_term(study, tmp_path):
    shipped = study.read_study(study.STUDY)
    jobs = study.study_jobs(shipped, tmp_path, shipped["seeds"])
    arms = {job.arm.name.removeprefix("default-") for job in jobs}
    assert len(jobs) == 3 * len(arms) == 51
    both = {f"{order}{more}" for order in ("LFL", "FLF", "LFLF") for more in
            ("", "-no-replay", "-no-forget-term", "-neither")}  # fmt: skip
    assert arms == {"LF", "LF-no-replay", "FL", "FL-no-forget-term", "J", *both}
    assert {name for pair in shipped["contrasts"] for name in pair} <= arms
    from kswap.plan import plan

    for job in jobs:
        stages = plan(job.config.for_task("classification"))
        assert sum(stage.config.max_steps for stage in stages) == 98
        for stage in stages:  # the demo's own terms and depth, in joint stages too
            assert "own" in stage.config.terms
            assert stage.config.depth == "last-4"
            assert "known" in stage.config.terms or stage.kind == "forget"


@pytest.mark.slow
def test_a_tiny_study_goes_on_and_writes_its_section(study, tiny, page, tmp_path, capsys):
    words = ["--study", str(tiny), "--output", str(tmp_path / "study")]
    assert study.main([*words, "--only", "FL"]) == 0
    assert "default-J" not in page.read_text()
    assert study.main([*words, "--jobs", "2"]) == 0
    assert capsys.readouterr().out.count("done") == 3
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    lines = [line for line in text.splitlines() if line.startswith("| `FL` − ")]
    assert [line.split(" | ")[1] for line in lines] == ["1", "0"]
    assert lines[1].count("not available") == 5
    assert "| `default-FL-no-forget-term` | 1 |" in text
    for name, total in (("FL", 5), ("J", 5)):
        events = (tmp_path / f"study/runs/default-{name}-0/events.jsonl").read_text()
        assert sum("total_step" in json.loads(line) for line in events.splitlines()) == total
    assert study.main([*words, "--table"]) == 0
    assert page.read_text().count("default-J") == text.count("default-J")


def test_no_record_is_made_of_a_run_of_another_config(study, tiny, tmp_path):
    folder = tmp_path / "study"
    chosen = study.read_study(tiny)
    (job, *_) = study.study_jobs({**chosen, "steps": {"learn": 9, "forget": 9}}, folder, [0])
    job.config.output.mkdir(parents=True)
    kept = resolve(job.config.for_task("classification"))
    write_config(RunFolder(job.config.output), kept, {})
    job.results_path.write_text("{}")
    with pytest.raises(UserError, match=r"holds a run with another config: stages\."):
        study.main(["--study", str(tiny), "--output", str(folder)])
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"orders": ["LX"]}, "LX"),
        ({"steps": {"learn": 0, "forget": 2}}, "0 steps of learn"),
        ({"suite": "none.yaml"}, "none.yaml"),
        ({"sedes": [1]}, "sedes: missing or unknown"),
    ],
)
def test_a_mistake_in_the_study_is_one_line(change, said, study, tiny, tmp_path):
    tiny.write_text(yaml.safe_dump({**yaml.safe_load(tiny.read_text()), **change}))
    with pytest.raises(UserError) as caught:
        study.main(["--study", str(tiny), "--output", str(tmp_path / "study")])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "FLL"], "--only: 'default-FLL' is not there; closest: 'default-FL'"),
        (["--seeds", "0", "7"], "--seeds: '7' is not there"),
    ],
)
def test_what_would_choose_nothing_is_refused(words, said, study, tiny, page, tmp_path):
    before = page.read_text()
    with pytest.raises(UserError, match=re.escape(said)):
        study.main(["--study", str(tiny), "--output", str(tmp_path / "study"), *words])
    assert page.read_text() == before
