"""The generated set shows fusion overfitting, as its documentation says."""

import shutil

import numpy as np
import pytest

from configs import cooccurrence
from mer_dg.data.cooccurrence import Cooccurrence, best_target_accuracy
from mer_dg.experiments import make_setup, run, tables, validate
from mer_dg.experiments.diagnose import diagnose, to_markdown
from mer_dg.experiments.grid import train_all
from mer_dg.experiments.stress import Stress
from mer_dg.experiments.workdir import Workdir, read_lines
from mer_dg.protocol import read_records
from mer_dg.reporting.maps import read_maps
from mer_dg.training.parameters import CheckpointError


def make_config():
  config = cooccurrence.get_config()
  config.methods = ("erm", "mer_kde")
  config.targets = ("d0",)
  config.seeds = (0, 1)
  config.total_steps = config.eval_every = 300
  return config


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  """A workdir in which the table was trained, as --mode=train leaves it."""
  folder = tmp_path_factory.mktemp("table")
  run(make_config(), workdir=str(folder))
  return folder


@pytest.fixture(scope="module")
def examined(table, tmp_path_factory):
  """``(workdir, probes)``: a copy of it, diagnosed; training was not repeated."""
  folder = shutil.copytree(table, tmp_path_factory.mktemp("diagnosed") / "w")
  config = validate(make_config())
  asked = []

  def only_alone(grid, runs, on_wave, *, done=()):
    asked.append((grid.setup.dataset.modalities, {r.method for r in runs}))
    train_all(grid, runs, on_wave, done=done)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tables, "train_all", only_alone)
    run(make_config(), workdir=str(folder), mode="diagnose")
    assert asked == [(("m0",), {"erm"}), (("m1",), {"erm"})]
    # Nothing is left to train or to examine.
    patch.setattr(tables, "train_all", lambda *_, **__: pytest.fail("trained"))
    patch.setattr(Stress, "scores", lambda *_: pytest.fail("examined"))
    probes, _ = diagnose(make_setup(config), Workdir(folder, config))
  return folder, probes


@pytest.fixture(scope="module")
def probes(examined):
  return examined[1]


@pytest.fixture(scope="module")
def last(table, examined):
  """``{run id: (record of the table, record after the diagnosis)}``, last step."""
  records = [
    {r["run_id"]: r for r in read_records(folder / "results.jsonl") if r["step"] == 300}
    for folder in (table, examined[0])
  ]
  assert records[0].keys() == records[1].keys()
  return {own: (records[0][own], records[1][own]) for own in records[0]}


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


def test_the_last_records_get_stress_and_representation(last):
  assert len(last) == 4
  for old, new in last.values():
    assert new | {"metrics": {}} == old | {"metrics": {}}
    assert new["metrics"].items() >= old["metrics"].items()  # Nothing is changed,
    added = new["metrics"].keys() - old["metrics"].keys()  # and this is added:
    assert len([k for k in added if k.startswith("target/corrupted/m0/")]) == 4 * 5
    assert {k.split("/")[1] for k in added} == {
      *("corrupted", "mean_for_m0", "mean_for_m1", "m0", "m1"),
    }
    for name in ("domain_accuracy", "procrustes", "entropy_knn/target"):
      assert f"representation/m1/{name}" in added


def test_the_networks_examined_are_those_of_the_table(probes, last):
  """Scores that both evaluations have agree, from parameters that were read back."""
  for record, _ in last.values():
    fused = probes[record["method"], "fused", "d0", record["seed"]]
    for m in ("m0", "m1"):
      recorded = record["metrics"][f"target/without_{m}/accuracy"]
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


def test_maps_of_every_training_for_one_target_and_seed(examined):
  maps = read_maps(examined[0] / "report")
  assert (maps.target, maps.seed) == ("d0", 0)
  assert {m.training for m in maps.maps} == {"erm", "mer_kde", "alone"}
  own = {m.modality for m in maps.maps if m.training == "alone"}
  assert own == {"m0", "m1"}
  for m in maps.maps:
    assert 100 < len(m.points) <= 320
    assert set(m.domain) == {0, 1, 2, 3}


def test_a_killed_diagnosis_goes_on_with_what_it_had_not_examined(
  tmp_path, tiny, monkeypatch
):
  """Of a table with a method that has a network of its own."""
  fields = dict(methods=("erm", "late"), targets=("d0",), seeds=(0, 1))
  command = lambda: run(tiny("", **fields), workdir=str(tmp_path), mode="diagnose")
  shown, scores = [], Stress.scores

  def killed(self, task, network, variables):
    shown.append(len(variables))
    if len(shown) == 2:
      raise KeyboardInterrupt
    return scores(self, task, network, variables)

  monkeypatch.setattr(Stress, "scores", killed)
  with pytest.raises(KeyboardInterrupt):
    command()
  lines = lambda: [
    (row["training"], row["seed"], row["probed"])
    for row in read_lines(tmp_path / "report" / "diagnosis.jsonl")
  ]
  assert {training for training, *_ in lines()} == {"erm"}
  before = (tmp_path / "report" / "diagnosis.jsonl").read_text()
  monkeypatch.setattr(tables, "train_all", lambda *_, **__: pytest.fail("trained"))
  command()
  assert shown == [2, 2, 2]
  after = (tmp_path / "report" / "diagnosis.jsonl").read_text()
  assert after.startswith(before)
  assert len(set(lines())) == len(lines()) == 2 * (2 * 5 + 3)
  for record in read_records(tmp_path / "results.jsonl"):
    for m in ("m0", "m1"):  # Late fusion was examined as what it is.
      assert 0 <= record["metrics"][f"target/without_{m}/accuracy"] <= 1
  file, *_ = (tmp_path / "checkpoints").iterdir()
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(CheckpointError, match=f"{file.name} cannot be read"):
    command()


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


def test_the_files_of_a_diagnosis(examined, probes, last):
  folder = examined[0] / "report"
  assert (folder / "diagnosis.md").read_text() == to_markdown(probes) + "\n"
  rows = read_lines(folder / "diagnosis.jsonl")
  name = "corrupted/m1/spikes/5"
  fused = sorted(r[name] for r in rows if r["probed"] == "fused")
  records = [new["metrics"] for _, new in last.values()]
  assert fused == sorted(r[f"target/{name}/accuracy"] for r in records)
  page = (folder / "index.html").read_text()
  for heading in ("With a modality corrupted", "Inside the embeddings", "mean for m0"):
    assert heading in page
  assert (folder / "corrupted-m1-spikes.svg").stat().st_size > 5000
