"""What is disturbed: tiny swaps of the three tasks, with models and data made once; the undisturbed
run of each; and what must be equal whatever happened."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_runs
import yaml
from chaos.victims import Ended, command

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
"""How often each random disturbance is drawn."""
TIMES = ("seconds", "images_per_s")
_MEASURED = ("seconds", "peak_memory_bytes")


@dataclass(frozen=True)
class Case:
    """A swap that can be run into any folder, and how it goes when nothing disturbs it."""

    task: str
    folder: Path
    values: dict[str, Any]
    undisturbed: Path
    """Its run folder."""
    ended: Ended
    """How the undisturbed run went: its marks are the moments at which to disturb others."""

    def words(self, output: Path) -> list[str]:
        """Return the command line of the same swap into `output`."""
        path = output.with_name(f"{output.name}.yaml")
        path.write_text(yaml.safe_dump({**self.values, "output": str(output)}))
        return ["run", str(path)]


def prepare(task: str, folder: Path) -> Case:
    """Write model and data of a tiny swap below `folder`, and run it undisturbed."""
    folder.mkdir(parents=True)
    values = tiny_runs.tiny_run(task, folder)
    stage = {"max_steps": 5, "min_steps": 1}
    values["stages"] = dict.fromkeys(("learn", "forget", "joint"), stage)
    values["training"] = {"device": "cpu", "checkpoint_steps": 2}
    values["data"] = {"memory_limit_bytes": 1}  # decoded images lie in files of RUN/cache
    if task == "classification":  # what is random in a step has to be so in the same way
        values["data"]["augment"] = "flip"
        values["adapter"] = {"dropout": 0.2}
    undisturbed = folder / "undisturbed"
    case = Case(task, folder, values, undisturbed, Ended(0, "", 0.0))
    ended = command(case.words(undisturbed), folder / "undisturbed.log")
    assert ended.status == 0, ended.said
    return Case(task, folder, values, undisturbed, ended)


def outcome(run_dir: Path) -> dict[str, Any]:
    """Return everything a run leaves that must not depend on how it came about: no times."""
    results = json.loads((run_dir / "results.json").read_text())
    for key in _MEASURED:
        results.pop(key)
    results["audit"].pop("seconds", None)
    found: dict[str, Any] = {"results.json": results}
    lines = [json.loads(x) for x in (run_dir / "events.jsonl").read_text().splitlines()]
    found["events.jsonl"] = [{k: v for k, v in x.items() if k not in TIMES} for x in lines]
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config.pop("output")
    config["environment"].pop("commit")  # of a checkout that may be worked on
    found["config.yaml"] = config
    for name in ("adapter", "model", "arrays", "figures"):
        for path in sorted((run_dir / name).iterdir()):
            found[f"{name}/{path.name}"] = digest(path)
    return found


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(run_dir: Path, case: Case) -> list[str]:
    """Return what of a run is not as in the undisturbed one; files too many count as well."""
    expected, found = outcome(case.undisturbed), outcome(run_dir)
    differing = [k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)]
    names = {path.name for path in case.undisturbed.iterdir()}
    differing += sorted(path.name for path in run_dir.iterdir() if path.name not in names)
    for path in run_dir.rglob("*"):
        if path.name.startswith(".") or path.name.endswith((".tmp", ".part")):
            differing.append(str(path.relative_to(run_dir)))
    return sorted(set(differing))


def clone(case: Case, to: Path) -> Path:
    """Copy the undisturbed run: a finished run to disturb commands on."""
    shutil.copytree(case.undisturbed, to)
    return to
