"""The generated set shows fusion overfitting, as its documentation says."""

import numpy as np
import pytest

from configs import cooccurrence
from mer_dg.data.cooccurrence import Cooccurrence, best_target_accuracy
from mer_dg.experiments import Workbench, validate
from mer_dg.experiments.diagnose import diagnose, to_markdown


@pytest.fixture(scope="module")
def probes():
  config = cooccurrence.get_config()
  config.methods = ("erm", "mer_kde")
  config.targets = ("d0",)
  config.seeds = (0, 1)
  config.total_steps = config.eval_every = 300
  return diagnose(Workbench(validate(config)))


def mean(probes, training, probed, where):
  rows = [v[where] for k, v in probes.items() if k[:2] == (training, probed)]
  assert len(rows) == 2
  return np.mean(rows)


def test_plain_fusion_falls_below_encoders_that_never_saw_each_other(probes):
  joint = mean(probes, "erm", "fused", "target")
  # It loses far more than 10 points on the way from the sources to the target,
  assert mean(probes, "erm", "fused", "val") - joint > 0.25
  # below a linear probe on encoders trained alone (by 15 points when written).
  assert joint < mean(probes, "alone", "all", "target") - 0.05
  # A probe of one encoder loses nothing: alone, it cannot see the pairing.
  for m in ("m0", "m1"):
    drop = mean(probes, "alone", m, "val") - mean(probes, "alone", m, "target")
    assert abs(drop) < 0.06


def test_entropy_wins_back_a_large_part(probes):
  gain = mean(probes, "mer_kde", "fused", "target")
  gain -= mean(probes, "erm", "fused", "target")
  assert gain > 0.1  # 20 points over 20 runs when written


def test_plain_fusion_lives_on_which_samples_came_together(probes):
  reliance = {}
  for method in ("erm", "mer_kde"):
    paired = mean(probes, method, "fused", "val")
    reliance[method] = paired - mean(probes, method, "re-paired", "val")
  # 52 and 17 points when written. Chance is 25 %: re-paired, ERM is near the target.
  assert reliance["erm"] > 0.4
  assert reliance["mer_kde"] < reliance["erm"] - 0.2
  near = mean(probes, "erm", "re-paired", "val") - mean(
    probes, "erm", "fused", "target"
  )
  assert abs(near) < 0.08
  # In the target the pairing says nothing, so that nothing is lost there.
  lost = mean(probes, "erm", "fused", "target")
  lost -= mean(probes, "erm", "re-paired", "target")
  assert abs(lost) < 0.06


def test_nothing_beats_the_best_possible_accuracy(probes):
  best = best_target_accuracy(Cooccurrence(seed=1))
  # 500 target rows: three standard errors of a proportion are at most 0.067.
  assert all(v["target"] < best + 0.067 for v in probes.values())


def test_markdown_has_a_row_per_training(probes):
  lines = to_markdown(probes).splitlines()
  assert [line.split("|")[1].strip() for line in lines[2:]] == [
    "erm",
    "mer_kde",
    "alone",
  ]
  assert all(line.count("|") == lines[0].count("|") for line in lines)
