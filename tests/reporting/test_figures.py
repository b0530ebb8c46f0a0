"""Figures show the numbers they are given, within what is possible."""

from matplotlib.colors import to_hex
import numpy as np
import pandas as pd
import pytest

from mer_dg import protocol, reporting
from mer_dg.protocol import Interval
from mer_dg.reporting import figures, maps, names

LOOKS = names.looks(["erm", "mer_kde", "other"])


def marks(ax, marker):
  found = [line for line in ax.lines if line.get_marker() == marker]
  return [(float(v.get_xdata()[0]), float(v.get_ydata()[0])) for v in found]


def test_a_method_looks_the_same_in_every_table():
  alone = names.looks(["x", "mer_kde"])
  assert alone["mer_kde"] == LOOKS["mer_kde"]
  assert LOOKS["erm"].color == "#000000"
  many = names.looks([f"m{i}" for i in range(30)] + ["erm", "mm"])
  assert len(set(many.values())) == 32
  assert (many["erm"], many["mm"].marker) == (LOOKS["erm"], "v")


def test_an_interval_plot_shows_means_runs_and_what_is_possible():
  lines = {
    "a": {"erm": Interval(0.9, 0.7, 1.4, 3), "mer_kde": Interval(0.2, -0.3, 0.5, 3)},
    "mean": {"erm": Interval(0.5, np.nan, np.nan, 1)},
  }
  runs = {"a": {"erm": [0.85, 0.95]}}
  beside = {"a": {"erm": Interval(0.99, 0.9, 1.0, 3)}}
  fig = figures.interval_plot(
    lines, LOOKS, metric="accuracy", xlabel="x", runs=runs, beside=beside
  )
  (ax,) = fig.axes
  erm, mer = LOOKS["erm"].marker, LOOKS["mer_kde"].marker
  assert [x for x, _ in marks(ax, erm)] == [99.0, 90.0, 50.0]  # The open mark first.
  ((x, y),) = marks(ax, mer)
  assert (x, y) > (20.0 - 1e-9, marks(ax, erm)[1][1])  # Below the first method.
  assert sorted(x for x, _ in marks(ax, ".")) == [85.0, 95.0]
  bars = {tuple(line.get_xdata()) for line in ax.lines if line.get_linewidth() == 1.8}
  assert bars == {(70.0, 100.0), (0.0, 50.0)}
  low, high = ax.get_xlim()
  assert (low, high) >= (0.0, 99.0)
  assert high <= 100.0
  assert [t.get_text() for t in fig.legends[0].get_texts()] == ["ERM", "MER (kde)"]


def test_differences_have_a_rule_at_zero_and_may_be_negative():
  lines = {"a": {"mer_kde": Interval(-0.1, -1.7, 1.5, 3)}}
  options = dict(metric="accuracy", xlabel="x", difference=True)
  (ax,) = figures.interval_plot(lines, LOOKS, **options).axes
  (bar,) = (line for line in ax.lines if line.get_linewidth() == 1.8)
  assert list(bar.get_xdata()) == [-100.0, 100.0]
  assert any(list(line.get_xdata()) == [0, 0] for line in ax.lines)


def test_curves_share_the_axis_of_scores():
  curve = lambda *v: {10 * i: Interval(x, x - 0.1, x + 0.1, 5) for i, x in enumerate(v)}
  panels = {
    ("val", "accuracy (%)"): {"erm": curve(0.5, 0.98)},
    ("target", "accuracy (%)"): {"erm": curve(0.1, 0.2), "mer_kde": curve(0.3, 0.4)},
    ("entropy of a", "nats"): {"erm": curve(-3.0, -4.0)},
  }
  found = figures.curve_plots(panels, LOOKS, "accuracy", "step")
  val, target, entropy = (fig.axes[0] for fig in found.values())
  assert val.get_ylim() == target.get_ylim()
  assert val.get_ylim() == (0.0, 100.0)  # 108 and -2 are not possible.
  np.testing.assert_allclose(target.lines[0].get_xydata(), [[0, 10], [10, 20]])
  assert target.lines[1].get_color() == LOOKS["mer_kde"].color
  np.testing.assert_allclose(entropy.lines[0].get_ydata(), [-3, -4])
  assert len(target.collections) == 2  # A band for each method.


def scores_of(targets):
  return {
    m: {t: {0: v} for t in targets} for m, v in (("erm", 0.5), ("x", 0.4), ("y", 0))
  }


def test_ranks_need_targets_and_are_drawn_on_their_places():
  assert not figures.can_rank(scores_of("abcde"))
  assert figures.can_rank(scores_of("abcdef"))
  two = {m: scores_of("abcdef")[m] for m in ("erm", "x")}
  assert not figures.can_rank(two)
  ranking = protocol.rank_methods(scores_of("abcdef"))
  (ax,) = figures.rank_plot(ranking, names.looks(["erm", "x", "y"])).axes
  lines = [t.get_text() for t in ax.get_yticklabels()]
  assert lines == ["ERM  1.00", "x  2.00", "y  3.00"]
  # Demsar 2006: q = 2.343 for three methods; CD = q sqrt(3 4 / (6 6)) = 1.35.
  assert ax.get_xlabel() == "mean rank (critical difference 1.35)"
  assert (1.0, 0.0) in marks(ax, LOOKS["erm"].marker)
  bars = [tuple(v.get_ydata()) for v in ax.lines if v.get_linewidth() == 4]
  np.testing.assert_allclose(bars, [[-0.25, 1.25], [0.75, 2.25]])


def test_many_methods_have_a_line_each_under_their_names():
  cells = {m: Interval(v, v - 0.9, v + 0.01, 4) for m, v in (("erm", 0.5), ("mm", 0.7))}
  looks = names.looks(cells)
  dots = {"mm": [0.6, 0.8]}
  options = dict(metric="accuracy", xlabel="x", dots=dots, beside={"erm": cells["mm"]})
  (ax,) = figures.forest_plot(cells, looks, **options).axes
  assert [t.get_text() for t in ax.get_yticklabels()] == ["MM", "ERM"]  # Best first.
  assert marks(ax, looks["mm"].marker) == [(70.0, 0.0)]
  assert marks(ax, ".") == [(60.0, 0.0), (80.0, 0.0)]
  bars = [list(v.get_xdata()) for v in ax.lines if v.get_linewidth() == 1.8]
  np.testing.assert_allclose(bars, [[0, 71], [0, 51]])  # Nothing is below 0.


def test_thin_bins_are_faint_and_off_the_line():
  bins = pd.DataFrame(
    {
      "share": [0.005, 0.4, 0.595],
      "confidence": [0.2, 0.5, 0.9],
      "accuracy": [1, 0.4, 0.8],
    }
  )
  (ax,) = figures.reliability_plot({"erm": bins}, LOOKS).axes
  diagonal, line = ax.lines
  np.testing.assert_allclose(line.get_xydata(), [[50, 40], [90, 80]])
  assert [c.get_alpha() for c in ax.collections] == [0.2, 0.8, 0.8]
  np.testing.assert_allclose(ax.collections[2].get_sizes(), [8 + 160 * 0.595])


LABEL, DOMAIN = np.arange(24) % 3, np.arange(24) // 12


@pytest.fixture
def two_maps():
  """Maps of two networks; the held-out domain is the first by name."""
  points = np.random.default_rng(0).normal(size=(24, 2))
  found = [maps.EmbeddingMap(t, m, points, (0.6, 0.2), LABEL, DOMAIN)
           for t in ("erm", "mer/x") for m in ("video", "audio")]  # fmt: skip
  return maps.EmbeddingMaps("toy", "a", 0, ("x", "y", "z"), ("a", "b"), tuple(found))


def test_a_map_has_a_colour_per_class_and_a_mark_per_domain(two_maps):
  key, panels = figures.map_plots(two_maps)
  assert list(panels) == ["ERM: video", "ERM: audio", "mer/x: video", "mer/x: audio"]
  (ax,) = panels["ERM: video"].axes
  target, source = ax.collections
  np.testing.assert_allclose(target.get_offsets(), two_maps.maps[0].points[:12])
  colors = [to_hex(c).upper() for c in target.get_facecolors()]
  assert colors == [[*names.COLORS][k] for k in LABEL[:12]]
  shapes = [s.get_paths()[0].vertices.shape for s in (target, source)]
  assert shapes[0] != shapes[1]
  # Each class has its number in the sources and, framed, in the target.
  assert sorted(t.get_text() for t in ax.texts) == sorted("012012")
  labels = [t.get_text() for t in key.legends[0].get_texts()]
  assert labels == ["0 x", "1 y", "2 z", "b", "a (target)"]


def test_a_file_keeps_the_maps(tmp_path, two_maps):
  assert maps.read_maps(tmp_path) is None
  maps.write_maps(tmp_path, two_maps)
  back = maps.read_maps(tmp_path)
  assert (back.target, back.class_names[2]) == ("a", "z")
  assert back.are_of("toy", ["audio", "video"])
  assert not back.are_of("toy", ["audio"])
  for m, was in zip(back.maps, two_maps.maps, strict=True):
    assert (m.training, m.modality) == (was.training, was.modality)
    assert tuple(m.share) == was.share
    np.testing.assert_allclose(m.points, was.points, atol=1e-4)
    np.testing.assert_array_equal(m.label, was.label)
  (tmp_path / maps.FILE).write_text('{"maps": [')
  with pytest.raises(ValueError, match=r"embedding_maps\.json holds no embedding maps"):
    maps.read_maps(tmp_path)


def test_the_page_gives_a_figure_its_colours_and_own_ids(tmp_path):
  lines = {"$x$ <b>": {"erm": Interval(0.5, 0.4, 0.6, 5)}}
  draw = lambda: figures.interval_plot(lines, LOOKS, metric="nll", xlabel="id='x'")
  first, again = (figures.to_bytes(draw(), "svg") for _ in range(2))
  assert first == again
  text = figures.inline(first, "p1", 'a "b" <c>')
  assert text.startswith('<svg role="img" aria-label="a &quot;b&quot; &lt;c&gt;"')
  assert "$x$ &lt;b&gt;" in text  # Neither a formula nor markup.
  assert "<style" not in text
  assert "currentColor" in text
  assert "#000000" not in text
  assert 'id="p1-' in text
  assert text.count('id="') == text.count('id="p1-')
  paths = reporting.save_figure(draw(), tmp_path / "x.v1", ("svg", "pdf"))
  assert [p.name for p in paths] == ["x.v1.svg", "x.v1.pdf"]
  assert paths[0].read_bytes() == first
  assert len(list(tmp_path.iterdir())) == 2  # No temporary file is left.
