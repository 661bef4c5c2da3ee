"""What finished runs of a benchmark scored, seed by seed, kept in the repository.

benchmarks/records/NAME.json has a record for each run: what its tables are made from, and a digest
of its config. A table can so be made again, and gone on with, on a machine that has no run folders;
a run whose config has changed since is run again, in a folder without the earlier one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import kswap
from kswap.benching import references
from kswap.benching.execution import Job
from kswap.benching.table import Yardstick
from kswap.files import write_bytes
from kswap.run_folder import read_results

FOLDER = Path(__file__).parent / "records"

Record = Mapping[str, Any]
_YOUNGER = {"renew_steps": 0}
"""Keys of a stage that are younger than records, with the value that leaves a run as it was."""
_STAGES = {"L": "learn", "F": "forget", "J": "joint"}


def digest(job: Job, folder: Path) -> str:
    """Return a digest of a run's config, without paths and stages that its order has not."""
    values = job.config.to_mapping()
    used = {kind for letter, kind in _STAGES.items() if letter in job.arm.order}
    values["stages"] = {
        kind: {k: v for k, v in stage.items() if k not in _YOUNGER or v != _YOUNGER[k]}
        for kind, stage in values["stages"].items()
        if kind in used
    }
    text = json.dumps(values, sort_keys=True, default=str)
    for path in (folder, Path(kswap.__file__).parent):
        text = text.replace(str(path), "")
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def scores_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the tables of `kswap.benching.table` are made from."""
    stages = [{"name": one["name"], "scores": one["scores"]} for one in results["stages"]]
    total = results["seconds"]["total"]
    return {"seed": results["seed"], "stages": stages, "seconds": {"total": round(total, 1)}}


class Records:
    """Those of one benchmark."""

    def __init__(self, name: str, folder: Path) -> None:
        """Read what is there.

        Args:
            name: of the benchmark.
            folder: of its runs, which says nothing about them.
        """
        self.path = FOLDER / f"{name}.json"
        self._folder = folder
        self._all: dict[str, Record] = {}
        if self.path.exists():
            self._all = json.loads(self.path.read_text(encoding="utf-8"))

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs that no record is of."""
        return [job for job in jobs if not self._is_of(job)]

    def add(
        self, job: Job, summary: Callable[[Mapping[str, Any]], Mapping[str, Any]] = scores_of
    ) -> None:
        """Write the record of a finished run."""
        results = read_results(job.config.output)
        self._all[job.name] = {"config": digest(job, self._folder), **summary(results)}
        self._write()

    def yardsticks(
        self, jobs: Sequence[Job], reference: Path | None = None
    ) -> dict[int, Yardstick]:
        """Return seed -> what the reference scores: measured where the seed has a run.

        Args:
            jobs: the runs.
            reference: of all seeds; None: the demo's, where there is one.
        """
        own = reference is None
        reference = reference or self._folder / "demo-reference"
        runs = references.runs_by_seed([job.config.output for job in jobs])
        there = [str(reference)] if (reference / "config.json").is_file() else []
        sources = dict.fromkeys(runs, there)
        measured = references.measure(runs, sources, "R2", self._folder / "references.json")
        for seed, one in measured.items():
            self._all[f"reference {seed}"] = {"level": one.level, "scores": one.scores}
        if measured:
            self._write()
        found = {}
        for seed in dict.fromkeys(job.seed for job in jobs):
            if record := self._all.get(f"reference {seed}"):
                models = ("the demo's reference" if own else reference.name,)
                found[seed] = Yardstick(record["level"], models, record["scores"])
        return found

    def _write(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        lines = [f"{json.dumps(n)}: {json.dumps(r)}" for n, r in sorted(self._all.items())]
        write_bytes(self.path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())

    def found(self, jobs: Sequence[Job]) -> dict[str, list[Record]]:
        """Return arm -> records of its runs, in the order of the jobs."""
        runs: dict[str, list[Record]] = {}
        for job in jobs:
            if self._is_of(job):
                runs.setdefault(job.arm.name, []).append(self._all[job.name])
        return runs

    def _is_of(self, job: Job) -> bool:
        record = self._all.get(job.name)
        return record is not None and record["config"] == digest(job, self._folder)
