"""The paper plan of docs/scale.md: its arithmetic by hand, and that its page is up to date."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks/scale.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "scale", module)
    spec.loader.exec_module(module)
    return module


def test_a_plan_by_hand(scale):
    a = scale.Assumptions(
        width=10, blocks=2, hidden=40, tokens=5, classes=3, rank=4, top=1, retain_images=100,
        retain_share=0.5, passes=2, gpus=4, peak=1000, achieved=0.5, gpu_batch=3, link=50,
    )  # fmt: skip
    plan = scale.Plan(a, scale.Measured(2.0, 1.5, 1.0, 16, 16, 1.0, 1.0))
    assert plan.parameters == 2 * (400 + 800)
    assert plan.forward == 2 * 2400 * 5 + 2 * 4 * 25 * 10
    assert plan.images == 400
    assert plan.speed == 2000
    assert plan.hours(2.0, 400) == pytest.approx(2 * 26000 * 400 / 2000 / 3600)
    assert plan.hours(1.0, 10, 1) == pytest.approx(26000 * 10 / 500 / 3600)
    assert plan.step_s(2.0) == pytest.approx(2 * 26000 * 12 / 2000)
    assert plan.lora(2) == 2 * (4 * (10 + 40) + 4 * (40 + 10))
    assert plan.head == 33
    assert plan.message_s(100) == pytest.approx(2 * 0.75 * 400 / 50)
    assert plan.cached == 200


def test_the_page_is_what_the_script_makes(scale):
    plan = scale.Plan(scale.Assumptions(), scale.measured())
    page = (ROOT / "docs/scale.md").read_text()
    for text in (plan.costs(), plan.sizes(), scale.assumptions(plan.a), scale.check(plan.m)):
        assert text in page, "docs/performance.md was measured anew: python benchmarks/scale.py"


def test_other_numbers_are_printed_and_not_written(scale, capsys):
    before = (ROOT / "docs/scale.md").read_text()
    assert scale.main(["--gpus", "8"]) == 0
    assert "| `--gpus` | 8 |" in capsys.readouterr().out
    assert (ROOT / "docs/scale.md").read_text() == before
