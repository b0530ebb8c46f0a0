"""The door: names of metrics are taken apart, settings are never pooled."""

import pytest

from mer_dg import reporting
from mer_dg.reporting import frame


@pytest.mark.parametrize(
  ("name", "parts"),
  [
    ("target/accuracy", ("target", "", "accuracy")),
    ("val/re-paired/nll", ("val", "re-paired", "nll")),
    ("val/d1/accuracy", ("val", "d1", "accuracy")),
    ("target/corrupted/a/b/fog/3/nll", ("target", "corrupted/a/b/fog/3", "nll")),
    ("entropy/a/b", ("", "a/b", "entropy")),
    ("representation/a/b/cka", ("", "embeddings/a/b", "cka")),
    (
      "representation/a/effective_rank/val",
      ("val", "embeddings/a", "effective_rank"),
    ),
  ],
)
def test_a_recorded_name_is_split_condition_and_metric(make, name, parts):
  (row,) = reporting.to_frame([make(metrics={name: 0.5})]).itertuples()
  assert (row.split, row.condition, row.metric, row.value) == (*parts, 0.5)


def test_single_sources_are_units_of_their_own(make):
  runs = [make(target="t", sources=[s], seed=1, metrics={"x/y": 1}) for s in "ab"]
  assert [*reporting.to_frame(runs)["unit"]] == [(1, 0, "a"), (1, 0, "b")]


def test_two_runs_for_one_place_are_refused(make):
  twice = reporting.to_frame([make(), make()])
  with pytest.raises(ValueError, match=r"two runs of method 'erm', target 'd3'.*one"):
    reporting.scores(reporting.pick(twice, "accuracy"))


def named(records):
  return [r["method"] for r in frame.name_settings(records)]


def test_a_method_of_two_settings_is_two_and_says_what_differs(make):
  words = [make(tags={"network.fusion": f, "same": "x"}) for f in ("a", "b")]
  assert named(words) == ["erm [network.fusion=a]", "erm [network.fusion=b]"]
  numbers = [make(hyper={"lr": lr}) for lr in (1e-3, 1.0000001e-3)]
  assert len(set(named(numbers))) == 2
  assert named([make(), make(seed=1), make(target="d2")]) == ["erm"] * 3


def test_what_is_off_is_like_what_is_not_there(make):
  off = [make(), make(hyper={"noise": 0}, tags={"norm": "none"})]
  assert named(off) == ["erm", "erm"]
  assert named([*off, make(hyper={"noise": 0.5})]) == [
    *("erm [noise=off]", "erm [noise=off]", "erm [noise=0.5]")
  ]


def test_settings_that_a_search_chose_are_one_row(make):
  chosen = [
    make(target=t, hyper={"lr": lr}, trials=9) for t, lr in (("a", 1), ("b", 2))
  ]
  assert named(chosen) == ["erm", "erm"]
  words = [
    make(target=t, tags={"network.encoder": e}, trials=2) for t, e in (("a", "x"), "by")
  ]
  assert named(words) == ["erm", "erm"]
  other = make(target="b", tags={"network.encoder": "x"}, trials=2)
  assert len({*named([*words, other])}) == 2  # Two settings of one target.
  assert named([*chosen, make(hyper={"lr": 1})]) == [
    *("erm [searched]", "erm [searched]", "erm [lr=1]")
  ]


def test_different_settings_get_rows_of_their_own(make):
  runs = [
    make(
      seed=s,
      metrics={"val/accuracy": 1, "target/accuracy": v},
      tags={"network.fusion": f},
    )
    for f, v in (("concat", 0.25), ("gated", 0.75))
    for s in range(2)
  ]
  table = reporting.build_table(runs, reference="erm [network.fusion=concat]")
  assert {row.method: row.mean.mean for row in table.rows} == {
    "erm [network.fusion=concat]": 0.25,
    "erm [network.fusion=gated]": 0.75,
  }
  assert table.rows[1].difference.mean == 0.5
