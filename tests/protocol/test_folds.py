"""Protocols: who trains and who tests; pairs in tables."""

import pytest

from mer_dg.protocol import (
  Assignment,
  assignments,
  best_trial,
  check_comparable,
  name_pairs,
)

DOMAINS = ("a", "b", "c")


def test_leave_one_domain_out_leaves_sources_to_the_target():
  tasks = assignments("leave_one_domain_out", DOMAINS)
  assert tasks == tuple(Assignment(d) for d in DOMAINS)
  fixed = assignments("leave_one_domain_out", DOMAINS, targets=("c",), sources=("a",))
  assert fixed == (Assignment("c", ("a",)),)


def test_single_source_is_every_ordered_pair_once():
  tasks = assignments("single_source", DOMAINS)
  pairs = {(t.sources[0], t.target) for t in tasks}
  assert len(tasks) == 6  # methods.md section 7.1 counts 6 for three domains.
  assert pairs == {(s, t) for s in DOMAINS for t in DOMAINS if s != t}
  fewer = assignments("single_source", DOMAINS, targets=("a", "b"), sources=("a",))
  assert fewer == (Assignment("b", ("a",)),)


def test_target_alone_trains_on_the_target():
  assert assignments("target_alone", DOMAINS, targets=("b",)) == (
    Assignment("b", ("b",)),
  )


def test_the_upper_bound_has_a_task_per_target():
  assert assignments("with_target", DOMAINS, targets=("b",)) == (Assignment("b"),)


def test_an_unknown_protocol_lists_the_known():
  with pytest.raises(ValueError, match=r"'loo' is not one of \('leave_one_domain_out'"):
    assignments("loo", DOMAINS)


def rows_of(pairs, **fields):
  return [
    dict(
      method="m",
      dataset="toy",
      data_version="1",
      modalities=["x"],
      config_hash="c",
      sources=list(sources),
      target=target,
      seed=0,
      split_seed=0,
      run_id=f"{sources}{target}",
      step=1,
      hyper={},
      metrics={"target/accuracy": 0.5, "val/accuracy": 0.5},
    )
    | fields
    for sources, target in pairs
  ]


def test_few_pairs_become_columns():
  pairs = [((t.sources[0],), t.target) for t in assignments("single_source", DOMAINS)]
  rows = name_pairs(rows_of(pairs))
  check_comparable(rows)
  assert [r["target"] for r in rows] == [f"{s} → {t}" for (s,), t in pairs]
  assert {r["sources"][0] for r in rows if r["target"].endswith("→ a")} == {"b", "c"}


def test_many_pairs_share_the_column_of_their_target():
  names = "abcde"  # 20 pairs.
  pairs = [((t.sources[0],), t.target) for t in assignments("single_source", names)]
  rows = name_pairs(rows_of(pairs))
  check_comparable(rows)
  assert {r["target"] for r in rows} == set(names)
  assert {r["sources"][0] for r in rows if r["target"] == "b"} == set("acde")


def test_the_best_trial_is_chosen_for_each_pair():
  """A trial that validates best on source a says nothing of source b."""
  made = []
  for source, good in (("a", 0.1), ("b", 1.0)):
    for weight in (0.1, 1.0):
      value = {"val/accuracy": 0.9 if weight == good else 0.8}
      made += rows_of([((source,), "c")], hyper={"w": weight}, metrics=value)
  kept = {r["sources"][0]: r["hyper"]["w"] for r in best_trial(made)}
  assert kept == {"a": 0.1, "b": 1.0}


def test_other_records_stay_as_they_are():
  outside = rows_of([(("b", "c"), "a"), (("a", "c"), "b")])
  assert name_pairs(outside) == outside
  two_domains = rows_of([(("b",), "a"), (("a",), "b")])
  assert name_pairs(two_domains) == two_domains
  mixed = rows_of([(("b", "c"), "a"), (("b",), "a")])
  with pytest.raises(ValueError, match="different sources for target 'a'"):
    check_comparable(name_pairs(mixed))
