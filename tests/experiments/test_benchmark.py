"""A benchmark is its tables: planned and checked first, resumed, reported together."""

import json

import pytest

from mer_dg import experiments
from mer_dg.experiments import ConfigError, benchmark, grid, memory, validate
from mer_dg.experiments.board import Board
from mer_dg.experiments.runs import Run
from mer_dg.experiments.workdir import Workdir


@pytest.fixture(scope="module")
def config(tiny):
  """Two sets, one by another name with more noise; ERM only."""
  made = tiny("", methods=("erm",), seeds=(0, 1), targets=("d0", "d1"))
  made.benchmark.datasets = {
    "calm": {},
    "noisy": {"data": {"cooccurrence": {"noise": (1.0, 1.0)}}},
  }
  made.benchmark.protocols = ("leave_one_domain_out", "target_alone")
  return made


NAMES = [
  f"{s}/{p}/m0+m1"
  for s in ("calm", "noisy")
  for p in ("leave_one_domain_out", "target_alone")
]
TRAINED = [name for name in NAMES if "target_alone" in name]


def test_the_plan_changes_what_a_set_says_and_nothing_else(config, tmp_path):
  config = validate(config)
  cells = list(benchmark.plan(config, tmp_path))
  assert [c.name for c in cells] == NAMES
  noisy = cells[2].setup.config
  assert tuple(noisy.data.cooccurrence.noise) == (1.0, 1.0)
  assert tuple(cells[0].setup.config.data.cooccurrence.noise) != (1.0, 1.0)
  for field in ("seeds", "methods", "network", "optimizer", "total_steps", "targets"):
    assert getattr(noisy, field) == getattr(config, field)
  # A table of a benchmark is a table that --mode=train would make.
  assert not noisy.benchmark.datasets
  assert [c.setup.config.protocol for c in cells[:2]] == [
    "leave_one_domain_out",
    "target_alone",
  ]
  assert [c.trainings for c in cells] == [4] * 4  # Targets x seeds.
  assert not list(tmp_path.iterdir())  # Planning writes nothing.


def test_subsets_are_tables_of_their_own(config, tmp_path):
  made = config.copy_and_resolve_references()
  made.benchmark.datasets = {}
  made.benchmark.protocols = ("single_source",)
  made.benchmark.subsets = "every"
  cells = list(benchmark.plan(validate(made), tmp_path))
  assert [c.name for c in cells] == [
    f"cooccurrence/single_source/{m}" for m in ("m0+m1", "m0", "m1")
  ]
  assert [c.setup.dataset.modalities for c in cells] == [("m0", "m1"), ("m0",), ("m1",)]
  assert benchmark.subsets("all", ("v", "a", "f")) == [("v", "a", "f")]
  assert len(benchmark.subsets("fused", ("v", "a", "f"))) == 4
  assert benchmark.subsets("fused", ("v",)) == [("v",)]


@pytest.fixture(scope="module")
def trained_config(config):
  """One protocol of it."""
  made = config.copy_and_resolve_references()
  made.benchmark.protocols = ("target_alone",)
  return made


@pytest.fixture(scope="module")
def interrupted(trained_config, tmp_path_factory):
  """(folder, final text, runs trained before and after an interruption)."""
  folder = tmp_path_factory.mktemp("benchmark")
  trained, original = [[], []], grid.WaveProgram.train

  def train(part):
    def train(self, runs, *args):
      if len(trained[0]) == 3 and not part:
        raise KeyboardInterrupt  # In the middle of the second table.
      trained[part].append(len(runs))
      return original(self, runs, *args)

    return train

  call = lambda: experiments.run(trained_config, workdir=str(folder), mode="benchmark")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(memory, "_WAVE_CPU", 2)
    patch.setattr(grid.WaveProgram, "train", train(0))
    with pytest.raises(KeyboardInterrupt):
      call()
    patch.setattr(grid.WaveProgram, "train", train(1))
    text = call()
  return folder, text, trained


def test_it_goes_on_with_the_missing_waves(interrupted, trained_config):
  folder, _, (before, after) = interrupted
  # 2 tables of 2 waves of 2 runs each.
  assert before == [2, 2, 2]
  assert after == [2]
  for cell in benchmark.plan(validate(trained_config), folder):
    records = cell.workdir.records()
    places = {(r["run_id"], r["step"]) for r in records}
    assert len(records) == len(places) == 2 * 2 * 2  # Targets x seeds x steps.
    assert {r["protocol"] for r in records} == {cell.setup.config.protocol}
    assert cell.workdir.finished
    assert (cell.workdir.path / "report" / "index.html").exists()


def test_the_report_shows_every_table_and_their_overview(interrupted, trained_config):
  folder, text, _ = interrupted
  assert "## Overview" in text
  overview = text.split("## Overview")[1].split("\n\n")[1].splitlines()
  assert len(overview) == 2 + 2
  assert (folder / "report" / "index.html").exists()
  assert (folder / "done").exists()
  progress = (folder / "progress.md").read_text()
  assert progress.startswith("8 of 8 networks;")
  for name in TRAINED:
    assert name in progress
  again = experiments.run(trained_config, workdir=str(folder), mode="report")
  assert again == text


def test_two_settings_of_one_generator_are_told_apart(interrupted):
  _, text, _ = interrupted
  for name in ("calm (m0 + m1)", "noisy (m0 + m1)"):
    assert f"\n## {name}, target alone\n" in text


def test_a_table_that_cannot_train_is_named_before_any_does(config, tmp_path):
  made = config.copy_and_resolve_references()
  made.benchmark.datasets.noisy.data.cooccurrence.strengths = (1.0, 2.0, 3.0)
  folder = tmp_path / "never"
  with pytest.raises(ConfigError, match=r"benchmark\.datasets\.noisy"):
    experiments.run(made, workdir=str(folder), mode="benchmark")
  made = config.copy_and_resolve_references()
  made.targets = ("d0", "nowhere")
  with pytest.raises(ConfigError, match=r"table calm/leave.*'nowhere'"):
    experiments.run(made, workdir=str(folder), mode="benchmark")
  assert not folder.exists()
  with pytest.raises(ConfigError, match=r"config\.target='d1'.*config\.targets"):
    one = config.copy_and_resolve_references()
    one.target = "d1"
    experiments.run(one, workdir=str(folder), mode="benchmark")
  other = config.copy_and_resolve_references()
  other.benchmark.datasets = {"x": {"metric": "balanced_accuracy"}}
  with pytest.raises(ConfigError, match=r"datasets\.x\.metric.*one headline"):
    experiments.run(other, workdir=str(folder), mode="benchmark")
  unknown = config.copy_and_resolve_references()
  unknown.benchmark.datasets = {"x": {"total_step": 3}}
  with pytest.raises(ConfigError, match=r"datasets\.x.*total_step is not a field"):
    experiments.run(unknown, workdir=str(folder), mode="benchmark")


def test_time_left_is_reckoned_per_set(tmp_path, monkeypatch):
  clock = iter([0.0, 0.0, 30.0, 30.0, 32.0])
  monkeypatch.setattr("mer_dg.experiments.board.time.perf_counter", lambda: next(clock))
  planned = {"a/1": ("a", 4), "b/1": ("b", 2), "a/2": ("a", 4), "c/1": ("c", 2)}
  board = Board(planned, "accuracy", tmp_path / "progress.md")
  wave = lambda n: grid.Wave([Run("erm", "t", s) for s in range(n)], [], [], None, None)
  board.begin("a/1")
  board.add(wave(3))  # 10 s each; the other sets are taken to be like it.
  assert board.seconds_left() == pytest.approx(10 * (1 + 2 + 4 + 2))
  board.end([])
  board.begin("b/1")
  board.add(wave(1))  # 2 s; c counts like the mean of a and b.
  assert board.seconds_left() == pytest.approx(2 * 1 + 10 * 4 + 6 * 2)
  assert board.status() == "5 of 12 networks, about 0:00:54 left"
  shown = json.dumps((tmp_path / "progress.md").read_text())
  assert "b/1 (now) |        1/2" in shown


def test_records_of_a_workdir_without_hosts_are_one_file(interrupted):
  folder, _, _ = interrupted
  for name in TRAINED:
    stored = json.loads((folder / "tables" / name / "config.json").read_text())
    workdir = Workdir(folder / "tables" / name, stored)
    assert workdir.parts(workdir.results) == [workdir.results]
