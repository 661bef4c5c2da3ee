"""The command line: parse, call the library, print. Nothing heavy is imported before it is needed.

What may be typed is in `options.py`.

Exit status: 0; 2 for a user's mistake, with one line that says the value, the rule and the fix; 1
for a bug, with a traceback; 143 after SIGTERM, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kswap.errors import Terminated, UserError, printable
from kswap.options import DEMOS, parse
from kswap.ranks import rank
from kswap.signals import Interrupts, end_with_parent

if TYPE_CHECKING:
    from kswap.config import SwapConfig
    from kswap.swapping import SwapResult

_AGAIN = "nothing is half-written, give the same command again"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    with_traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    trains = words[:1] in (["run"], ["demo"], ["bench"])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        with Interrupts().installed():
            end_with_parent()
            _dispatch(words)
            _flush()
        return 0
    except UserError as error:
        if with_traceback:
            traceback.print_exc()
        _say(f"kswap: error: {printable(str(error))}")
        return 2
    except Terminated as stop:
        goes_on = "the state is saved, the same command goes on"
        _say(f"kswap: stopped by SIGTERM; {goes_on if trains else _AGAIN}")
        return int(str(stop.code))
    except KeyboardInterrupt:
        goes_on = "the same command goes on from the last checkpoint"
        _say(f"kswap: interrupted; {goes_on if trains else _AGAIN}")
        return 130
    except BrokenPipeError:
        # what Python would write at its end goes nowhere, without a complaint
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception:
        traceback.print_exc()
        return 1


def _dispatch(words: list[str]) -> None:
    arguments = parse(words)
    actions: dict[str, Callable[[argparse.Namespace], None]] = {
        "run": _run,
        "demo": _demo,
        "evaluate": _evaluate,
        "audit": _audit,
        "report": _report,
        "export": _export,
        "predict": _predict,
        "bench": _bench,
        "schema": _schema,
    }
    actions[arguments.command](arguments)


def _run(arguments: argparse.Namespace) -> None:
    from kswap.config import SwapConfig

    _swap(SwapConfig.from_yaml(arguments.config, arguments.overrides))


def _demo(arguments: argparse.Namespace) -> None:
    from kswap.demo import demo_config
    from kswap.settings import forgets

    suffix = "" if arguments.task == DEMOS[0] else f"-{arguments.task}"
    output = arguments.output or Path(f"runs/demo{suffix}")
    config = demo_config(arguments.task, output, arguments.overrides)
    answer = _swap(config).results["audit"]
    if rank() or arguments.audit == "none" or not forgets(config.order):
        return
    if answer.get("level") != arguments.audit:
        from kswap.auditing import audit

        answer = audit(config.output, level=arguments.audit, on_note=_note)
    verdict = answer["verdict"]
    _print(f"verdict of the audits ({arguments.audit}): {verdict['level']}; {verdict['reason']}")


def _note(note: str) -> None:
    if rank() == 0:
        _say(f"kswap: {printable(note)}")


def _swap(config: SwapConfig) -> SwapResult:
    from kswap.plan import plan
    from kswap.settings import forgets

    plan(config)  # a mistake in the stages shows before anything heavy is imported
    _quieten()
    from kswap.report.table import show
    from kswap.swapping import swap

    result = swap(config, on_note=_note)
    if rank():  # the first process tells
        return result
    if result.resumed and not result.notes:
        _say("kswap: this run was begun before; its results:")
    classes = result.results["classes"]
    done = "forgot" if forgets(config.order) else "untouched"
    for verb, role in (("learned", "learn"), (done, "forget"), ("retained", "retain")):
        _print(f"{verb:8} {', '.join(map(printable, classes[role])) or '–'}")
    show(result.results)
    seconds, run_dir = result.results["seconds"]["total"], result.run_dir
    _print(
        f"{seconds:.0f} s; the model is in {run_dir / 'model'}, all numbers in "
        f"{run_dir / 'results.json'},"
    )
    quoted = shlex.quote(str(run_dir))  # to be pasted
    _print(f"the model card in {run_dir / 'README.md'}; try: kswap predict {quoted} IMAGE")
    _print(f"what happened, with pictures: {run_dir / 'report.html'} and {run_dir / 'figures'}")
    return result


def _evaluate(arguments: argparse.Namespace) -> None:
    _quieten()
    from kswap.evaluation import same_scores
    from kswap.report.table import show
    from kswap.run_folder import read_results
    from kswap.swapping import evaluate

    results = read_results(arguments.run)
    scored = evaluate(arguments.run)
    show({**results, "stages": [{"name": "saved model", **scored}]})
    bits = (results.get("base") or {}).get("weights", "fp32")
    if bits != "fp32":
        _note(f"scored is RUN/model, in full precision; the run's stages were scored in {bits}")
    last = results.get("saved") or results["stages"][-1]
    same = same_scores(scored["scores"], last["scores"])
    _print("equal to results.json" if same else "NOT equal to results.json")


def _audit(arguments: argparse.Namespace) -> None:
    _quieten()
    from kswap.auditing import audit, audit_runs
    from kswap.report.audit_tables import show_audit

    runs, references = arguments.run, arguments.reference
    given = {
        name: getattr(arguments, name)
        for name in ("level", "reference_level", "train_reference", "skip", "seed")
    }
    if len(runs) == 1 and len(references) < 2:
        answers = [audit(runs[0], reference=(references or [None])[0], on_note=_note, **given)]
    else:
        answers = audit_runs(runs, references=references, on_note=_note, **given)
    for run, answer in zip(runs, answers, strict=True):
        if len(runs) > 1:
            _print(f"\n{printable(str(run))}")
        show_audit(answer)
        seconds = answer["seconds"]["total"]
        _print(f"{seconds:.0f} s; all numbers are in {run / 'results.json'} under audit")


def _report(arguments: argparse.Namespace) -> None:
    from kswap.report.page import draw_report

    _print(str(draw_report(arguments.run)))


def _export(arguments: argparse.Namespace) -> None:
    _quieten()
    from kswap.exporting import export

    written = export(
        arguments.run, arguments.to, onnx=arguments.onnx, drop_forgotten=arguments.drop_forgotten
    )
    for path in written:
        _print(str(path))


def _predict(arguments: argparse.Namespace) -> None:
    if arguments.top < 1:
        raise UserError(f"--top: {arguments.top} answers cannot be shown; give 1 or more")
    _quieten()
    from kswap.predicting import predict_images

    answered = predict_images(arguments.run, arguments.images, top=arguments.top, to=arguments.to)
    for path, answers in answered:
        shown = ", ".join(f"{printable(label)} {100 * share:.1f} %" for label, share in answers)
        _print(f"{printable(str(path))}: {shown}")


def _bench(arguments: argparse.Namespace) -> None:
    _quieten()
    from kswap.benching.bench import bench

    text, failures = bench(
        arguments.suite,
        arguments.output,
        presets=arguments.presets,
        orders=arguments.orders,
        variants=arguments.variants,
        seeds=arguments.seeds,
        jobs=arguments.jobs,
        backend=arguments.backend,
        ray_address=arguments.ray_address,
        references=arguments.references,
        reference_level=arguments.reference_level,
        train_references=arguments.train_references,
        audit=None if arguments.audit == "none" else arguments.audit,
        steps=dict(zip(("learn", "forget"), arguments.steps, strict=True))
        if arguments.steps
        else None,
        overrides=arguments.overrides,
        on_end=lambda name, problem: _say(f"kswap: {name}: {printable(problem) or 'done'}"),
    )
    _print(text)
    _print(f"written to {arguments.output / 'bench.md'}, bench.csv and bench.json")
    if failures:
        raise UserError(
            f"{len(failures)} failed, such as {failures[0]}; mend the cause and give the same "
            "command again, which goes on"
        )


def _schema(arguments: argparse.Namespace) -> None:
    import json

    from kswap.config import json_schema

    _print(json.dumps(json_schema(), indent=2))


def _quieten() -> None:
    """Silence the libraries' own bars and advice: what matters is said by kswap."""
    import logging as standard

    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # PEFT imports it where it is installed; it advises on kernels that no fp32 run uses.
    standard.getLogger("bitsandbytes").setLevel(standard.ERROR)
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def _print(text: str) -> None:
    if sys.stdout is not None and rank() == 0:  # None: closed by who started us
        with _output_errors():
            sys.stdout.write(text + "\n")


def _flush() -> None:
    if sys.stdout is not None:
        with _output_errors():
            sys.stdout.flush()


@contextlib.contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"standard output cannot be written to ({error.strerror}); send it elsewhere"
        ) from None


def _say(text: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
