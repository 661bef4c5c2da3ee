"""Class names as people write them, matched to the labels of a model.

ImageNet models label their rows "tench, Tinca tinca"; folders say `great_white_shark`. A name is
matched exactly first; only when no label is the same, letter case, separators and the
comma-separated synonyms are set aside. Whatever fits more than one row is refused, never guessed:
forgetting the wrong class cannot be undone.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

from kswap.data.text import listed, one_line
from kswap.errors import NONE_IS_CLOSE, UserError, closest

_SEPARATORS = re.compile(r"[\s_\-,]+")
_UNNAMED = re.compile(r"LABEL_\d+")


def plain(name: str) -> str:
    """Return `name` without letter case, separators and Unicode variants (as macOS has them)."""
    return _SEPARATORS.sub("", unicodedata.normalize("NFKC", name).casefold())


class LabelIndex:
    """The labels of a model (or the classes of a source), ready for many look-ups."""

    def __init__(self, id2label: Mapping[int, str]) -> None:
        self.id2label = {int(key): str(label) for key, label in id2label.items()}
        self._exact: dict[str, set[int]] = defaultdict(set)
        self._loose: dict[str, set[int]] = defaultdict(set)
        for class_id, label in self.id2label.items():
            self._exact[label].add(class_id)
            for form in {plain(label), *map(plain, label.split(","))} - {""}:
                self._loose[form].add(class_id)

    def find(self, name: str) -> tuple[int, ...]:
        """Return every class that `name` may mean: none, one, or several when it is ambiguous."""
        found = self._exact.get(name) or self._loose.get(plain(name)) or ()
        return tuple(sorted(found))

    def match(self, name: str, *, where: str = "") -> int:
        """Return the class that `name` means.

        Raises:
            UserError: no class, or more than one, has this name.
        """
        found = self.find(name)
        if len(found) == 1:
            return found[0]
        start = f"{where}: " if where else ""
        if found:
            rows = listed(f"{self.id2label[i]!r} (row {i})" for i in found)
            fix = (
                "give these rows different labels in the model's config.json"
                if len({self.id2label[i] for i in found}) == 1
                else "write the whole label"
            )
            raise UserError(f"{start}{one_line(name)!r} is ambiguous, it fits {rows}; {fix}")
        raise UserError(f"{start}{self._unknown(name)}")

    def _unknown(self, name: str) -> str:
        shown = one_line(name)
        if self.id2label and all(_UNNAMED.fullmatch(label) for label in self.id2label.values()):
            return (
                f"{shown!r} is not a class of the model, whose labels have no names (LABEL_0 …); "
                "write the names into id2label of the model's config.json"
            )
        near = closest(name, self.names())
        if near == NONE_IS_CLOSE:
            return (
                f"{shown!r} is not a class of the model; name one of its classes: "
                f"{listed(map(repr, self.id2label.values()))}"
            )
        return f"{shown!r} is not a class of the model; closest: {near}"

    def names(self) -> Iterable[str]:
        """Return the labels and their synonyms."""
        for label in self.id2label.values():
            yield label
            if "," in label:
                yield from (part.strip() for part in label.split(","))


def match_class(name: str, id2label: Mapping[int, str]) -> int:
    """Return the row of the head that `name` means.

    Raises:
        UserError: no row, or more than one, has this name.
    """
    return LabelIndex(id2label).match(name)
