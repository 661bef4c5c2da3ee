"""The door of `kswap bench`: a suite, its arms, the runs that are missing, and the table files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kswap.benching import table
from kswap.benching.arms import make_arms
from kswap.benching.execution import Job, finished, make_jobs, run_jobs
from kswap.demo import demo_values, write_demo
from kswap.errors import UserError
from kswap.files import disk_errors, write_bytes
from kswap.models.loading import find_task
from kswap.plan import plan
from kswap.yaml_text import merge, parse_overrides, read_yaml

DEMOS = ("classification", "segmentation", "detection")


def bench(
    suite: str | Path,
    output: Path,
    *,
    presets: Iterable[str] = ("default", "paper"),
    orders: Iterable[str] = ("LF", "FL"),
    variants: Iterable[str] = ("full",),
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int = 1,
    overrides: Sequence[str] = (),
    on_end: Callable[[str, str], None] = lambda name, problem: None,
) -> tuple[str, list[str]]:
    """Run presets × orders × variants × seeds on one swap and write the table of it.

    Args:
        suite: `classification`, `segmentation` or `detection` for what ships with the package, or a
            YAML config.
        output: folder of run folders, configs and bench.md, bench.csv, bench.json. What is finished
            there is not run again.
        presets: names of presets.
        orders: order strings.
        variants: names of `kswap.benching.arms.VARIANTS`.
        seeds: three or more, for intervals.
        jobs: processes side by side.
        overrides: words such as `--training.device cpu`, for every run.
        on_end: called with the name of each run that ended, and what went wrong ("": nothing).

    Returns:
        The table in Markdown, and a line for each run that failed.

    Raises:
        UserError: a value is wrong; nothing was run.
    """
    if jobs < 1:
        raise UserError(f"--jobs: {jobs} processes cannot run anything; give 1 or more")
    output = output.expanduser().resolve()
    values = _suite(suite, output, parse_overrides(overrides))
    arms = make_arms(presets, orders, variants)
    made = make_jobs(values, arms, seeds, output / "runs")
    if not made:
        raise UserError("--seeds, --presets, --orders: nothing is left to run; name one of each")
    task = find_task(made[0].config.model)
    for job in made:
        plan(job.config.for_task(task))  # a mistake shows before anything is run

    def ended(job: Job, problem: str) -> None:
        on_end(job.name, problem)

    with disk_errors(f"--output {output}"):
        failures = run_jobs(made, output / "configs", num_jobs=jobs, on_end=ended)
        return write_tables(made, output, timed=jobs == 1), failures


def write_tables(jobs: Sequence[Job], output: Path, *, timed: bool) -> str:
    """Write bench.md, bench.csv and bench.json from the finished runs; return the first."""
    made = table.rows(finished(jobs))
    text = table.markdown(made, timed=timed)
    write_bytes(output / "bench.md", f"{text}\n".encode())
    write_bytes(output / "bench.csv", table.as_csv(made).encode())
    write_bytes(output / "bench.json", json.dumps(table.plain(made), indent=2).encode())
    return text


def _suite(
    suite: str | Path, output: Path, over: Mapping[str, Any]
) -> Callable[[str], Mapping[str, Any]]:
    """Return preset -> what its runs share; write the model and pictures of a demo."""
    for key in ("preset", "order", "seed", "output"):
        if key in over:
            raise UserError(f"--{key}: is what a bench varies; use --{key}s (or --output DIR)")
    if str(suite) in DEMOS:
        task = str(suite)
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--output: {output} cannot be written to ({error.strerror}); name another folder"
            ) from None
        write_demo(task, output / "demo")
        return lambda preset: merge(demo_values(task, output / "demo", preset), over)
    values = read_yaml(suite)
    for key in ("environment", "preset", "order", "seed", "output"):
        values.pop(key, None)
    merged = merge(values, over)
    return lambda preset: merged
