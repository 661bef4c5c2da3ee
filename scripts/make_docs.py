"""Make docs/config.md, reference.md and families.md from the code, so that they cannot disagree.

    python scripts/make_docs.py [--check]

`--check` writes nothing and fails where a page is out of date.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

import yaml
from families import families_page
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import kswap
from kswap import config, presets, settings

DOCS = Path(__file__).parents[1] / "docs"


def type_name(annotation: Any) -> str:
    """Return a short name of a field's type."""
    annotation = plain_type(annotation)
    text = (
        str(annotation)
        if typing.get_origin(annotation)
        else getattr(annotation, "__name__", str(annotation))
    )
    for noise in ("typing.", "kswap.config.", "kswap.settings.", "pathlib.", "<class '", "'>"):
        text = text.replace(noise, "")
    return text.replace("NoneType", "None").replace("|", "\\|")


def plain_type(annotation: Any) -> Any:
    """Take tags and discriminators out, which say how a value is read and have addresses."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated and any(
        type(a).__name__ in ("Tag", "Discriminator") for a in arguments[1:]
    ):
        return plain_type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(plain_type, arguments))]  # noqa: UP007 - built from a list
    return annotation


def default(field: Any) -> str:
    """Return what holds when the key is left out."""
    if field.default_factory is not None:
        return "see below" if issubclass_of_model(field.annotation) else "`{}`"
    if field.default is PydanticUndefined:
        return "from the preset" if field.annotation is not str else "required"
    return f"`{field.default}`".replace("|", "\\|")


def issubclass_of_model(annotation: Any) -> bool:
    """Whether a field holds another section of the config."""
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


def config_page() -> str:
    """Return docs/config.md."""
    models = [config.SwapConfig]
    models += [
        m
        for m in vars(settings).values()
        if issubclass_of_model(m) and m.__module__ == "kswap.settings" and m.model_fields
    ]
    parts = [
        "# Config\n\nMade by `make docs` from `src/kswap/config.py` and `settings.py`. "
        "Every key can be given in the YAML file or as `--a.b value`."
        " `kswap schema` prints the same as a JSON Schema for editors.\n"
    ]
    for model in models:
        parts.append(f"## {model.__name__}\n\n{inspect.getdoc(model)}\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|")
        for name, field in model.model_fields.items():
            if field.description is None:
                raise SystemExit(f"{model.__name__}.{name} has no description")
            meaning = " ".join(field.description.split()).replace("|", "\\|")
            parts.append(
                f"| `{name}` | {type_name(field.annotation)} | {default(field)} | {meaning} |"
            )
        parts.append("")
    parts.append(
        "## Presets\n\nValues with source and reason: `src/kswap/presets/`. Those of methods to "
        f"compare with ({', '.join(f'`{name}`' for name in presets.BASELINES)}) are described in "
        "method.md.\n"
    )
    for name, by_task in presets.PRESETS.items():
        if name in presets.BASELINES:
            continue
        for task, values in by_task.items():
            dumped = yaml.dump(values, Dumper=Plain, sort_keys=False)
            parts.append(f"### {name}, {task}\n\n```yaml\n{dumped}```\n")
    return "\n".join(parts)


class Plain(yaml.SafeDumper):
    """YAML without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write shared values out each time."""
        return True


def signature(value: Any) -> str:
    """Return a signature without addresses of default functions, which differ from run to run."""
    return re.sub(r"<function .*? at 0x[0-9a-f]+>", "...", str(inspect.signature(value)))


def reference_page() -> str:
    """Return docs/reference.md."""
    parts = [
        "# Reference\n\nMade by `make docs` from the docstrings of what `import kswap` offers.\n"
    ]
    for name in sorted(set(kswap.__all__) - {"__version__"}):
        value = getattr(kswap, name)
        head = f"class {name}" if inspect.isclass(value) else f"{name}{signature(value)}"
        parts.append(
            f"## kswap.{name}\n\n```python\n{head.replace(chr(39), '')}\n```\n\n"
            f"```text\n{inspect.getdoc(value)}\n```\n"
        )
        if inspect.isclass(value):
            for member, function in vars(value).items():
                if member.startswith("_") or not inspect.getdoc(function):
                    continue
                if hasattr(BaseModel, member):  # what pydantic adds to the class
                    continue
                if isinstance(function, classmethod | property) or inspect.isfunction(function):
                    parts.append(
                        f"### {name}.{member}\n\n```text\n{inspect.getdoc(function)}\n```\n"
                    )
    return "\n".join(parts)


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = 0
    pages = {
        "config.md": config_page(),
        "reference.md": reference_page(),
        "families.md": families_page(),
    }
    for name, text in pages.items():
        path = DOCS / name
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            print(f"{path} is out of date; run `make docs`", file=sys.stderr)
            stale = 1
        elif not check:
            path.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
