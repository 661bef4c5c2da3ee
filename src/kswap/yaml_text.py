"""From text to plain values: YAML files, command-line overrides, and one mapping over another."""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kswap.errors import UserError

_DATA_PATH = re.compile(r"(learn|forget|retain)\.data(\.\w+)*")
MISCAST = (ValueError, AttributeError, LookupError)
"""What PyYAML raises for a tag whose text does not fit it, such as !!timestamp x or !!bool x."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: missing, unreadable, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; name a YAML config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name a YAML text file") from None
    except (yaml.YAMLError, RecursionError, *MISCAST) as error:
        raise UserError(f"{path}: not valid YAML ({one_line(str(error))}); mend the file") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values; see `kswap schema`")
    return values


class _Loader(yaml.SafeLoader):
    """YAML as people write it.

    1e-3 is a number (YAML 1.1 wants 1.0e-3); a key given twice is an error.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Lay what `<<` names under the node's own keys, of which none may stand twice.

        Keys are looked at once, before: a key that goes over one of `<<` stands twice behind it.
        """
        if id(node) not in self._checked:
            self._checked.add(id(node))
            self._check_keys(node)
        super().flatten_mapping(node)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                continue  # no key: refused when it is constructed
            if key in lines:
                raise yaml.YAMLError(
                    f"key {str(key)!r} stands twice, in line {lines[key]} and in line {line}"
                )
            lines[key] = line


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid over it, key by key in depth; lists are replaced whole."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Turn `--a.b value` or `--a.b=value` words into a nested mapping; values are read as YAML.

    Raises:
        UserError: a word is not an option, or an option has no value.
    """
    overrides: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise UserError(f"{word!r}: an override is written --key value; see `kswap run --help`")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{word}: has no value; write {word} VALUE")
            value = rest.pop(0)
        try:
            parsed = yaml.load(value, Loader=_Loader)
        except (yaml.YAMLError, RecursionError, *MISCAST):
            parsed = value
        of_data = _DATA_PATH.fullmatch(key) and not isinstance(parsed, dict | list)
        if key in ("order", "model", "output") or (of_data and value != "null"):
            parsed = value  # never a number, a boolean or cut off at a #
        here: dict[str, Any] = overrides
        *path, last = key.split(".")
        for part in path:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                raise UserError(
                    f"{word}: {part!r} has a value of its own already; give one or the other"
                )
        here[last] = parsed
    return overrides


def one_line(text: str, limit: int = 200) -> str:
    """Return `text` on one line, cut off at `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
