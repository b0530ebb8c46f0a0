"""Several tables at a glance."""

import dataclasses

import pytest

from mer_dg.reporting import build_table, overview, plots


@pytest.fixture
def tables(experiment):
  """Table of the experiment under several names: sets, protocols, modalities."""
  table = build_table(experiment, reference="erm")
  vary = lambda **fields: dataclasses.replace(table, **fields)
  return {
    "x": vary(dataset="x"),
    "x, one modality": vary(dataset="x", modalities=("video",)),
    "x, pairs": vary(dataset="x", protocol="single_source", modalities=("a", "b", "c")),
    "y": vary(dataset="y"),
  }


def test_a_line_per_table_with_means_and_what_methods_add(tables):
  found = [tables["x"], tables["x, pairs"]]
  header, body = overview.cell_texts(found, overview.MARKDOWN)
  assert header == ["table", "targets", "erm", "mer"]
  assert [line[0] for line in body] == [
    "x (video + audio)",
    "x (a + b + c), single source",
  ]
  # Means of the fixture: ERM .42; MER .10 above it in every pair of six.
  assert body[0][1] == "2"
  assert body[0][2].startswith("*42.0 ± ")
  assert body[0][3].startswith("**52.0 ± ")
  assert body[0][3].endswith(" (+10.0*)")  # p = 2 / 2^6, and no 0 in the interval.
  text = overview.to_markdown(found)
  assert text.count("\n|") == 3
  assert "paired difference to erm" in text
  assert r"\textbf{52.0" in overview.to_latex(found)


def test_a_difference_that_is_not_sure_has_no_asterisk(tables):
  table = tables["x"]
  rows = [dataclasses.replace(row, p_holm=0.06) for row in table.rows]
  _, body = overview.cell_texts(
    [dataclasses.replace(table, rows=tuple(rows))], overview.MARKDOWN
  )
  assert body[0][3].endswith(" (+10.0)")


def test_ranks_are_over_one_table_of_each_set(tables):
  """Not over pairs of domains or subsets of modalities, which share their data."""
  pooled = overview.pooled(list(tables.values()))
  assert pooled.dataset == "x + y"
  assert (pooled.protocol, pooled.modalities) == (
    "leave_one_domain_out",
    ("video", "audio"),
  )
  assert pooled.targets == ("x: a", "x: b", "y: a", "y: b")
  assert all(tuple(row.values) == pooled.targets for row in pooled.rows)
  # The subset comes first, the whole set still counts.
  again = overview.pooled([tables["x, one modality"], tables["x"], tables["y"]])
  assert again.modalities == ("video", "audio")
  assert overview.pooled([tables["x"], tables["x, pairs"]]) is None


def test_methods_that_a_set_lacks_are_left_out_of_the_ranks(tables):
  fewer = dataclasses.replace(tables["y"], rows=tables["y"].rows[:1])
  pooled = overview.pooled([tables["x"], fewer])
  assert [row.method for row in pooled.rows] == ["erm"]


def test_nothing_to_compare(tables):
  alone = dataclasses.replace(tables["x"], rows=tables["x"].rows[:1])
  assert not plots.can_compare([alone])
  with pytest.raises(ValueError, match="no table has paired differences"):
    plots.overview_plot([alone])
