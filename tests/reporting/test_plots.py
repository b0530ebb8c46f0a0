"""Plots show the numbers of the table, and files appear whole or not at all."""

import pathlib
import subprocess
import sys
import xml.etree.ElementTree

from matplotlib.figure import Figure
import numpy as np
import pytest

from mer_dg import reporting
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
  looks = [tuple(plots._look(i).values()) for i in range(28)]
  assert len(set(looks)) == 28


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
  reporting.write_atomic(path, "old")

  def disk_full(self, data):
    with open(self, "wb") as f:
      f.write(data[:2])
    raise OSError("no space left")

  monkeypatch.setattr(pathlib.Path, "write_bytes", disk_full)
  with pytest.raises(OSError, match="no space"):
    reporting.write_atomic(path, "new text")
  assert path.read_text() == "old"
  assert list(tmp_path.iterdir()) == [path]


def test_reading_records_does_not_import_matplotlib():
  code = "import sys, mer_dg.reporting; sys.exit('matplotlib' in sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)
