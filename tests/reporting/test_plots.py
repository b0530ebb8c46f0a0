"""Plots show the numbers of the table, and files appear whole or not at all."""

import os
import subprocess
import sys
import xml.etree.ElementTree

from matplotlib.figure import Figure
import numpy as np
import pytest

from mer_dg import protocol, reporting
from mer_dg.reporting import plots


@pytest.fixture
def table(experiment):
  return reporting.build_table(experiment, reference="erm")


def test_target_plot_marks_target_and_source_validation(table):
  fig = reporting.target_plot(table)
  (ax,) = fig.axes
  assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "mean"]
  points = {
    (line.get_marker(), round(float(y), 3))
    for line in ax.lines
    for y in np.atleast_1d(line.get_ydata())
  }
  assert ("o", 52.0) in points  # ERM on a.
  assert ("s", 62.0) in points  # MER on a.
  assert ("s", 52.0) in points  # MER, mean of 62 and 42.
  assert ("o", 90.0) in points  # Source validation.
  assert (".", 50.0) in points  # A single run.


def test_difference_plot_shows_every_target_and_the_mean(table):
  fig = reporting.difference_plot(table)
  (ax,) = fig.axes
  x = [c.lines[0].get_xdata()[0] for c in ax.containers]
  np.testing.assert_allclose(x, [10.0, 10.0, 10.0])
  assert "to erm (points); right is better" in ax.get_xlabel()


def three_methods(experiment):
  worse = [
    {**r, "method": "mm", "run_id": "mm" + r["run_id"],
     "metrics": r["metrics"] | {"target/accuracy": 0.1}}
    for r in experiment
    if r["method"] == "mer"
  ]  # fmt: skip
  return reporting.build_table(experiment + worse, reference="erm")


def test_rank_plot_places_methods_on_their_mean_ranks(experiment):
  fig = reporting.rank_plot(three_methods(experiment))
  (ax,) = fig.axes
  marks = {(line.get_marker(), *line.get_xdata())
           for line in ax.lines if len(line.get_xdata()) == 1}  # fmt: skip
  # MER wins on both targets, ERM is second; looks are those of the table's order.
  assert {("s", 1.0), ("o", 2.0), ("D", 3.0)} == marks
  labels = {t.get_text().strip() for t in ax.texts}
  # Demsar 2006: q = 2.343 for three methods; CD = q sqrt(3 4 / (6 2)) = 2.34.
  assert {"mer  1.00", "erm  2.00", "mm  3.00", "critical difference 2.34"} <= labels
  # No two differ by 2.34: one bar joins all three.
  bars = [line for line in ax.lines if line.get_linewidth() == 4]
  np.testing.assert_allclose([b.get_xdata() for b in bars], [[0.96, 3.04]])


def test_two_methods_cannot_be_ranked(table, experiment):
  assert not plots.can_rank(table)
  assert plots.can_rank(three_methods(experiment))
  with pytest.raises(ValueError, match="need >= 3 methods on >= 2 common targets"):
    reporting.rank_plot(table)


def test_difference_plot_needs_a_reference(experiment):
  with pytest.raises(ValueError, match="no paired differences to reference=None"):
    reporting.difference_plot(reporting.build_table(experiment))


def test_learning_curves_mean_over_targets_and_entropy_in_config_order(experiment):
  fig = reporting.learning_curves(experiment)
  titles = [ax.get_title(loc="left") for ax in fig.axes if ax.axison]
  assert titles == [
    *("source validation", "target", "entropy of video", "entropy of audio")
  ]
  target = fig.axes[1].lines[1]  # ERM, the second method to appear.
  np.testing.assert_allclose(target.get_xdata(), [10, 20, 30])
  np.testing.assert_allclose(target.get_ydata(), [22.0, 42.0, 47.0])
  np.testing.assert_allclose(fig.axes[2].lines[0].get_ydata(), [-1, -2, -3])
  assert len(fig.axes[1].collections) == 2  # A band for each method.


def test_history_adds_to_the_curves(experiment):
  run = experiment[0]
  extra = {**run, "step": 5, "metrics": {"entropy/video": 7.0, "entropy/flow": 1.0}}
  fig = reporting.learning_curves(experiment, history=[extra])
  np.testing.assert_allclose(fig.axes[2].lines[0].get_ydata(), [7, -1, -2, -3])
  assert "entropy of flow" in [ax.get_title(loc="left") for ax in fig.axes]


def test_more_methods_than_colours_still_look_different():
  looks = [tuple(plots.style.look(i).values()) for i in range(28)]
  assert len(set(looks)) == 28


def test_names_are_no_formulas_and_no_markup(make):
  runs = [make(method="$x$ <b>", target="a_$b", step=s, seed=s) for s in (1, 2)]
  fig = reporting.target_plot(reporting.build_table(runs))
  assert not any(t.get_parse_math() for t in fig.axes[0].get_xticklabels())
  svg = plots.style.to_bytes(fig, "svg").decode()
  assert ">$x$ &lt;b&gt;<" in svg
  assert ">a_$b<" in svg


def test_curves_one_by_one_share_the_axis_of_scores(experiment):
  figures = plots.curve_figures(experiment, methods=["erm", "mer"])
  assert list(figures) == [
    *("source validation", "target", "entropy of video", "entropy of audio")
  ]
  (val,), (target,) = figures["source validation"].axes, figures["target"].axes
  assert val.get_ylim() == target.get_ylim()
  # ERM has the first look, though MER appears first in the records.
  np.testing.assert_allclose(target.lines[0].get_ydata(), [22.0, 42.0, 47.0])
  assert target.lines[0].get_color() == plots.style.COLORS[0]


def test_effective_rank_has_its_panels(experiment):
  records = [{**r, "metrics": r["metrics"] | {"effective_rank/audio": 2.5}}
             for r in experiment]  # fmt: skip
  panel = plots.curve_panels(records)[-1]
  assert panel.title == "effective rank of audio"
  assert panel.label == "dimensions"


def test_no_records_no_curves():
  with pytest.raises(ValueError, match="no records"):
    reporting.learning_curves([])


def small_figure():
  fig = Figure(figsize=(1, 1))
  fig.subplots().plot([0, 1])
  return fig


def test_saved_figures_are_whole_and_reproducible(tmp_path):
  paths = reporting.save_figure(small_figure(), tmp_path / "x.v1")
  assert [p.name for p in paths] == ["x.v1.png", "x.v1.svg"]
  assert paths[0].read_bytes().startswith(b"\x89PNG")
  xml.etree.ElementTree.parse(paths[1])
  first = [p.read_bytes() for p in paths]
  reporting.save_figure(small_figure(), tmp_path / "x.v1")
  assert [p.read_bytes() for p in paths] == first
  assert len(list(tmp_path.iterdir())) == 2  # No temporary file is left.


def test_a_write_that_fails_midway_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "table.md"
  protocol.write_atomic(path, "old")

  def disk_full(_):
    raise OSError("no space left")

  monkeypatch.setattr(os, "fsync", disk_full)
  with pytest.raises(OSError, match="no space"):
    protocol.write_atomic(path, "new text")
  assert path.read_text() == "old"
  assert list(tmp_path.iterdir()) == [path]


def test_reading_records_does_not_import_matplotlib():
  code = "import sys, mer_dg.reporting; sys.exit('matplotlib' in sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)
