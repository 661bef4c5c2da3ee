"""Numbers of the audits against the library's and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from kswap.audits.anomaly import signals
from kswap.audits.collateral import cka, mcnemar
from kswap.audits.findings import Interval, Table, plain_value
from kswap.audits.precision import changed
from kswap.audits.quality import (
    DELTA,
    epsilon_per_example,
    forgetting_score,
    largest_epsilon,
    relabelled,
)
from kswap.audits.sampling import spread
from kswap.audits.statistics import (
    auc,
    harmonic_mean,
    holm,
    jackknife,
    paired_difference,
    share_interval,
    softmax,
    t_interval,
    tpr_at_fpr,
)
from kswap.audits.subjects import Answers
from kswap.report.audit_tables import cell_text


def test_areas_are_the_librarys_with_ties():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 9, 60) + 1.0, rng.integers(0, 9, 40)
    truth = np.r_[np.ones(60), np.zeros(40)]
    found = auc(one, other)
    assert found.mean == pytest.approx(roc_auc_score(truth, np.r_[one, other]))
    assert found.low < found.mean < found.high


def test_an_area_without_overlap_is_certain():
    found = auc(np.arange(5) + 10, np.arange(5))
    assert (found.mean, found.low, found.high) == (1, 1, 1)


def test_intervals():
    by_library = stats.t.interval(0.95, 2, loc=2, scale=1 / np.sqrt(3))
    found = t_interval([1, 2, 3])
    assert (found.low, found.high) == pytest.approx(by_library)
    wilson = stats.binomtest(3, 10).proportion_ci(method="wilson")
    share = share_interval([True] * 3 + [False] * 7)
    assert (share.low, share.high) == pytest.approx((wilson.low, wilson.high))
    assert share_interval([True] * 10).low < 1  # ten of ten do not show certainty
    assert paired_difference([1, 1, 0], [0, 1, 0]).mean == pytest.approx(1 / 3)


def test_the_jackknife_of_a_mean_is_its_t_interval():
    values = np.array([0.2, 0.5, 0.4, 0.7, 0.3])
    without = [float(np.delete(values, n).mean()) for n in range(5)]
    found, wanted = jackknife(float(values.mean()), without, 5), t_interval(values)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.n == 5
    assert jackknife(0.9, [0.5, 0.9], 2).high == 1.0  # a score ends there


def test_a_rate_that_the_images_cannot_show_is_none():
    others = np.arange(100) / 100
    assert tpr_at_fpr(np.array([2.0, 0.0]), others, 0.01) == 0.5
    assert tpr_at_fpr(np.array([2.0]), others, 0.001) is None


def test_means_and_corrections():
    assert harmonic_mean(1, 0.5) == pytest.approx(2 / 3)
    assert harmonic_mean(1, 0.0) == 0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert mcnemar(np.array([True] * 6), np.array([False] * 6)) == pytest.approx(2 / 64)
    assert mcnemar(np.array([True]), np.array([True])) == 1


def test_rows_that_a_model_lacks_have_no_share():
    shares = softmax(np.array([[0.0, -np.inf, 0.0]]))
    assert shares.tolist() == [[0.5, 0.0, 0.5]]
    logits = np.array([[0.0, 0.0, -np.inf]], np.float32)
    some = Answers({}, logits, np.zeros(1, int), np.ones(1, bool), np.zeros(1, int))
    assert signals(some, np.array([[0, 1]]))[0].tolist() == pytest.approx([np.log(2), 0.5, 1.0])


def test_cka_does_not_see_rotation_and_scale():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 5)).astype(np.float32)
    turn, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    assert cka(x, (3 * x @ turn).astype(np.float32)) == pytest.approx(1, abs=1e-5)
    assert cka(x, rng.standard_normal((30, 5)).astype(np.float32)) < 0.5


def test_epsilon_by_hand():
    apart = epsilon_per_example(np.full((4, 1), 5.0), np.zeros((4, 1)))
    assert apart[0] == pytest.approx(np.log((1 - 1e-5) * 4))
    assert apart[0] == pytest.approx(largest_epsilon(4))
    same = epsilon_per_example(np.arange(4.0)[:, None], np.arange(4.0)[:, None])
    assert same[0] < apart[0]
    between = np.array([[-9.0], [-8.0], [8.0], [9.0]])  # only a double threshold tells these
    assert epsilon_per_example(between, np.zeros((4, 1)))[0] == pytest.approx(apart[0])
    assert forgetting_score(np.array([0.0, 0.6])) == pytest.approx((1 + 0.5) / 2)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("bf16", [[1.0, -0.6015625, 0.25], [0.0, 0.0, 0.0]]),
        ("int8", [[1.0, -76 / 127, 32 / 127], [0.0, 0.0, 0.0]]),
        ("int4", [[1.0, -4 / 7, 2 / 7], [0.0, 0.0, 0.0]]),
        ("pruned 50 %", [[1.0, -0.6, 0.25], [0.0, 0.0, 0.0]]),
    ],
)
def test_weights_as_deployment_changes_them(variant, expected):
    weight = torch.tensor([[1.0, -0.6, 0.25], [0.0, 0.0, 0.0]])
    found = changed(weight, variant, torch.Generator().manual_seed(0))
    assert torch.allclose(found, torch.tensor(expected))


def test_sampling_takes_every_class():
    ids = np.repeat([0, 1, 2], [100, 5, 50])
    rows = spread(ids, 30, max_classes=None, seed=0)
    assert np.bincount(ids[rows]).tolist() == [10, 5, 10]
    assert rows.tolist() == spread(ids, 30, max_classes=None, seed=0).tolist()
    assert set(ids[spread(ids, 30, max_classes=2, seed=0)]) == {0, 2}


def test_findings_are_plain_values():
    table = Table("t", ("a", "b"), [[Interval(0.5, 0.1, 0.9, 3), np.float32(0.25)]])
    assert table.to_mapping()["rows"] == [[{"mean": 0.5, "low": 0.1, "high": 0.9, "n": 3}, 0.25]]
    assert plain_value({"x": np.array([1.0, np.inf])}) == {"x": [1.0, None]}


def test_an_interval_without_ends_is_json_and_says_so():
    of_one_unit = paired_difference(np.array([True]), np.array([False])).to_mapping()
    assert of_one_unit == {"mean": 1.0, "low": None, "high": None, "n": 1}
    assert cell_text(of_one_unit) == "1.000 (n = 1: no interval)"


def epsilon_by_hand(ours, theirs):
    """Every pair of thresholds, one example, in plain loops."""
    values = sorted({*ours, *theirs})
    cuts = [-np.inf, *values, np.inf]
    best = 0.0
    for i, low in enumerate(cuts):
        for high in cuts[i + 1 :]:
            inside = [np.mean([low <= v < high for v in group]) for group in (ours, theirs)]
            for fpr, fnr in ((inside[1], 1 - inside[0]), (1 - inside[1], inside[0])):
                for one, other, count in ((fpr, fnr, len(ours)), (fnr, fpr, len(theirs))):
                    ratio = max(1 - DELTA - one, 1e-12) / max(other, 1 / count)
                    best = max(best, float(np.log(ratio)))
    return best


def test_epsilon_is_the_best_of_all_thresholds_with_ties():
    rng = np.random.default_rng(3)
    ours, theirs = rng.integers(0, 5, (6, 20)) + 0.0, rng.integers(0, 5, (9, 20)) + 0.0
    found = epsilon_per_example(ours, theirs)
    by_hand = [epsilon_by_hand(ours[:, i], theirs[:, i]) for i in range(20)]
    assert found == pytest.approx(by_hand)


def test_the_control_of_models_of_one_kind_holds_what_is_found():
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 5, 40))
    null, draws = relabelled(one, other, seed=0)
    assert len(draws) == null.n == 252
    assert null.low <= epsilon_per_example(one, other).mean() <= null.high
    apart, draws = relabelled(one + 9, other, seed=0)
    assert epsilon_per_example(one + 9, other).mean() > apart.high
    assert (draws >= largest_epsilon(5) - 1e-9).mean() == pytest.approx(2 / 252)
    many, draws = relabelled(*rng.standard_normal((2, 8, 10)), seed=0)
    assert many.n == 300
