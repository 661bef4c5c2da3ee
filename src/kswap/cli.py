"""The command line: parse, call the library, print. Nothing heavy is imported before it is needed.

Exit status: 0; 2 for a user's mistake, with one line that says the value, the rule and the fix; 1
for a bug, with a traceback; 143 after SIGTERM, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kswap._version import __version__
from kswap.errors import Terminated, UserError, printable
from kswap.ranks import rank
from kswap.signals import Interrupts

if TYPE_CHECKING:
    from kswap.config import SwapConfig
    from kswap.swapping import SwapResult

DEMOS = ("classification", "segmentation", "detection")

_DESCRIPTION = """\
A pretrained vision model learns new classes, forgets the classes you name and retains the rest, \
in one run."""
_OVERRIDES = """\
Every key of the config can be given as --a.b value, for example
  --order FL  --seed 1  --preset paper  --stages.learn.epochs 3  --training.device cpu
--analysis is short for --training.analysis true (what each layer does).
`kswap schema` prints all keys with what they mean, as a JSON Schema."""


_AGAIN = "nothing is half-written, give the same command again"
_AUDIT_LEVELS = ("quick", "standard", "strict")
_BENCH_LISTS: dict[str, list[str] | list[int]] = {
    "presets": ["default", "paper"],
    "orders": ["LF", "FL"],
    "variants": ["full"],
    "seeds": [0, 1, 2],
}
_BENCH_OPTIONS = frozenset(
    f"--{name}"
    for name in (
        *(*_BENCH_LISTS, "output", "jobs", "backend", "ray-address"),
        *("references", "reference-level", "train-references", "audit", "steps"),
    )
)
"""Options of bench that are no overrides of the config."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


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
            status = _dispatch(words)
            _flush()
        return status
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


def _dispatch(words: list[str]) -> int:
    parser = _Parser(prog="kswap", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"kswap {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    options: dict[str, _Parser] = {}

    def command(name: str, text: str, *, overridable: bool = False) -> _Parser:
        options[name] = commands.add_parser(
            name,
            help=text,
            description=text,
            allow_abbrev=False,
            epilog=_OVERRIDES if overridable else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        options[name].add_argument(
            "--traceback", action="store_true", help="show the traceback of a user's mistake too"
        )
        return options[name]

    run = command("run", "run the swap that a YAML file describes", overridable=True)
    run.add_argument("config", type=Path, help="YAML file, such as swap.yaml")
    demo = command("demo", "run a swap on what ships with the package", overridable=True)
    demo.add_argument("task", nargs="?", choices=DEMOS, default="classification")
    demo.add_argument(
        "--output",
        type=Path,
        help="run folder (default runs/demo; of the scene demos runs/demo-segmentation, "
        "runs/demo-detection)",
    )
    demo.add_argument(
        "--audit",
        choices=("none", *_AUDIT_LEVELS),
        default="quick",
        help="how deeply to ask whether it is really forgotten (default quick)",
    )
    evaluate = command("evaluate", "score the saved model of a run again")
    evaluate.add_argument("run", type=Path, help="folder of a finished run")
    audit = command(
        "audit", "is it really forgotten? ask the base, the swapped and a reference model"
    )
    audit.add_argument(
        "run",
        type=Path,
        nargs="+",
        help="folder of a finished run; several of one config with other seeds also get A4, which "
        "takes 5 of them, best of 5 bases, and 5 references",
    )
    audit.add_argument(
        "--level",
        choices=_AUDIT_LEVELS,
        default="quick",
        help="quick: answers and features; standard: also rounding and relearning; strict: also "
        "shadow models (default quick)",
    )
    audit.add_argument(
        "--reference",
        metavar="PATH",
        action="append",
        default=[],
        help="model that never saw the forget data (default: RUN-reference, if there is one); may "
        "be given again, for A4",
    )
    audit.add_argument(
        "--reference-level",
        choices=("R1", "R2"),
        help="R1: trained from scratch with the base's budget; R2: the same pretrained backbone "
        "fine-tuned (default)",
    )
    audit.add_argument(
        "--train-reference",
        action="store_true",
        help="fine-tune the backbone that --reference names on retain and learn first (R2)",
    )
    audit.add_argument(
        "--skip",
        nargs="+",
        metavar="ID",
        default=[],
        help="audits to leave out, such as A7, the longest; the verdict says so",
    )
    audit.add_argument("--seed", type=int, default=0, help="of all that is drawn (default 0)")
    report = command("report", "draw report.html, figures/ and README.md of a run again")
    report.add_argument("run", type=Path, help="folder of a finished run; needs no model or data")
    export = command("export", "write the swapped model for deployment")
    export.add_argument("run", type=Path, help="folder of a finished run")
    export.add_argument(
        "--to", type=Path, required=True, help="folder to write; must not exist yet"
    )
    export.add_argument("--onnx", action="store_true", help="also write model.onnx")
    export.add_argument(
        "--drop-forgotten",
        action="store_true",
        help="remove the forgotten classes' rows from the head",
    )
    predict = command("predict", "answers of the swapped model on image files")
    predict.add_argument("run", type=Path, help="folder of a finished run, or of an exported model")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument("--top", type=int, default=3, help="answers per image (default 3)")
    predict.add_argument("--to", type=Path, help="folder for pictures with the answers drawn on")
    bench = command(
        "bench", "compare presets, orders and seeds on one swap, in one table", overridable=True
    )
    bench.add_argument(
        "suite",
        help=f"a YAML config, or {', '.join(DEMOS[:-1])} or {DEMOS[-1]}: what ships with kswap",
    )
    bench.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of all runs")
    for name, chosen in _BENCH_LISTS.items():
        kind = int if name == "seeds" else str
        bench.add_argument(
            f"--{name}", nargs="+", type=kind, default=chosen, help=f"default: {chosen}"
        )
    bench.add_argument(
        "--jobs",
        type=int,
        help="runs side by side (default 1; with --backend ray one for each GPU, or for each node "
        "where there is none)",
    )
    bench.add_argument(
        "--backend",
        choices=("processes", "ray"),
        default="processes",
        help="where they run: on this machine, or on a Ray cluster whose nodes share the folders",
    )
    bench.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="a Ray cluster, such as HOST:6379 or auto (default: one of this machine alone)",
    )
    bench.add_argument(
        "--references",
        nargs="+",
        default=[],
        metavar="PATH",
        help="models that never saw the forget data, to compare with (a demo has its own)",
    )
    bench.add_argument(
        "--reference-level",
        choices=("R1", "R2"),
        help="what they are, see `kswap audit --help` (default R2)",
    )
    bench.add_argument(
        "--train-references",
        action="store_true",
        help="fine-tune the backbone that --references names for each seed first (R2)",
    )
    bench.add_argument(
        "--steps",
        nargs=2,
        type=int,
        metavar=("LEARN", "FORGET"),
        help="all steps of each kind in any order, shared out among its stages (default: as the "
        "preset says for each stage)",
    )
    bench.add_argument(
        "--audit",
        choices=("none", *_AUDIT_LEVELS),
        default="none",
        help="audit every arm, its seeds together; 5 seeds and references have A4 (default none)",
    )
    command("schema", "print the JSON Schema of the config")

    words, overrides = _split_overrides(words)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        lists = "; a list is one word, such as '[red, green]'" if overrides else ""
        options[arguments.command].error(f"unrecognized: {' '.join(unknown)}{lists}")
    actions: dict[str, Callable[[argparse.Namespace, list[str]], None]] = {
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
    actions[arguments.command](arguments, overrides)
    return 0


def _split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Take overrides, `--key value` and `--key=value`, out of a run or demo command.

    A word that begins with two dashes is never a value; one dash may begin one, such as -1e-3.
    """
    own = {
        "run": frozenset[str](),
        "demo": frozenset({"--output", "--audit"}),
        "bench": _BENCH_OPTIONS,
    }
    if not words or words[0] not in own:
        return words, []
    plain, overrides = [words[0]], list[str]()
    rest = words[1:]
    while rest:
        word = rest.pop(0)
        option = word.split("=")[0]
        if not word.startswith("--") or option in own[words[0]] or word in ("--help", "--"):
            plain.append(word)  # what follows an own option is a plain word
            continue
        if word == "--analysis":
            overrides.append("--training.analysis=true")
            continue
        overrides.append(word)
        if "=" not in word and rest and not rest[0].startswith("--"):
            overrides.append(rest.pop(0))
    return plain, overrides


def _run(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from kswap.config import SwapConfig

    _swap(SwapConfig.from_yaml(arguments.config, overrides))


def _demo(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from kswap.demo import demo_config
    from kswap.settings import forgets

    suffix = "" if arguments.task == DEMOS[0] else f"-{arguments.task}"
    output = arguments.output or Path(f"runs/demo{suffix}")
    config = demo_config(arguments.task, output, overrides)
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
    _print(f"the model card in {run_dir / 'README.md'}; try: kswap predict {run_dir} IMAGE")
    _print(f"what happened, with pictures: {run_dir / 'report.html'} and {run_dir / 'figures'}")
    return result


def _evaluate(arguments: argparse.Namespace, overrides: list[str]) -> None:
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


def _audit(arguments: argparse.Namespace, overrides: list[str]) -> None:
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


def _report(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from kswap.report.page import draw_report

    _print(str(draw_report(arguments.run)))


def _export(arguments: argparse.Namespace, overrides: list[str]) -> None:
    _quieten()
    from kswap.exporting import export

    written = export(
        arguments.run, arguments.to, onnx=arguments.onnx, drop_forgotten=arguments.drop_forgotten
    )
    for path in written:
        _print(str(path))


def _predict(arguments: argparse.Namespace, overrides: list[str]) -> None:
    if arguments.top < 1:
        raise UserError(f"--top: {arguments.top} answers cannot be shown; give 1 or more")
    _quieten()
    from kswap.predicting import predict_images

    answered = predict_images(arguments.run, arguments.images, top=arguments.top, to=arguments.to)
    for path, answers in answered:
        shown = ", ".join(f"{printable(label)} {100 * share:.1f} %" for label, share in answers)
        _print(f"{printable(str(path))}: {shown}")


def _bench(arguments: argparse.Namespace, overrides: list[str]) -> None:
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
        overrides=overrides,
        on_end=lambda name, problem: _say(f"kswap: {name}: {printable(problem) or 'done'}"),
    )
    _print(text)
    _print(f"written to {arguments.output / 'bench.md'}, bench.csv and bench.json")
    if failures:
        raise UserError(
            f"{len(failures)} failed, such as {failures[0]}; mend the cause and give the same "
            "command again, which goes on"
        )


def _schema(arguments: argparse.Namespace, overrides: list[str]) -> None:
    import json

    from kswap.config import json_schema

    _print(json.dumps(json_schema(), indent=2))


def _quieten() -> None:
    """Silence the libraries' own bars and advice: what matters is said by kswap."""
    import logging as standard
    import os

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
