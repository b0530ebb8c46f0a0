"""Single-source and in-domain tables: one training per source, honest records."""

import numpy as np
import pytest

from mer_dg import experiments
from mer_dg.experiments import ConfigError, WorkdirError, grid, make_setup, validate
from mer_dg.experiments.runs import Run
from mer_dg.experiments.workdir import Workdir


@pytest.fixture(scope="module")
def pairs(tiny, tmp_path_factory):
  """(records, text of the report, trainings per wave) of a single-source table."""
  folder, sizes = tmp_path_factory.mktemp("pairs"), []
  config = tiny("", protocol="single_source", methods=("erm", "mer_kde"), seeds=(0, 1))
  original = grid.WaveProgram.train

  def train(self, runs, *args):
    sizes.append((len(runs), len(grid.trainings(runs))))
    return original(self, runs, *args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(grid.WaveProgram, "train", train)
    text = experiments.run(config, workdir=str(folder))
  return Workdir(folder, validate(config)).records(), text, sizes


def test_every_pair_is_judged_and_every_source_trained_once(pairs):
  records, text, sizes = pairs
  # 6 ordered pairs, 2 seeds of each method; 3 sources are 3 trainings for each seed.
  assert sizes == [(12, 6), (12, 6)]
  last = [r for r in records if r["step"] == 20 and r["method"] == "erm"]
  found = {(*r["sources"], r["target"], r["seed"]) for r in last}
  domains = ("d0", "d1", "d2")
  wanted = {(s, t, n) for s in domains for t in domains for n in (0, 1) if s != t}
  assert found == wanted
  assert len(last) == 12
  for pair in ("d1 → d0", "d2 → d0", "d0 → d2"):
    assert pair in text


def test_a_shared_training_is_that_of_the_pair_alone(pairs, tiny, comparable):
  records, _, _ = pairs
  config = validate(tiny("", protocol="single_source", methods=("erm",)))
  shared = grid.Grid(make_setup(config))
  run = Run("erm", "d2", 1, sources=("d0",))
  alone = grid.WaveProgram(shared, "erm", [run.task], 1).train([run]).evaluations
  same = ["erm", "d2", 1, ["d0"]]
  mine = [
    r for r in records if [r["method"], r["target"], r["seed"], r["sources"]] == same
  ]
  assert len(mine) == len(alone) == 2
  for e, record in zip(alone, mine, strict=True):
    assert e.step == record["step"]
    for name, value in record["metrics"].items():
      np.testing.assert_allclose(e.metrics[name], value, rtol=1e-3, err_msg=name)
  # Its validation rows are those of its source; the target differs between pairs.
  other = [r for r in records if [*same[:1], "d1", *same[2:]] == [
    r["method"], r["target"], r["seed"], r["sources"]]]  # fmt: skip
  assert other[0]["metrics"]["val/nll"] == mine[0]["metrics"]["val/nll"]
  assert other[0]["metrics"]["target/nll"] != mine[0]["metrics"]["target/nll"]


def test_target_alone_records_name_the_target_as_source(tiny, tmp_path):
  config = tiny("", protocol="target_alone", methods=("erm",), targets=("d0", "d2"))
  config.seeds = (0,)
  experiments.run(config, workdir=str(tmp_path))
  records = Workdir(tmp_path, validate(config)).records()
  assert {(r["target"], *r["sources"]) for r in records} == {("d0", "d0"), ("d2", "d2")}
  split = make_setup(validate(config)).folds["d2", ("d2",)]
  assert not set(split.test) & {*split.train["d2"], *split.val["d2"]}


def test_the_upper_bound_trains_on_sources_and_target(tiny):
  setup = make_setup(validate(tiny("", protocol="with_target", targets=("d2",))))
  (task,) = setup.tasks
  split = setup.folds[task]
  assert split.sources == ("d0", "d1", "d2")
  assert setup.facts("erm", task).num_domains == 3
  assert not set(split.test) & {*split.train["d2"], *split.val["d2"]}


def test_what_does_not_fit_a_protocol_is_refused(tiny, tmp_path):
  with pytest.raises(ConfigError, match=r"config\.protocol='loo' must be one of"):
    validate(tiny("", protocol="loo"))
  with pytest.raises(
    ConfigError, match="must be \\(\\) with config.protocol='target_alone'"
  ):
    validate(tiny("", protocol="target_alone", sources=("d0",)))
  with pytest.raises(ConfigError, match="must name the one source of a single run"):
    validate(tiny("d1", protocol="single_source"))
  validate(tiny("d1", protocol="single_source", sources=("d0",)))
  alone = tiny("", protocol="single_source", sources=("d0",), targets=("d0",))
  with pytest.raises(ConfigError, match="'single_source' leaves no task"):
    experiments.run(alone, workdir=str(tmp_path))
  inside = tiny("", protocol="target_alone")
  with pytest.raises(ConfigError, match="'target_alone': --mode=diagnose compares"):
    experiments.run(inside, workdir=str(tmp_path), mode="diagnose")


def test_a_report_on_nothing_is_refused(tiny, tmp_path):
  with pytest.raises(WorkdirError, match="holds no records; train first"):
    experiments.run(tiny(""), workdir=str(tmp_path), mode="report")
