"""Selection rules see only what their names allow."""

import copy
import math

import hypothesis
from hypothesis import strategies as st
import pytest

from mer_dg import protocol


def record(step, val, *, nll=1.0, tgt=0.5, run="a", **fields):
  metrics = {
    "val/accuracy": val,
    "val/nll": nll,
    "target/accuracy": tgt,
    "target/nll": 1.0,
  }
  base = {
    "run_id": run,
    "step": step,
    "metrics": metrics,
    "method": "erm",
    "target": "t",
    "dataset": "toy",
    "data_version": "1",
    "modalities": ["a", "b"],
    "sources": ["s"],
    "config_hash": "c",
    "hyper": {},
    "trials": 1,
  }
  return base | fields


def chosen(records, rule, **kwargs):
  return [r["step"] for r in protocol.select(records, rule, **kwargs)]


def test_source_val_takes_the_best_then_lower_nll_then_earlier():
  best = [record(1, 0.5), record(2, 0.7), record(3, 0.6)]
  assert chosen(best, "source_val") == [2]
  by_nll = [record(1, 0.7, nll=0.9), record(2, 0.7, nll=0.8), record(3, 0.7, nll=0.9)]
  assert chosen(by_nll, "source_val") == [2]
  earliest = [record(3, 0.7), record(1, 0.7), record(2, 0.7)]  # In any file order.
  assert chosen(earliest, "source_val") == [1]


def test_last_and_oracle():
  records = [
    record(3, 0.1, tgt=0.2),
    record(1, 0.9, tgt=0.6),
    record(2, 0.5, tgt=0.8),
  ]
  assert chosen(records, "last") == [3]
  assert chosen(records, "oracle") == [2]


@hypothesis.given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
@hypothesis.settings(max_examples=30, deadline=None)
def test_target_metrics_cannot_change_source_selection(target):
  records = [record(i, 0.5 + 0.1 * (i % 3)) for i in range(4)]
  changed = copy.deepcopy(records)
  for r, value in zip(changed, target, strict=True):
    r["metrics"]["target/accuracy"] = value
    r["metrics"]["target/nll"] = -value
  for rule in ("source_val", "last"):
    assert chosen(records, rule) == chosen(changed, rule)


def test_one_record_per_run_in_order_labelled_and_input_untouched():
  records = [record(1, 0.5, run="b"), record(1, 0.5, run="a"), record(2, 0.9, run="b")]
  out = protocol.select(records)
  assert [(r["run_id"], r["step"]) for r in out] == [("b", 2), ("a", 1)]
  assert all(r["selection"] == "source_val" for r in out)
  assert all("selection" not in r for r in records)


def test_a_metric_that_is_better_when_smaller():
  records = [record(1, 0.9, nll=0.9), record(2, 0.1, nll=0.2), record(3, 0.5, nll=0.5)]
  assert chosen(records, "source_val", metric="nll") == [2]


def test_nan_is_never_selected_over_a_number():
  records = [record(1, math.nan), record(2, 0.1), record(3, math.nan)]
  assert chosen(records, "source_val") == [2]


def test_errors_of_select():
  with pytest.raises(ValueError, match="no records"):
    protocol.select([])
  with pytest.raises(ValueError, match=r"rule='best' is not one of .*source_val"):
    protocol.select([record(1, 0.5)], "best")
  with pytest.raises(ValueError, match=r"no metric 'val/f1'; it has \['target/acc"):
    protocol.select([record(1, 0.5)], metric="f1")


def test_best_trial_by_mean_source_validation_per_target():
  def run(w, seed, val, target="t", tgt=0.5):
    return record(1, val, tgt=tgt, hyper={"w": w}, seed=seed, target=target)

  runs = [
    *(run(0.0, 0, 0.9), run(0.0, 1, 0.1)),  # One lucky seed, mean 0.5.
    *(run(0.1, 0, 0.6, tgt=0.1), run(0.1, 1, 0.6, tgt=0.1)),  # Mean 0.6.
    *(run(0.0, 0, 0.8, "u"), run(0.1, 0, 0.7, "u")),
  ]
  kept = protocol.best_trial(runs)
  assert [(r["target"], r["hyper"]["w"]) for r in kept] == [
    *(("t", 0.1), ("t", 0.1), ("u", 0.0))
  ]
  assert {r["trials"] for r in kept} == {2}
  by_target = protocol.best_trial(runs, "oracle")
  assert [r["hyper"]["w"] for r in by_target if r["target"] == "t"] == [0.0, 0.0]


def test_best_trial_prefers_the_earlier_on_ties_and_keeps_larger_trial_counts():
  runs = [record(1, 0.5, hyper={"w": w}, trials=11) for w in (0.3, 0.1, 0.2)]
  kept = protocol.best_trial(runs)
  assert [(r["hyper"]["w"], r["trials"]) for r in kept] == [(0.3, 11)]


@pytest.mark.parametrize(
  ("field", "other"),
  [
    ("data_version", "2"),
    ("dataset", "other"),
    ("config_hash", "d"),
    ("modalities", ["a"]),
    ("sources", ["s", "s2"]),
  ],
)
def test_what_must_not_share_a_table_is_refused(field, other):
  records = [record(1, 0.5), record(1, 0.5, method="mer", **{field: other})]
  protocol.check_comparable(records[:1])
  with pytest.raises(ValueError, match=rf"different {field}.*\(erm\).*\(mer\)"):
    protocol.check_comparable(records)


def test_sources_may_differ_between_targets():
  protocol.check_comparable([record(1, 0.5), record(1, 0.5, target="s", sources="t")])


def test_comparing_nothing_is_an_error():
  with pytest.raises(ValueError, match="no records"):
    protocol.check_comparable([])


def test_re_paired_validation_looks_at_re_paired_rows_alone():
  def record(step, paired, moved, nll=1.0):
    metrics = {
      "val/accuracy": paired,
      "val/nll": 0.0,
      "val/re-paired/accuracy": moved,
      "val/re-paired/nll": nll,
      "target/accuracy": 1 - moved,
    }
    return {"run_id": "a", "step": step, "metrics": metrics}

  run = [record(1, 0.9, 0.3), record(2, 0.5, 0.6), record(3, 0.4, 0.6, nll=0.5)]
  step = lambda rule: protocol.select(run, rule)[0]["step"]
  assert step("source_val") == 1
  assert step("re-paired_val") == 3  # Tie with step 2: the lower re-paired NLL.
  assert step("oracle") == 1
  trials = [
    r | dict(dataset="d", method="m", target="t", hyper={"w": r["step"]}) for r in run
  ]
  assert [r["step"] for r in protocol.best_trial(trials, "re-paired_val")] == [3]
