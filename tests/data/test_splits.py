"""Splits: whole groups, stratified, a function of (split seed, domain) alone."""

import dataclasses

import numpy as np
import pytest

from mer_dg.data.dataset import DataError, make_dataset
from mer_dg.data.splits import leave_one_domain_out, target_alone, with_target

_SEED = {"split_seed": 0, "val_fraction": 0.2}


def _dataset(n=600, domains=3, classes=4, seed=0, **changes):
  rng = np.random.default_rng(seed)
  made = {
    "name": "toy",
    "inputs": {"a": rng.normal(size=(n, 2)).astype(np.float32)},
    "label": rng.integers(0, classes, n),
    "domain": np.arange(n) % domains,
    "class_names": [f"c{k}" for k in range(classes)],
    "domain_names": [f"d{d}" for d in range(domains)],
  }
  return make_dataset(**(made | changes))


@pytest.mark.parametrize("size", [1, 5, 20])
def test_groups_stay_together_and_shares_are_kept(size):
  # Groups within a domain are numbered alike in all domains: ids may be local.
  group = np.arange(600) // 3 // size
  dataset = _dataset(group=group)
  split = leave_one_domain_out(dataset, "d1", **_SEED)
  for name in ("d0", "d2"):
    train, val = split.train[name], split.val[name]
    domain = np.flatnonzero(dataset.domain == dataset.domain_id(name))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), domain)
    assert not set(group[train]) & set(group[val])
    # 200 rows, 4 classes: the greedy choice misses a class goal by at most about
    # half of what one group holds of it.
    for k in range(4):
      rows = dataset.label[domain] == k
      share = (dataset.label[val] == k).sum() / rows.sum()
      assert abs(share - 0.2) <= 0.02 + 0.5 * size / rows.sum()
  np.testing.assert_array_equal(split.test, np.flatnonzero(dataset.domain == 1))


def test_rows_of_a_domain_depend_on_seed_and_domain_only():
  dataset = _dataset()
  of = {t: leave_one_domain_out(dataset, t, **_SEED) for t in ("d0", "d1")}
  np.testing.assert_array_equal(of["d0"].val["d2"], of["d1"].val["d2"])
  fewer = leave_one_domain_out(dataset, "d0", **_SEED, sources=("d2",))
  np.testing.assert_array_equal(fewer.val["d2"], of["d1"].val["d2"])
  # Nor on what the other domains hold, or on the inputs.
  label = dataset.label.copy()
  label[dataset.domain == 1] = 0
  other = _dataset(label=label, inputs={"z": np.zeros((600, 1))})
  again = leave_one_domain_out(other, "d0", **_SEED)
  np.testing.assert_array_equal(again.val["d2"], of["d0"].val["d2"])
  # Another seed gives other rows; two domains of one content differ too.
  reseeded = leave_one_domain_out(dataset, "d0", split_seed=1, val_fraction=0.2)
  assert (reseeded.val["d2"].tolist()) != of["d0"].val["d2"].tolist()
  same = _dataset(label=np.arange(600) // 3 % 4)
  split = leave_one_domain_out(same, "d0", **_SEED)
  assert (split.val["d1"] - 1).tolist() != (split.val["d2"] - 2).tolist()


def test_sources_keep_the_order_given():
  split = leave_one_domain_out(_dataset(), "d1", **_SEED, sources=("d2", "d0"))
  assert split.sources == ("d2", "d0")
  assert list(split.train) == ["d2", "d0"]
  assert leave_one_domain_out(_dataset(), "d1", **_SEED).sources == ("d0", "d2")


def test_the_split_of_the_file_is_used():
  part = np.tile([0, 0, 0, 1, 1, 1, 2, 2, 2], 67)[:600]
  dataset = _dataset(split=part)
  split = leave_one_domain_out(dataset, "d0", **_SEED)
  assert (part[split.train["d1"]] == 0).all()
  assert (part[split.val["d1"]] == 1).all()
  assert (part[split.test] == 2).all()
  # Without val rows a source validates on its test rows; without test rows the
  # whole target counts.
  old = _dataset(split=np.where(part == 1, 2, part))
  assert (old.split[leave_one_domain_out(old, "d0", **_SEED).val["d1"]] == 2).all()
  untested = _dataset(split=np.where(part == 2, 1, part))
  assert len(leave_one_domain_out(untested, "d0", **_SEED).test) == 200


def test_class_seen_in_the_target_only():
  label = np.random.default_rng(0).integers(0, 3, 600)
  label[:9] = 3  # Class c3 in rows 0..8, three in each domain.
  label[[1, 2, 4, 5, 7, 8]] = 0  # Now in d0 alone.
  dataset = _dataset(label=label)
  with pytest.raises(DataError, match=r"class 'c3' .* 'd0' .*drop_unseen_classes=True"):
    leave_one_domain_out(dataset, "d0", **_SEED)
  split = leave_one_domain_out(dataset, "d0", **_SEED, drop_unseen_classes=True)
  assert len(split.test) == 197
  assert 3 not in label[split.test]
  leave_one_domain_out(dataset, "d1", **_SEED)  # A source may have it alone.


def test_a_class_with_one_row_trains():
  label = np.random.default_rng(0).integers(0, 3, 600)
  label[1] = 3  # One row, in d1.
  split = leave_one_domain_out(_dataset(label=label), "d0", **_SEED)
  assert 1 in split.train["d1"]


def test_bad_arguments():
  dataset = _dataset()
  cases = [
    (dict(target="d7"), "domain 'd7' is not one of .'d0', 'd1', 'd2'."),
    (dict(target="d0", sources=("d1", "d0")), "target 'd0' is also a source"),
    (dict(target="d0", sources=("d1", "x")), "domain 'x' is not one of"),
    (dict(target="d0", sources=("d1", "d1")), "name a domain twice"),
    (dict(target="d0", val_fraction=1.0), "val_fraction=1.0 must lie between"),
    (dict(target="d0", val_fraction=0.0), "val_fraction=0.0 must lie between"),
  ]
  for arguments, message in cases:
    with pytest.raises(DataError, match=message):
      leave_one_domain_out(dataset, **(_SEED | arguments))


def test_a_small_source_may_have_no_validation_rows():
  domain = np.arange(600) % 2
  domain[0] = 2
  split = leave_one_domain_out(_dataset(domain=domain), "d0", **_SEED)
  assert (split.train["d2"].tolist(), split.val["d2"].size) == ([0], 0)
  assert split.val["d1"].size > 0
  # One row is enough for a target; of two rows in a source one validates.
  leave_one_domain_out(_dataset(domain=domain), "d2", **_SEED)
  domain[1] = 2
  split = leave_one_domain_out(_dataset(domain=domain), "d0", **_SEED)
  assert (len(split.train["d2"]), len(split.val["d2"])) == (1, 1)
  # Two rows of one group cannot be separated.
  grouped = _dataset(domain=domain, group=np.where(domain == 2, 600, np.arange(600)))
  split = leave_one_domain_out(grouped, "d0", **_SEED)
  assert (len(split.train["d2"]), len(split.val["d2"])) == (2, 0)


def test_sources_without_any_validation_or_training_rows():
  one_group = _dataset(group=np.zeros(600, int))
  with pytest.raises(
    DataError, match=r"validation rows; training rows: {'d1': 200, 'd"
  ):
    leave_one_domain_out(one_group, "d0", **_SEED)
  marked = np.where(np.arange(600) % 3 == 1, 1, 0)  # All rows of d1 validate.
  with pytest.raises(DataError, match="'d1' .200 rows. leaves no training and 200"):
    leave_one_domain_out(_dataset(split=marked), "d0", **_SEED)


def test_selection_never_sees_the_target():
  split = leave_one_domain_out(_dataset(), "d1", **_SEED)
  used = np.concatenate([*split.train.values(), *split.val.values()])
  assert not np.isin(split.test, used).any()


def test_gesture_phase_keeps_stretches_of_video_together(shared_data):
  from mer_dg.data.npz import load_npz

  dataset = load_npz(shared_data / "gesture_phase.npz")
  split = leave_one_domain_out(dataset, "user_b", **_SEED)
  for name in split.sources:
    train, val = dataset.group[split.train[name]], dataset.group[split.val[name]]
    assert not set(train) & set(val)
    assert abs(len(val) / (len(val) + len(train)) - 0.2) < 0.05


def test_splitting_is_not_slow():
  import time

  n = 20_000
  label = np.arange(n) // 3 % 30
  dataset = dataclasses.replace(
    _dataset(n=n, classes=30), label=label.astype(np.int32), group=np.arange(n)
  )
  start = time.perf_counter()
  leave_one_domain_out(dataset, "d0", **_SEED)
  assert time.perf_counter() - start < 5.0  # About 0.2 s; quadratic would be minutes.


def test_target_alone_has_three_parts_of_one_domain():
  group = np.arange(600) // 15
  dataset = _dataset(group=group)
  split = target_alone(dataset, "d1", **_SEED)
  assert split.sources == ("d1",)
  parts = [split.train["d1"], split.val["d1"], split.test]
  domain = np.flatnonzero(dataset.domain == 1)
  np.testing.assert_array_equal(np.sort(np.concatenate(parts)), domain)
  groups = np.concatenate([np.unique(group[rows]) for rows in parts])
  assert len(groups) == len(set(groups))  # No group in two parts.
  # A fifth tests, a fifth of the rest validates; groups are 2.5 % of the domain.
  assert abs(len(split.test) / 200 - 0.2) <= 0.05
  assert abs(len(split.val["d1"]) / 200 - 0.16) <= 0.05
  # The rows that validate d1 where it is a source are those that test it here.
  outside = leave_one_domain_out(dataset, "d0", **_SEED)
  np.testing.assert_array_equal(split.test, outside.val["d1"])


def test_target_alone_takes_the_split_of_the_file():
  part = np.tile([0, 0, 0, 1, 1, 1, 2, 2, 2], 67)[:600]
  split = target_alone(_dataset(split=part), "d2", **_SEED)
  assert (part[split.train["d2"]] == 0).all()
  assert (part[split.val["d2"]] == 1).all()
  assert (part[split.test] == 2).all()
  # Without val rows a share of the training rows validates, never a test row.
  part = np.where(part == 1, 0, part)
  split = target_alone(_dataset(split=part), "d2", **_SEED)
  assert split.val["d2"].size
  assert (part[split.val["d2"]] == 0).all()
  assert not set(split.val["d2"]) & set(split.train["d2"])


def test_the_upper_bound_adds_the_target_to_the_sources():
  dataset = _dataset(group=np.arange(600) // 15)
  alone = target_alone(dataset, "d1", **_SEED)
  split = with_target(dataset, "d1", **_SEED)
  assert split.sources == ("d0", "d2", "d1")
  np.testing.assert_array_equal(split.test, alone.test)
  np.testing.assert_array_equal(split.train["d1"], alone.train["d1"])
  usual = leave_one_domain_out(dataset, "d1", **_SEED)
  for d in ("d0", "d2"):
    np.testing.assert_array_equal(split.train[d], usual.train[d])
    np.testing.assert_array_equal(split.val[d], usual.val[d])
  used = np.concatenate([*split.train.values(), *split.val.values()])
  assert not set(split.test) & set(used)
  fewer = with_target(dataset, "d1", sources=("d2",), **_SEED)
  assert fewer.sources == ("d2", "d1")


def test_a_domain_too_small_for_three_parts_is_named():
  one_group = _dataset(group=np.arange(600) % 3)
  with pytest.raises(DataError, match="'d1'.*target_alone needs"):
    target_alone(one_group, "d1", **_SEED)
