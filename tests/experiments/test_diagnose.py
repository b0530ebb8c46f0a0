"""The generated set shows fusion overfitting, as its documentation says."""

import json

import numpy as np
import pytest

from configs import cooccurrence
from mer_dg.data.cooccurrence import Cooccurrence, best_target_accuracy
from mer_dg.experiments import launch, make_setup, validate
from mer_dg.experiments.diagnose import diagnose, to_markdown
from mer_dg.protocol import read_records


def make_config():
  config = cooccurrence.get_config()
  config.methods = ("erm", "mer_kde")
  config.targets = ("d0",)
  config.seeds = (0, 1)
  config.total_steps = config.eval_every = 300
  return config


@pytest.fixture(scope="module")
def diagnosis():
  """``(probes, waves as they were handed on, maps)``."""
  waves, maps = [], []
  probes = diagnose(make_setup(validate(make_config())), waves.append, maps.append)
  return probes, waves, maps


@pytest.fixture(scope="module")
def probes(diagnosis):
  return diagnosis[0]


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
  lines = to_markdown(probes).split("\n\n")[0].splitlines()
  assert [line.split("|")[1].strip() for line in lines[2:]] == [
    "erm",
    "mer_kde",
    "alone",
  ]
  assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_the_last_records_get_stress_and_representation(diagnosis):
  _, waves, _ = diagnosis
  before = {e.run: e for w in waves[:2] for e in w.evaluations if e.step == 300}
  after = [e for w in waves[2:] for e in w.evaluations]
  assert {e.run for e in after} == set(before)
  assert len(before) == 4
  for e in after:
    old = before[e.run].metrics
    assert e.step == 300
    assert e.metrics.items() >= old.items()  # Nothing is changed,
    new = e.metrics.keys() - old.keys()  # and this is added:
    assert len([k for k in new if k.startswith("target/corrupted/m0/")]) == 4 * 5
    assert {"target/mean_for_m0/accuracy", "target/mean_for_m1/accuracy"} <= new
    for name in ("domain_accuracy", "procrustes", "entropy_knn/target"):
      assert f"representation/m1/{name}" in new


def test_stress_agrees_with_the_compiled_evaluation(diagnosis):
  probes, waves, _ = diagnosis
  for e in (e for w in waves[:2] for e in w.evaluations if e.step == 300):
    fused = probes[e.run.method, "fused", "d0", e.run.seed]
    for m in ("m0", "m1"):
      recorded = e.metrics[f"target/without_{m}/accuracy"]
      assert fused[f"without_{m}"] == pytest.approx(recorded, abs=1e-6)


def test_what_carries_the_prediction_is_what_corruption_takes(probes):
  values = {
    method: [v for k, v in probes.items() if k[:2] == (method, "fused")]
    for method in ("erm", "mer_kde")
  }
  lost = {
    method: np.mean([v["target"] - v["corrupted/m0/spikes/5"] for v in rows])
    for method, rows in values.items()
  }
  assert lost["mer_kde"] > 0.1  # 19 points over 20 runs when written,
  assert lost["mer_kde"] > lost["erm"] + 0.05  # 3 for ERM, which is low to begin with.
  mild = np.mean([v["corrupted/m0/spikes/1"] for v in values["mer_kde"]])
  assert mild > np.mean([v["corrupted/m0/spikes/5"] for v in values["mer_kde"]]) + 0.1


def test_entropy_is_larger_inside_what_was_trained_for_it(probes):
  inside = lambda training, name: np.mean(
    [v[name] for k, v in probes.items() if k[:2] == (training, "m0")]
  )
  for name in ("entropy_kde/target", "entropy_gaussian/val", "effective_rank/target"):
    assert inside("mer_kde", name) > inside("erm", name)
  assert 0.5 < inside("alone", "domain_accuracy") <= 1


def test_maps_of_every_training_for_one_target_and_seed(diagnosis):
  ((maps,),) = diagnosis[2:]
  assert (maps.target, maps.seed) == ("d0", 0)
  assert {m.training for m in maps.maps} == {"erm", "mer_kde", "alone"}
  own = {m.modality for m in maps.maps if m.training == "alone"}
  assert own == {"m0", "m1"}
  for m in maps.maps:
    assert 100 < len(m.points) <= 320
    assert set(m.domain) == {0, 1, 2, 3}


def test_a_method_with_a_network_of_its_own_is_examined_with_it(tiny):
  small = dict(methods=("erm", "late"), targets=("d0",), seeds=(0,))
  setup, waves = make_setup(validate(tiny("", **small))), []
  probes = diagnose(setup, waves.append)
  for wave in waves[:2]:  # As the evaluation of the run has it.
    *_, last = wave.evaluations
    found = probes[last.run.method, "fused", "d0", 0]
    for name in ("without_m0", "without_m1"):
      expected = last.metrics[f"target/{name}/accuracy"]
      np.testing.assert_allclose(found[name], expected, atol=1e-6)
    # The same samples, each modality from another one of the class.
    assert 0 <= probes[last.run.method, "re-paired", "d0", 0]["val"] <= 1


def test_markdown_has_what_was_found_under_stress_and_inside(probes):
  text = to_markdown(probes)
  for heading in ("## Corrupted", "## Modalities missing", "## Inside the embeddings"):
    assert heading in text
  assert sum(line.startswith("| m1: ") for line in text.splitlines()) == 4
  fused = [v for k, v in probes.items() if k[:2] == ("erm", "fused")]
  zero, mean = (
    100 * np.mean([v[f"{how}_m1"] for v in fused]) for how in ("without", "mean_for")
  )
  assert f"| without m1 | {zero:.1f} / {mean:.1f} |" in text


def test_a_table_that_is_diagnosed_later_keeps_its_records(
  diagnosis, tmp_path, monkeypatch
):
  probes, waves, maps = diagnosis
  shown = waves[:2]  # As --mode=train would leave it.

  def replay(setup, on_wave, on_maps=lambda _: None):
    for wave in shown:
      on_wave(wave)
    on_maps(*maps)
    return probes

  def records():
    monkeypatch.setattr(launch, "diagnose", replay)
    text = launch.run(make_config(), workdir=str(tmp_path), mode="diagnose")
    return text, read_records(tmp_path / "results.jsonl")

  _, before = records()
  shown = waves
  text, after = records()
  assert len(after) == len(before) == 4
  for old, new in zip(before, after, strict=True):
    assert new | {"metrics": {}} == old | {"metrics": {}}
    added = new["metrics"].keys() - old["metrics"].keys()
    assert {k.split("/")[1] for k in added} == {
      *("corrupted", "mean_for_m0", "mean_for_m1", "m0", "m1"),
    }
  folder = tmp_path / "report"
  assert (folder / "diagnosis.md").read_text() == text + "\n"
  rows = [*map(json.loads, (folder / "diagnosis.jsonl").read_text().splitlines())]
  name = "corrupted/m1/spikes/5"
  fused = sorted(r[name] for r in rows if r["probed"] == "fused")
  assert fused == sorted(r["metrics"][f"target/{name}/accuracy"] for r in after)
  page = (folder / "index.html").read_text()
  for heading in ("With a modality corrupted", "Inside the embeddings", "mean for m0"):
    assert heading in page
  assert (folder / "corrupted-m1-spikes.svg").stat().st_size > 5000
