"""match_class: exact first, then tolerant; ambiguous and unknown names are refused."""

from __future__ import annotations

import pytest

from kswap.data import match_class
from kswap.errors import UserError

IMAGENET = {
    0: "tench, Tinca tinca",
    1: "great white shark, white shark, man-eater",
    2: "Cardigan, Cardigan Welsh corgi",
    3: "cardigan",
    4: "crane",
    5: "crane",
    6: "maillot",
    7: "maillot, tank suit",
    8: "Café au lait",
    9: "tiger",
    10: "tiger cat",
}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("tench, Tinca tinca", 0),
        ("tench", 0),
        ("TENCH", 0),
        ("tinca_tinca", 0),
        ("tench_tinca_tinca", 0),
        ("great_white_shark", 1),
        ("White-Shark", 1),
        ("man eater", 1),
        ("cardigan", 3),
        ("Cardigan Welsh corgi", 2),
        ("maillot", 6),
        ("tank suit", 7),
        ("Cafe\u0301 au lait", 8),
        ("tiger", 9),
        ("Tiger_Cat", 10),
    ],
)
def test_match(name: str, row: int) -> None:
    assert match_class(name, IMAGENET) == row


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crane", r"ambiguous.*row 4.*row 5.*different labels"),
        ("Cardigan", r"ambiguous.*row 2.*row 3.*whole label"),
        ("tensh", r"'tensh' is not a class of the model; closest: .*'tench'"),
        ("zzzzqqq", r"name one of its classes: 'tench, Tinca tinca', "),
        ("", r"is not a class"),
        ("a\nb", r"'a b' is not a class"),
    ],
)
def test_refusals(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        match_class(name, IMAGENET)
    assert "\n" not in str(error.value)


def test_labels_without_names() -> None:
    with pytest.raises(UserError, match=r"have no names"):
        match_class("cat", {0: "LABEL_0", 1: "LABEL_1"})
    assert match_class("LABEL_1", {0: "LABEL_0", 1: "LABEL_1"}) == 1
