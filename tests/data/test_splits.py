"""Splits as pure functions: counts, stability, disjointness."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kswap.data.splits import Cut, Picture, arrange, cut_counts

CUT = Cut(test_fraction=0.2, validation_fraction=0.1, train_fraction=1.0)


def digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.mark.parametrize(
    ("number", "test", "validation", "counts"),
    [
        (1, 0.2, 0.1, (0, 0)),
        (2, 0.2, 0.1, (1, 0)),
        (3, 0.2, 0.1, (1, 1)),
        (3, 0.2, 0.0, (1, 0)),
        (10, 0.2, 0.1, (2, 1)),
        (100, 0.2, 0.1, (20, 10)),
        (10, 0.9, 0.9, (8, 1)),
        (3, 0.99, 0.99, (1, 1)),
        (2, 0.0, 0.1, (0, 0)),
        (3, 0.0, 0.1, (0, 1)),
        (10, 0.0, 0.0, (0, 0)),
    ],
)
def test_counts(number: int, test: float, validation: float, counts: tuple[int, int]) -> None:
    assert cut_counts(number, Cut(test, validation, 1.0)) == counts


@given(number=st.integers(2, 400), test=st.floats(0.001, 0.99), validation=st.floats(0, 0.99))
def test_counts_leave_something_for_everyone(number: int, test: float, validation: float) -> None:
    num_test, num_validation = cut_counts(number, Cut(test, validation, 1.0))
    assert num_test >= 1
    assert num_validation >= (number >= 3 and validation > 0)
    assert number - num_test - num_validation >= 1


pictures = st.lists(
    st.builds(
        Picture,
        role=st.sampled_from(["learn", "forget", "retain"]),
        split=st.sampled_from(["train", "train", "train", "validation", "test"]),
        class_id=st.integers(0, 3),
        digest=st.integers(0, 40).map(digest),
    ),
    max_size=80,
)


@given(pictures=pictures, seed=st.integers(0, 5), fraction=st.floats(0.01, 1), data=st.data())
def test_splits_are_disjoint_and_do_not_depend_on_order(
    pictures: list[Picture], seed: int, fraction: float, data: st.DataObject
) -> None:
    cuts = {
        "learn": Cut(0.2, 0.1, 1.0),
        "forget": Cut(0.0, 0.1, fraction),
        "retain": Cut(0.0, 0.0, fraction),
    }
    result = arrange(pictures, cuts, seed=seed)
    held = {
        split: {p.digest for p, s in zip(pictures, result.splits, strict=True) if s == split}
        for split in ("train", "validation", "test")
    }
    assert not held["train"] & held["test"]
    assert not held["train"] & held["validation"]
    assert not held["validation"] & held["test"]
    used = [
        (p.role, p.class_id, p.digest) for p, s in zip(pictures, result.splits, strict=True) if s
    ]
    assert len(set(used)) == len(used)
    left_out = result.copies + result.leaks + sum(result.thinned.values())
    assert result.splits.count(None) == left_out

    order = data.draw(st.permutations(range(len(pictures))))
    shuffled = arrange([pictures[i] for i in order], cuts, seed=seed)
    assert Counter(zip(pictures, result.splits, strict=True)) == Counter(
        (pictures[i], split) for i, split in zip(order, shuffled.splits, strict=True)
    )


def test_the_seed_chooses_and_roles_agree() -> None:
    learn = [Picture("learn", "train", 0, digest(i)) for i in range(50)]
    forget = [Picture("forget", "train", 1, picture.digest) for picture in learn]
    alone = arrange(learn, {"learn": CUT}, seed=0).splits
    both = arrange([*learn, *forget], {"learn": CUT, "forget": CUT}, seed=0)
    assert both.splits == alone * 2
    assert both.leaks == 0
    assert both.two_classes == 50
    assert arrange(learn, {"learn": CUT}, seed=1).splits != alone
    assert Counter(alone) == {"train": 35, "validation": 5, "test": 10}


def test_a_smaller_fraction_is_a_part_of_a_larger() -> None:
    learn = [Picture("learn", "train", 0, digest(i)) for i in range(100)]
    kept = []
    for fraction in (0.001, 0.25, 0.5, 1.0):
        splits = arrange(learn, {"learn": Cut(0.2, 0.1, fraction)}, seed=3).splits
        kept.append({i for i, split in enumerate(splits) if split == "train"})
        assert splits.count("test") == 20
        assert splits.count("validation") == 10
    assert [len(one) for one in kept] == [1, 18, 35, 70]
    assert kept[0] < kept[1] < kept[2] < kept[3]


def test_leaks_go_before_the_cut_and_after() -> None:
    random.seed(0)
    train = [Picture("learn", "train", 0, digest(i)) for i in range(4)]
    test = [Picture("retain", "test", 1, digest(i)) for i in range(2)]
    cuts = {"learn": CUT, "retain": Cut(0.0, 0.0, 1.0)}
    result = arrange([*train, *test], cuts, seed=0)
    assert result.splits[:2] == [None, None]
    assert sorted(str(split) for split in result.splits[2:4]) == ["test", "train"]
    assert result.leaks == 2


def test_a_class_of_one_is_reported_only_where_a_test_is_cut() -> None:
    one = [Picture("learn", "train", 7, digest(0)), Picture("learn", "train", 7, digest(0))]
    assert arrange(one, {"learn": CUT}, seed=0).lonely == [("learn", 7)]
    assert arrange(one, {"learn": Cut(0.0, 0.1, 1.0)}, seed=0).lonely == []
