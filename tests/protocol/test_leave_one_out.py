"""Leave-one-source-out: left-out sources decide, the target never does."""

import copy
import math

import hypothesis
from hypothesis import strategies as st
import pytest

from mer_dg import protocol

SOURCES = ("a", "b", "c")


def run(w, target, sources, values, *, seed=0, method="mer", nll=1.0, **fields):
  """Evaluations of one run at steps 10, 20, …, with target accuracies ``values``."""
  base = {
    "run_id": f"{method}/{w}/{target}/{'+'.join(sources)}/{seed}",
    "method": method,
    "target": target,
    "sources": list(sources),
    "dataset": "toy",
    "data_version": "1",
    "modalities": ["x", "y"],
    "hyper": {"w": w},
    "seed": seed,
    "split_seed": 0,
    "trials": 1,
    "device": "cpu",
    "git_revision": "r",
  }
  return [
    base
    | fields
    | {
      "step": 10 * (i + 1),
      "config_hash": "+".join(sources),  # It covers the sources: differs by run.
      "metrics": {"val/accuracy": 0.9, "target/accuracy": v, "target/nll": nll},
    }
    for i, v in enumerate(values)
  ]


def leave_out(w, values, **fields):
  """One inner run per source; ``values[s]`` are its accuracies over steps."""
  out = []
  for s in SOURCES:
    out += run(w, s, [o for o in SOURCES if o != s], values[s], **fields)
  return out


def test_setting_and_step_with_the_best_mean_over_left_out_sources():
  inner = leave_out(0.0, {"a": [0.5, 0.6], "b": [0.5, 0.6], "c": [0.5, 0.6]})
  # The best single number, .99, belongs to a setting that is worse on the others.
  inner += leave_out(0.1, {"a": [0.99, 0.2], "b": [0.2, 0.2], "c": [0.2, 0.2]})
  inner += leave_out(0.2, {"a": [0.7, 0.6], "b": [0.7, 0.6], "c": [0.7, 0.7]})
  choice = protocol.leave_one_source_out(inner, SOURCES)
  assert (choice.hyper, choice.step, choice.trials) == ({"w": 0.2}, 10, 3)
  assert choice.score == pytest.approx(0.7)
  assert choice.incomplete == 0


def test_sources_weigh_the_same_whatever_their_number_of_seeds():
  inner = leave_out(0.0, {"a": [0.9], "b": [0.3], "c": [0.3]})
  for seed in (1, 2, 3):  # Four seeds of a: a plain mean over runs would say 0.7.
    inner += run(0.0, "a", ["b", "c"], [0.9], seed=seed)
  inner += leave_out(0.1, {"a": [0.6], "b": [0.6], "c": [0.6]})
  choice = protocol.leave_one_source_out(inner, SOURCES)
  assert choice.hyper == {"w": 0.1}


def test_ties_go_to_lower_nll_then_the_earlier_setting_then_the_earlier_step():
  same = dict.fromkeys(SOURCES, (0.5, 0.5))
  by_nll = leave_out(0.0, same, nll=2.0) + leave_out(0.1, same, nll=1.0)
  assert protocol.leave_one_source_out(by_nll, SOURCES).hyper == {"w": 0.1}
  first = leave_out(0.3, same) + leave_out(0.1, same)
  choice = protocol.leave_one_source_out(first, SOURCES)
  assert (choice.hyper, choice.step) == ({"w": 0.3}, 10)


def test_a_metric_that_is_better_when_smaller_and_nan_is_the_worst():
  values = dict.fromkeys(SOURCES, (0.5,))
  inner = leave_out(0.0, values, nll=0.7) + leave_out(0.1, values, nll=0.4)
  choice = protocol.leave_one_source_out(inner, SOURCES, metric="nll")
  assert choice.hyper == {"w": 0.1}
  assert choice.score == pytest.approx(0.4)
  broken = leave_out(0.0, {"a": [0.9], "b": [math.nan], "c": [0.9]})
  broken += leave_out(0.1, dict.fromkeys(SOURCES, (0.1,)))
  assert protocol.leave_one_source_out(broken, SOURCES).hyper == {"w": 0.1}


def test_only_runs_that_leave_exactly_one_source_out_are_looked_at():
  inner = leave_out(0.1, dict.fromkeys(SOURCES, (0.5,)))
  # A run that trained on the target t, one that lacks two sources, and one judged on
  # the target would all prefer another setting.
  stray = run(0.0, "a", ["b", "c", "t"], [1.0]) + run(0.0, "a", ["b"], [1.0])
  stray += run(0.0, "t", SOURCES, [1.0])
  choice = protocol.leave_one_source_out(stray + inner, SOURCES)
  assert choice.hyper == {"w": 0.1}
  assert choice.trials == 1


def test_a_step_that_some_run_lacks_and_a_setting_that_lacks_a_source_do_not_count():
  inner = leave_out(0.0, {"a": [0.5, 0.9], "b": [0.5], "c": [0.5, 0.9]})
  inner += run(0.1, "a", ["b", "c"], [1.0]) + run(0.1, "b", ["a", "c"], [1.0])
  choice = protocol.leave_one_source_out(inner, SOURCES)
  assert (choice.hyper, choice.step) == ({"w": 0.0}, 10)
  assert (choice.trials, choice.incomplete) == (2, 1)


def finals(target="t", **fields):
  return [
    r
    for w in (0.0, 0.1)
    for seed in (0, 1)
    for r in run(w, target, SOURCES, [0.3 + w, 0.4 + w], seed=seed, **fields)
  ]


def test_the_chosen_runs_at_the_chosen_step_one_per_seed_and_labelled():
  inner = leave_out(0.0, dict.fromkeys(SOURCES, (0.5, 0.6)))
  inner += leave_out(0.1, dict.fromkeys(SOURCES, (0.5, 0.7)))
  records = finals()
  before = copy.deepcopy(records)
  out = protocol.select_leave_one_source_out(records, inner)
  assert [(r["hyper"]["w"], r["step"], r["seed"]) for r in out] == [
    *((0.1, 20, 0), (0.1, 20, 1))
  ]
  assert {r["selection"] for r in out} == {"leave_one_source_out"}
  assert {r["trials"] for r in out} == {2}
  assert records == before
  assert [r["metrics"]["target/accuracy"] for r in out] == [0.5, 0.5]


@hypothesis.given(st.lists(st.floats(0, 1), min_size=8, max_size=8))
@hypothesis.settings(max_examples=30, deadline=None)
def test_target_metrics_cannot_change_the_choice(target):
  inner = leave_out(0.0, dict.fromkeys(SOURCES, (0.5, 0.6)))
  inner += leave_out(0.1, dict.fromkeys(SOURCES, (0.5, 0.55)))
  changed = finals()
  for r, value in zip(changed, target, strict=True):
    r["metrics"] |= {"target/accuracy": value, "target/nll": -value}
  pick = lambda rows: [
    (r["run_id"], r["step"]) for r in protocol.select_leave_one_source_out(rows, inner)
  ]
  assert pick(finals()) == pick(changed)


def test_methods_and_data_versions_do_not_choose_for_each_other():
  inner = leave_out(0.0, dict.fromkeys(SOURCES, (0.5,)))
  best = dict.fromkeys(SOURCES, (0.9,))
  inner += leave_out(0.1, best, method="erm")
  inner += leave_out(0.1, best, data_version="2")
  inner += leave_out(0.1, best, modalities=["x"])
  out = protocol.select_leave_one_source_out(finals(), inner)
  assert {r["hyper"]["w"] for r in out} == {0.0}


def test_one_inner_run_serves_two_targets():
  """Of domains a, b, t: b + (a left out) is an inner run of the tasks t and … a."""
  pair = lambda w, v: run(w, "a", ["b"], [v]) + run(w, "b", ["a"], [v])
  inner = pair(0.0, 0.5) + pair(0.1, 0.6)
  records = run(0.1, "t", ["a", "b"], [0.4]) + run(0.1, "u", ["a", "b"], [0.4])
  out = protocol.select_leave_one_source_out(records, inner)
  assert [r["target"] for r in out] == ["t", "u"]


def test_errors_name_what_is_missing():
  inner = leave_out(0.2, dict.fromkeys(SOURCES, (0.5, 0.5, 0.9)))
  with pytest.raises(ValueError, match=r"sources=\['a'\]: leaving one out"):
    protocol.leave_one_source_out(inner, ["a"])
  with pytest.raises(ValueError, match=r"sources \['c'\] were never left out \(4 of 4"):
    some = run(0.0, "a", ["b", "c"], [0.5] * 2) + run(0.0, "b", ["a", "c"], [0.5] * 2)
    protocol.leave_one_source_out(some, SOURCES)
  with pytest.raises(ValueError, match=r"method 'mer', target 't': .*choose \{'w': 0"):
    protocol.select_leave_one_source_out(finals(), inner)
  late = leave_out(0.1, dict.fromkeys(SOURCES, (0.5, 0.5, 0.9)))
  with pytest.raises(ValueError, match=r"choose step 30, but run .* at \[10, 20\]"):
    protocol.select_leave_one_source_out(finals(), late)
  with pytest.raises(ValueError, match="no records"):
    protocol.select_leave_one_source_out([], inner)
  mixed = finals() + run(0.0, "t", ["a", "b"], [0.5])
  with pytest.raises(ValueError, match="different sources"):
    protocol.select_leave_one_source_out(mixed, inner)
  with pytest.raises(ValueError, match="no metric 'target/f1'"):
    protocol.leave_one_source_out(inner, SOURCES, metric="f1")
