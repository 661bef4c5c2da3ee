"""The door of `kswap bench`: a suite, its arms, the runs that are missing, and the table files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from kswap.audits.findings import LEVELS, Level
from kswap.audits.subjects import ReferenceLevel
from kswap.benching import references as referring
from kswap.benching import table
from kswap.benching.arms import make_arms, matched_steps
from kswap.benching.audits import audit_arms
from kswap.benching.execution import Job, RunAll, check_runs, finished, make_jobs, run_jobs
from kswap.benching.processes import in_processes
from kswap.benching.ray_cluster import check_ray, on_ray
from kswap.benching.suites import suite_values
from kswap.errors import UserError
from kswap.files import disk_errors, write_bytes
from kswap.models.loading import find_task
from kswap.plan import plan
from kswap.yaml_text import merge, parse_overrides

Backend = Literal["processes", "ray"]


def bench(
    suite: str | Path,
    output: Path,
    *,
    presets: Iterable[str] = ("default", "paper"),
    orders: Iterable[str] = ("LF", "FL"),
    variants: Iterable[str] = ("full",),
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int | None = None,
    backend: Backend = "processes",
    ray_address: str | None = None,
    references: Sequence[str | Path] = (),
    reference_level: ReferenceLevel | None = None,
    train_references: bool = False,
    audit: Level | None = None,
    steps: Mapping[str, int] | None = None,
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
        jobs: runs side by side. None: one; on a Ray cluster one for each GPU, or for each node
            where there is none.
        backend: `processes` of this machine, or a `ray` cluster whose nodes share the output folder
            and the data.
        ray_address: of a Ray cluster, such as `HOST:6379` or `auto`. None: one of this machine
            alone, begun for the runs.
        references: hub ids or folders of models that never saw the forget data; a demo has its own.
        reference_level: R1, trained from scratch with the base's budget, or R2 (default).
        train_references: fine-tune the one backbone that `references` names for each seed, and
            compare with these (R2) in scores and seconds.
        audit: level at which every arm is audited, its seeds together; A4 takes 5 seeds and 5
            references, so that `train_references` is wanted. None: not audited here.
        steps: all steps of `learn` and of `forget` in any order, shared out among its stages, so
            that orders are compared at the same length. None: as the presets say.
        overrides: words such as `--training.device cpu`, for every run.
        on_end: called with the name of each run that ended, and what went wrong ("": nothing).

    Returns:
        The table in Markdown, and a line for each run that failed.

    Raises:
        UserError: a value is wrong; nothing was run.
    """
    run_all = _runner(backend, jobs, ray_address)
    timed = backend == "processes" and jobs in (None, 1)
    output = output.expanduser().resolve()
    arms = make_arms(presets, orders, variants)
    lengths = {arm: matched_steps(arm.order, steps) if steps else {} for arm in arms}
    values = suite_values(suite, output, parse_overrides(overrides))
    made = make_jobs(lambda arm: merge(values(arm), lengths[arm]), arms, seeds, output / "runs")
    if not made:
        raise UserError("--seeds, --presets, --orders: nothing is left to run; name one of each")
    task = find_task(made[0].config.model)
    if audit is not None and audit not in LEVELS:
        raise UserError(f"--audit: {audit!r} is none; take one of {', '.join(LEVELS)}, or none")
    if reference_level not in (None, "R1", "R2"):
        raise UserError(f"--reference-level: {reference_level!r} is none; take R1 or R2")
    if train_references and reference_level == "R1":
        raise UserError("--reference-level: R1 was trained elsewhere; what is fine-tuned is R2")
    named = [_absolute(source) for source in references]
    referring.check_sources(named, task, train=train_references)
    for job in made:
        plan(job.config.for_task(task))  # a mistake shows before anything is run
    check_runs(made)  # outside of what writes a table of the runs that are there

    def ended(job: Job, problem: str) -> None:
        on_end(job.name, problem)

    tables = _Tables(made, output, timed)
    with disk_errors(f"--output {output}"), tables.kept():
        failures = run_jobs(made, output / "configs", run_all=run_all, on_end=ended)
        runs = referring.runs_by_seed([job.config.output for job in made])
        try:
            sources = reference_sources(runs, named, output, train=train_references, on_end=on_end)
            level: ReferenceLevel = reference_level or "R2"
            tables.yardsticks = referring.measure(runs, sources, level, output / "references.json")
            tables.why = table.NO_REFERENCE
            if audit is not None:
                tables.write()  # audits may take hours
                failures += audit_arms(
                    made,
                    sources,
                    output / "audits",
                    level=audit,
                    reference_level=level,
                    run_all=run_all,
                    on_end=on_end,
                )
        except UserError as error:
            tables.why = f"the reference cannot be used ({error})"
            failures.append(str(error))
        return tables.write(), failures


@dataclass
class _Tables:
    """The table files of a bench, written as far as it has come."""

    jobs: Sequence[Job]
    output: Path
    timed: bool
    yardsticks: Mapping[int, table.Yardstick] = field(default_factory=dict)
    why: str = "the bench was stopped before references were measured"
    """There is no yardstick."""

    def write(self) -> str:
        """Write them from the finished runs; return the one in Markdown."""
        return write_tables(self.jobs, self.output, self.yardsticks, timed=self.timed, why=self.why)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Write them also where the block is left early, by SIGTERM, Ctrl-C or an error."""
        try:
            yield
        except BaseException:
            if any(job.results_path.exists() for job in self.jobs):
                with contextlib.suppress(UserError, OSError):  # what ended the block is told
                    self.write()
            raise


def _runner(backend: str, jobs: int | None, ray_address: str | None) -> RunAll:
    """Return what runs the commands of a bench.

    Raises:
        UserError: a value is wrong, or Ray is not installed.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: {jobs} processes cannot run anything; give 1 or more")
    if backend not in get_args(Backend):
        raise UserError(
            f"--backend: {backend!r} is none; take one of {', '.join(get_args(Backend))}"
        )
    if backend == "ray":
        check_ray()
        return on_ray(ray_address, jobs)
    if ray_address is not None:
        raise UserError(
            f"--ray-address: {ray_address!r} is used by --backend ray alone; add that, or leave it "
            "out"
        )
    return in_processes(jobs or 1)


def reference_sources(
    runs: Mapping[int, Path],
    named: Sequence[str],
    output: Path,
    *,
    train: bool = False,
    on_end: Callable[[str, str], None] = lambda name, problem: None,
) -> dict[int, list[str]]:
    """Return seed -> its references: trained, named, or those of the demo."""
    if train:
        trained = referring.train_missing(runs, named[0], output / "references", on_end=on_end)
        return {seed: [folder] for seed, folder in trained.items()}
    demo = output / "demo-reference"
    of_all = list(named) or ([str(demo)] if (demo / "config.json").is_file() else [])
    return dict.fromkeys(runs, of_all)


def _absolute(source: str | Path) -> str:
    """Return a folder's absolute path; anything else, a hub id, as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else str(source)


def write_tables(
    jobs: Sequence[Job],
    output: Path,
    yardsticks: Mapping[int, table.Yardstick],
    *,
    timed: bool,
    why: str = table.NO_REFERENCE,
) -> str:
    """Write bench.md, bench.csv and bench.json from the finished runs; return the first."""
    made = table.rows(finished(jobs), yardsticks, timed=timed, why=why)
    text = table.markdown(made, timed=timed)
    if yardsticks:
        text = f"{text}\n\n{table.describe(yardsticks)}"
    write_bytes(output / "bench.md", f"{text}\n".encode())
    write_bytes(output / "bench.csv", table.as_csv(made).encode())
    write_bytes(output / "bench.json", json.dumps(table.plain(made), indent=2).encode())
    return text
