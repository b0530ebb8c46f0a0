"""Stress metrics of records: which are found, and how they are averaged."""

import math

import numpy as np
import pytest

from mer_dg import evaluation, reporting
from mer_dg.reporting import plots, stress


def records_of(make, **extra):
  """Two targets, two seeds; ``extra`` are metrics by name, functions of (t, seed)."""
  out = []
  for t, target in enumerate("ab"):
    for seed in range(2):
      metrics = {"val/accuracy": 0.9, "target/accuracy": 0.8}
      metrics |= {k: f(t, seed) for k, f in extra.items()}
      out.append(make(target=target, sources=["s"], seed=seed, metrics=metrics))
  return out


def test_missing_modalities_in_config_order_then_sets_and_mean_over_targets(make):
  names = {
    "target/without_audio/accuracy": lambda t, seed: 0.2 + 0.4 * t,
    "target/without_video/accuracy": lambda t, seed: 0.1,
    "target/without_video+audio/accuracy": lambda t, seed: 0.0,
    "target/without_audio/nll": lambda t, seed: 7.0,
  }
  found = stress.missing_modality(records_of(make, **names))
  assert found.conditions == (  # The config lists video before audio.
    *("all present", "without video", "without audio", "without video + audio"),
  )
  cells = found.methods["erm"]
  assert cells["all present"].mean == pytest.approx(0.8)
  assert cells["without audio"].mean == pytest.approx(0.4)  # (0.2 + 0.6) / 2.
  assert cells["without audio"].n == 4


def test_the_selected_evaluation_is_the_one_that_is_stressed(make):
  runs = []
  for step, val, without in ((1, 0.5, 0.0), (2, 0.9, 0.3), (3, 0.7, 1.0)):
    metrics = {"val/accuracy": val, "target/accuracy": 0.5}
    metrics["target/without_audio/accuracy"] = without
    runs.append(make(step=step, metrics=metrics))
  found = stress.missing_modality(runs)
  assert found.methods["erm"]["without audio"].mean == 0.3
  last = stress.missing_modality(runs, rule="last")
  assert last.methods["erm"]["without audio"].mean == 1.0


def test_old_records_have_no_stress_and_are_left_out(make, experiment):
  assert stress.missing_modality(experiment) is None
  assert stress.reliability(experiment) is None
  new = make(
    method="new", metrics={"val/accuracy": 1, "target/accuracy": 1,
                           "target/without_audio/accuracy": 0.5}
  )  # fmt: skip
  found = stress.missing_modality([make(), new])
  assert list(found.methods) == ["new"]


def bins_of(share, confidence, accuracy):
  """Metrics whose prediction mass lies in bins 3 and 14 as ``share``, 1 - share."""
  out = {}
  for b in range(15):
    s = {3: share, 14: 1 - share}.get(b, 0.0)
    out[f"target/reliability/{b:02d}/share"] = s
    out[f"target/reliability/{b:02d}/confidence"] = confidence if s else math.nan
    out[f"target/reliability/{b:02d}/accuracy"] = accuracy if s else math.nan
  return out


def test_reliability_weighs_runs_within_a_bin_by_their_predictions(make):
  base = {"val/accuracy": 1.0, "target/accuracy": 0.5}
  runs = [
    make(seed=0, metrics=base | bins_of(0.2, 0.25, 1.0)),
    make(seed=1, metrics=base | bins_of(0.6, 0.21, 0.5)),
    make(seed=2, metrics=base | bins_of(0.0, 0.99, 0.9)),
  ]
  bins = stress.reliability(runs).methods["erm"]
  assert len(bins) == evaluation.NUM_BINS
  third = bins[3]
  np.testing.assert_allclose(third.share, (0.2 + 0.6 + 0.0) / 3)
  np.testing.assert_allclose(third.confidence, (0.2 * 0.25 + 0.6 * 0.21) / 0.8)
  np.testing.assert_allclose(third.accuracy, (0.2 * 1.0 + 0.6 * 0.5) / 0.8)
  assert bins[0].share == 0
  assert math.isnan(bins[0].accuracy)


def test_bars_have_the_height_of_the_means(make):
  names = {"target/without_audio/accuracy": lambda t, seed: 0.2 + 0.1 * seed}
  fig = reporting.missing_plot(stress.missing_modality(records_of(make, **names)))
  (ax,) = fig.axes
  heights = [patch.get_height() for patch in ax.patches]
  np.testing.assert_allclose(heights, [80.0, 25.0])
  assert [t.get_text() for t in ax.get_xticklabels()] == [
    *("all\npresent", "without\naudio")
  ]


def test_reliability_plot_leaves_empty_bins_out(make):
  base = {"val/accuracy": 1.0, "target/accuracy": 0.5}
  runs = [make(metrics=base | bins_of(0.25, 0.25, 0.5))]
  fig = reporting.reliability_plot(stress.reliability(runs))
  diagonal, line = fig.axes[0].lines
  np.testing.assert_allclose(line.get_xydata(), [[25, 50], [25, 50]])
  np.testing.assert_allclose(diagonal.get_xydata(), [[0, 0], [100, 100]])


def severities(make):
  """Fog on video at severities 1 and 5, noise on audio at 3; and a clean method."""
  records = records_of(
    make,
    **{
      "target/corrupted/video/fog/1/accuracy": lambda t, seed: 0.6 + 0.2 * t,
      "target/corrupted/video/fog/5/accuracy": lambda t, seed: 0.1,
      "target/corrupted/audio/white_noise/3/accuracy": lambda t, seed: 0.4,
      "target/corrupted/audio/white_noise/3/nll": lambda t, seed: 9.0,
    },
  )
  clean = {"val/accuracy": 1.0, "target/accuracy": 0.9}
  return [*records, make(method="clean", target="a", sources=["s"], metrics=clean)]


def test_severities_start_at_the_clean_score_and_follow_the_config(make):
  found = stress.corrupted(severities(make))
  # The config lists video before audio.
  assert list(found.panels) == [("video", "fog"), ("audio", "white_noise")]
  fog = found.panels["video", "fog"]
  assert list(fog) == ["erm"]
  assert {s: round(i.mean, 3) for s, i in fog["erm"].items()} == {
    0: 0.8,
    1: 0.7,
    5: 0.1,
  }
  assert stress.corrupted([make()]) is None


def test_severity_plot_draws_the_means_on_one_axis(make):
  found = stress.corrupted(severities(make))
  fig = reporting.severity_plot(found)
  fog, noise = fig.axes[:2]
  assert fog.get_title(loc="left") == "video: fog"
  np.testing.assert_allclose(fog.lines[0].get_xydata(), [[0, 80], [1, 70], [5, 10]])
  assert noise.get_title(loc="left") == "audio: white noise"
  assert noise.get_ylim() == fog.get_ylim()


def test_reports_show_stress_where_it_was_recorded(tmp_path, make):
  names = {
    "target/without_audio/accuracy": lambda t, seed: 0.2,
    "target/corrupted/audio/wind/2/accuracy": lambda t, seed: 0.3,
  }
  text = reporting.write_report(tmp_path, records_of(make, **names))
  assert "![corrupted](corrupted.png)" in text
  assert "![missing](missing.png)" in text
  assert (tmp_path / "report" / "missing.svg").exists()
  page = (tmp_path / "report" / "index.html").read_text()
  assert "without audio" in page
  assert "audio: wind, target score against severity" in page
  assert plots.missing_plot is reporting.missing_plot
