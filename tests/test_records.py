"""Records of finished runs: whose they are, and when a run must be done again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kswap.benching.arms import Arm
from kswap.benching.execution import make_jobs
from kswap.settings import ROLES

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def records(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import records

    monkeypatch.setattr(records, "FOLDER", tmp_path / "records")
    return records


def jobs_in(folder, **changes):
    """One run of order LF, whose model lies in the folder of the benchmark."""
    values = {
        "model": str(folder / "base"),
        "task": "classification",
        "learn": {"data": "images", "classes": ["a"]},
        "forget": {"data": "images", "classes": ["b"]},
        "retain": {"data": "images"},
        **changes,
    }
    return make_jobs(lambda arm: values, [Arm("default", "LF")], [0], folder / "runs")


def finish(job):
    job.config.output.mkdir(parents=True)
    stages = [
        {"name": name, "scores": dict.fromkeys(ROLES, score), "per_class": {}}
        for name, score in (("base", 0.0), ("1-learn", 0.5))
    ]
    results = {"seed": 0, "stages": stages, "seconds": {"total": 12.34, "load": 1.0}}
    results["classes"] = {role: [] for role in ROLES}
    job.results_path.write_text(json.dumps(results))


def test_a_record_is_found_from_another_folder(records, tmp_path):
    job = jobs_in(tmp_path / "here")[0]
    finish(job)
    kept = records.Records("some", tmp_path / "here")
    assert kept.missing([job]) == [job]
    kept.add(job)
    there = tmp_path / "there"
    again = records.Records("some", there)
    (moved,) = jobs_in(there)
    assert again.missing([moved]) == []
    (record,) = again.found([moved])["default-LF"]
    assert record["stages"][-1] == {"name": "1-learn", "scores": dict.fromkeys(ROLES, 0.5)}
    assert record["seconds"] == {"total": 12.3}
    assert str(tmp_path) not in (tmp_path / "records/some.json").read_text()


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ({"stages": {"learn": {"epochs": 9.0}}}, False),
        ({"training": {"views": 3}}, False),
        ({"stages": {"joint": {"epochs": 9.0}}}, True),  # which order LF has not
    ],
)
def test_a_run_whose_config_changed_is_missing(records, tmp_path, changes, stays):
    (job,) = jobs_in(tmp_path)
    finish(job)
    kept = records.Records("some", tmp_path)
    kept.add(job)
    (changed,) = jobs_in(tmp_path, **changes)
    assert (kept.missing([changed]) == []) == stays
    assert (kept.found([changed]) == {}) == (not stays)
