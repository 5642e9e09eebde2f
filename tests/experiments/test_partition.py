"""Splitting rows over silos."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.base.errors import DataError, UsageError
from flamest.experiments.partition import LabelSkew, Partition, dirichlet, iid, label_skew

LABELS = np.repeat(["run", "jump", "wave"], [200, 100, 60])


def class_shares(split: Partition) -> np.ndarray:
    """float64 [silos, classes]: how much of each class a silo has."""
    counts = [[(LABELS[rows] == name).sum() for name in ("run", "jump", "wave")] for rows in split.silos]
    return np.array(counts) / [200, 100, 60]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("beta", [0.1, 0.6, 100.0])
def test_every_row_goes_to_exactly_one_silo(beta: float, seed: int) -> None:
    for split in (dirichlet(LABELS, silos=4, beta=beta, seed=seed), iid(len(LABELS), silos=4, seed=seed)):
        assert sorted(np.concatenate(split.silos)) == list(range(len(LABELS)))
        assert all(rows.dtype == np.int64 and list(rows) == sorted(rows) for rows in split.silos)
        assert sum(split.sizes) == len(LABELS)


def test_small_beta_skews_classes_and_large_beta_does_not() -> None:
    skewed = np.mean([class_shares(dirichlet(LABELS, silos=4, beta=0.1, seed=s)).max(axis=0) for s in range(20)])
    even = np.mean([class_shares(dirichlet(LABELS, silos=4, beta=1000.0, seed=s)).max(axis=0) for s in range(20)])
    assert skewed > 0.7
    assert even < 0.3


def test_classes_are_drawn_independently() -> None:
    shares = class_shares(dirichlet(LABELS, silos=4, beta=0.6, seed=0))
    assert not np.allclose(shares[:, 0], shares[:, 1], atol=0.05)


def test_silo_shares_have_the_variance_of_the_dirichlet_distribution() -> None:
    beta, silos = 0.6, 4
    labels = np.zeros(5000, dtype=np.int64)
    shares = np.array([dirichlet(labels, silos=silos, beta=beta, seed=s, smallest=0).sizes for s in range(1500)]) / 5000
    expected = (1 / silos) * (1 - 1 / silos) / (silos * beta + 1)
    assert shares.mean(axis=0) == pytest.approx([1 / silos] * silos, abs=0.02)
    assert shares.var(axis=0) == pytest.approx([expected] * silos, rel=0.15)


def test_every_silo_has_the_minimum_and_draws_are_recorded() -> None:
    splits = [dirichlet(LABELS, silos=4, beta=0.2, seed=seed, smallest=40) for seed in range(10)]
    assert all(min(split.sizes) >= 40 for split in splits)
    assert max(split.draws for split in splits) > 1
    assert {split.smallest for split in splits} == {40}


def test_the_first_sufficient_draw_is_kept() -> None:
    free = dirichlet(LABELS, silos=4, seed=3, smallest=0)
    same = dirichlet(LABELS, silos=4, seed=3, smallest=min(free.sizes))
    assert same.draws == 1
    assert same.sizes == free.sizes


def test_the_split_depends_on_the_seed() -> None:
    for first, again, other in (
        [dirichlet(LABELS, silos=3, seed=seed).silos for seed in (7, 7, 8)],
        [iid(90, silos=3, seed=seed).silos for seed in (7, 7, 8)],
    ):
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_labels_may_be_names_or_numbers() -> None:
    numbers = [0] * 30 + [1] * 20
    names = ["a"] * 30 + ["b"] * 20
    assert dirichlet(numbers, silos=3, seed=1).sizes == dirichlet(names, silos=3, seed=1).sizes


def test_iid_sizes_differ_by_one_at_most() -> None:
    split = iid(10, silos=3, seed=0)
    assert sorted(split.sizes) == [3, 3, 4]
    assert list(np.concatenate(split.silos)) != list(range(10))
    assert (split.scheme, split.beta, split.draws) == ("iid", None, 1)


def test_too_few_rows_for_the_silos_are_refused() -> None:
    with pytest.raises(DataError, match="10 clips cannot give each of 4 silos 3"):
        dirichlet(["a"] * 10, silos=4, seed=0, smallest=3)
    with pytest.raises(DataError, match="2 clips cannot give each of 3 silos 1"):
        iid(2, silos=3, seed=0)


def test_an_unreachable_minimum_is_an_error_with_a_fix() -> None:
    with pytest.raises(DataError, match=r"no Dirichlet split with beta 0\.001") as caught:
        dirichlet(["a"] * 12, silos=4, beta=0.001, seed=0, smallest=3)
    assert "larger beta" in caught.value.fix


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_beta_not_above_0_is_refused(beta: float) -> None:
    with pytest.raises(UsageError, match="beta"):
        dirichlet(LABELS, silos=2, beta=beta, seed=0)


def test_zero_silos_are_refused() -> None:
    with pytest.raises(UsageError, match="0 silos"):
        iid(10, silos=0, seed=0)


MANY = np.repeat(np.arange(5), 80)


def per_class(split: Partition) -> np.ndarray:
    """int64 [silos, 5]: rows per silo and class."""
    return np.array([np.bincount(MANY[rows], minlength=5) for rows in split.silos])


@pytest.mark.parametrize("silos", [4, 8, 10])
def test_every_silo_has_the_base_and_no_row_is_shared(silos: int) -> None:
    split = label_skew(MANY, silos=silos, seed=3)
    together = np.concatenate(split.silos)
    assert len(set(together)) == len(together)
    assert per_class(split).min() == 4  # half of 80 // 10
    assert split.unused == len(MANY) - len(together)


def test_rows_per_class_and_silo_stay_fixed_as_silos_are_added() -> None:
    means = {
        silos: np.mean([per_class(label_skew(MANY, silos=silos, seed=seed)).mean() for seed in range(60)])
        for silos in (4, 8, 10)
    }
    # base 4, and a mean of 1/2 of the other 4, for any number of silos
    assert list(means.values()) == pytest.approx([6.0, 6.0, 6.0], abs=0.25)


def test_the_rest_of_a_class_is_divided_evenly_among_its_takers() -> None:
    counts = per_class(label_skew(MANY, silos=10, seed=1))
    for column in counts.T:
        extra = column[column > 4] - 4
        assert extra.max() - extra.min() <= 1
    assert len({tuple(column > 4) for column in counts.T}) > 1  # every class has its own takers


def test_a_fractional_base_is_kept_on_average() -> None:
    labels = np.repeat(np.arange(20), 20)  # two rows of a class for each of ten silos: a base of half a row
    sizes = {
        base: np.mean([label_skew(labels, silos=4, seed=seed, skew=LabelSkew(base=base)).sizes for seed in range(200)])
        for base in (0.25, 0.5)
    }
    # of 20 classes, with u = 2: base · u + (1 − base) · u / 2
    assert sizes[0.25] == pytest.approx(20 * 1.25, abs=0.5)
    assert sizes[0.5] == pytest.approx(20 * 1.5, abs=0.5)


def test_a_silo_left_without_a_row_is_refused() -> None:
    with pytest.raises(DataError, match="left one of 10 silos without a clip"):
        label_skew(["a"] * 10, silos=10, seed=0, skew=LabelSkew(base=0.0, takers=0.1))


def test_a_full_base_is_balanced_and_a_small_one_skewed() -> None:
    balanced = per_class(label_skew(MANY, silos=4, seed=0, skew=LabelSkew(base=1.0)))
    skewed = per_class(label_skew(MANY, silos=4, seed=0, skew=LabelSkew(base=0.125, takers=0.25)))
    assert set(balanced.ravel()) == {8}
    assert skewed.std() > 3


def test_label_skew_depends_on_the_seed_and_records_its_parameters() -> None:
    skew = LabelSkew(takers=0.3)
    first, again, other = (label_skew(MANY, silos=4, seed=seed, skew=skew) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first.silos, again.silos, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first.silos, other.silos, strict=True))
    assert (first.scheme, first.skew) == ("label-skew", skew)


@pytest.mark.parametrize("skew", [LabelSkew(base=1.5), LabelSkew(takers=0.0), LabelSkew(alpha=0.0)])
def test_a_skew_out_of_range_is_refused(skew: LabelSkew) -> None:
    with pytest.raises(UsageError, match="label-skew split with base"):
        label_skew(MANY, silos=4, seed=0, skew=skew)


def test_too_many_silos_and_too_small_classes_are_refused() -> None:
    with pytest.raises(UsageError, match="11 silos, expected 1 to 10"):
        label_skew(MANY, silos=11, seed=0)
    with pytest.raises(DataError, match="a class of 9 clips cannot give each of 10 silos one"):
        label_skew(["a"] * 9, silos=4, seed=0)
