"""What may be typed: the commands, their options, and overrides of the config among the words.

argparse alone: nothing heavy is imported, so that `kswap --help` answers at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from kswap._version import __version__
from kswap.errors import UserError

DEMOS = ("classification", "segmentation", "detection")
"""As `settings.TASKS`, which is not imported for it: pydantic comes with that."""

_DESCRIPTION = """\
A pretrained vision model learns new classes, forgets the classes you name and retains the rest, \
in one run."""
_OVERRIDES = """\
Every key of the config can be given as --a.b value, for example
  --order FL  --seed 1  --preset paper  --stages.learn.epochs 3  --training.device cpu
--analysis is short for --training.analysis true (what each layer does).
`kswap schema` prints all keys with what they mean, as a JSON Schema."""
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


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the command, its options and, as `overrides`, the words that change the config.

    Raises:
        UserError: a word is wrong.
        SystemExit: help or the version was asked for, and is written.
    """
    parser = _Parser(prog="kswap", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"kswap {__version__}")
    options = _add_commands(parser)
    plain, overrides = split_overrides(list(words))
    arguments, unknown = parser.parse_known_args(plain)
    if unknown:
        lists = "; a list is one word, such as '[red, green]'" if overrides else ""
        options[arguments.command].error(f"unrecognized: {' '.join(unknown)}{lists}")
    arguments.overrides = overrides
    if arguments.command == "audit":
        _take_runs_from_skip(arguments, options["audit"])
    return arguments


def _take_runs_from_skip(arguments: argparse.Namespace, parser: _Parser) -> None:
    """Of `--skip A7 RUN`, all of which argparse gives to --skip, give the folders to `run`."""
    others = [word for word in arguments.skip if not re.fullmatch("A[0-9]+", word)]
    folders = [word for word in others if Path(word).is_dir()]
    arguments.skip = [word for word in arguments.skip if word not in folders]
    arguments.run += map(Path, folders)
    if not arguments.run:
        parser.error("the following arguments are required: run")


def _add_commands(parser: _Parser) -> dict[str, _Parser]:
    """Add every command; return their parsers by name."""
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
    _add_demo(command("demo", "run a swap on what ships with the package", overridable=True))
    evaluate = command("evaluate", "score the saved model of a run again")
    evaluate.add_argument("run", type=Path, help="folder of a finished run")
    _add_audit(
        command("audit", "is it really forgotten? ask the base, the swapped and a reference model")
    )
    report = command("report", "draw report.html, figures/ and README.md of a run again")
    report.add_argument("run", type=Path, help="folder of a finished run; needs no model or data")
    _add_export(command("export", "write the swapped model for deployment"))
    _add_predict(command("predict", "answers of the swapped model on image files"))
    _add_bench(
        command(
            "bench", "compare presets, orders and seeds on one swap, in one table", overridable=True
        )
    )
    command("schema", "print the JSON Schema of the config")
    return options


def _add_demo(command: _Parser) -> None:
    command.add_argument("task", nargs="?", choices=DEMOS, default="classification")
    command.add_argument(
        "--output",
        type=Path,
        help="run folder (default runs/demo; of the scene demos runs/demo-segmentation, "
        "runs/demo-detection)",
    )
    command.add_argument(
        "--audit",
        choices=("none", *_AUDIT_LEVELS),
        default="quick",
        help="how deeply to ask whether it is really forgotten (default quick)",
    )


def _add_audit(command: _Parser) -> None:
    command.add_argument(
        "run",
        type=Path,
        nargs="*",
        help="folder of a finished run; several of one config with other seeds also get A4, which "
        "takes 5 of them, best of 5 bases, and 5 references",
    )
    command.add_argument(
        "--level",
        choices=_AUDIT_LEVELS,
        default="quick",
        help="quick: answers and features; standard: also rounding and relearning; strict: also "
        "shadow models (default quick)",
    )
    command.add_argument(
        "--reference",
        metavar="PATH",
        action="append",
        default=[],
        help="model that never saw the forget data (default: RUN-reference, if there is one); may "
        "be given again, for A4",
    )
    command.add_argument(
        "--reference-level",
        choices=("R1", "R2"),
        help="R1: trained from scratch with the base's budget; R2: the same pretrained backbone "
        "fine-tuned (default)",
    )
    command.add_argument(
        "--train-reference",
        action="store_true",
        help="fine-tune the backbone that --reference names on retain and learn first (R2)",
    )
    command.add_argument(
        "--skip",
        nargs="+",
        action="extend",
        metavar="ID",
        default=[],
        help="audits to leave out, such as A7, the longest; the verdict says so",
    )
    command.add_argument("--seed", type=int, default=0, help="of all that is drawn (default 0)")


def _add_export(command: _Parser) -> None:
    command.add_argument("run", type=Path, help="folder of a finished run")
    command.add_argument(
        "--to", type=Path, required=True, help="folder to write; must not exist yet"
    )
    command.add_argument("--onnx", action="store_true", help="also write model.onnx")
    command.add_argument(
        "--drop-forgotten",
        action="store_true",
        help="remove the forgotten classes' rows from the head",
    )


def _add_predict(command: _Parser) -> None:
    command.add_argument("run", type=Path, help="folder of a finished run, or of an exported model")
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    command.add_argument("--top", type=int, default=3, help="answers per image (default 3)")
    command.add_argument("--to", type=Path, help="folder for pictures with the answers drawn on")


def _add_bench(command: _Parser) -> None:
    command.add_argument(
        "suite",
        help=f"a YAML config, or {', '.join(DEMOS[:-1])} or {DEMOS[-1]}: what ships with kswap",
    )
    command.add_argument(
        "--output", type=Path, default=Path("runs/bench"), help="folder of all runs"
    )
    for name, chosen in _BENCH_LISTS.items():
        kind = int if name == "seeds" else str
        command.add_argument(
            f"--{name}", nargs="+", type=kind, default=chosen, help=f"default: {chosen}"
        )
    command.add_argument(
        "--jobs",
        type=int,
        help="runs side by side (default 1; with --backend ray one for each GPU, or for each node "
        "where there is none)",
    )
    command.add_argument(
        "--backend",
        choices=("processes", "ray"),
        default="processes",
        help="where they run: on this machine, or on a Ray cluster whose nodes share the folders",
    )
    command.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="a Ray cluster, such as HOST:6379 or auto (default: one of this machine alone)",
    )
    command.add_argument(
        "--references",
        nargs="+",
        default=[],
        metavar="PATH",
        help="models that never saw the forget data, to compare with (a demo has its own)",
    )
    command.add_argument(
        "--reference-level",
        choices=("R1", "R2"),
        help="what they are, see `kswap audit --help` (default R2)",
    )
    command.add_argument(
        "--train-references",
        action="store_true",
        help="fine-tune the backbone that --references names for each seed first (R2)",
    )
    command.add_argument(
        "--steps",
        nargs=2,
        type=int,
        metavar=("LEARN", "FORGET"),
        help="all steps of each kind in any order, shared out among its stages (default: as the "
        "preset says for each stage)",
    )
    command.add_argument(
        "--audit",
        choices=("none", *_AUDIT_LEVELS),
        default="none",
        help="audit every arm, its seeds together; 5 seeds and references have A4 (default none)",
    )


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
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
