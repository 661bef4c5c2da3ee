"""One config for three tasks: they differ in `model:` and in where the data is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kswap.config import SwapConfig
from kswap.plan import plan
from kswap.settings import ROLES, TaskName

TEXT = """\
learn: {data: DATA/new, labels: partial, fraction: 0.5}
forget: {data: DATA/old, classes: [dog], labels: complete, fraction: 0.2}
retain: {data: DATA/old, labels: complete, fraction: 0.2}
order: LFJ
preset: PRESET
data: {augment: flip, validation_fraction: 0.2}
adapter: {rank: 4}
head: {train: all}
stages: {learn: {max_steps: 3}, forget: {terms: {forget: {weight: 0.5}}}}
training: {device: cpu, accumulation: 2}
seed: 3
"""
TASKS: tuple[TaskName, ...] = ("classification", "segmentation", "detection")


def config_of(task: TaskName, preset: str, tmp_path: Path) -> SwapConfig:
    """The same text in a file, with a model and data of the task."""
    text = TEXT.replace("DATA", f"data/{task}").replace("PRESET", preset)
    path = tmp_path / f"{task}.yaml"
    path.write_text(f"model: someone/{task}-model\noutput: {tmp_path / task}\n{text}")
    return SwapConfig.from_yaml(path).for_task(task)


@pytest.mark.parametrize("preset", ["default", "paper", "retain-free"])
def test_the_three_tasks_differ_in_model_and_data_alone(preset: str, tmp_path: Path) -> None:
    configs = {task: config_of(task, preset, tmp_path) for task in TASKS}
    given = yaml.safe_load(TEXT.replace("PRESET", preset))
    for task, config in configs.items():
        values = config.to_mapping()
        assert [stage.kind for stage in plan(config)] == ["learn", "forget", "joint"]
        assert values["model"] == f"someone/{task}-model"
        for role in ROLES:
            assert _holds(values[role], {k: v for k, v in given[role].items() if k != "data"})
            assert values[role]["data"].startswith(f"data/{task}/")
        rest = {k: v for k, v in given.items() if k not in ROLES}
        assert _holds(values, rest), task
    # Beside model and data, only what the preset chooses for the task differs.
    plain = [_without(config.to_mapping()) for config in configs.values()]
    assert plain[0] == plain[1] == plain[2]


def _holds(values: Any, part: Any) -> bool:
    """Whether everything that was written is in what is resolved."""
    if isinstance(part, dict):
        return all(key in values and _holds(values[key], part[key]) for key in part)
    return bool(values == part)


def _without(values: dict[str, Any]) -> dict[str, Any]:
    """What is left without model, places and the values of the preset."""
    left = {k: v for k, v in values.items() if k not in ("model", "output", "task", "stages")}
    return {k: {**v, "data": ""} if k in ROLES else v for k, v in left.items()}
