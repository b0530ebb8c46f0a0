"""Many runs at once: as single runs, on any number of devices, killed or not."""

import json
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mer_dg.experiments import grid, make_setup, run, tables, validate
from mer_dg.experiments.config import as_dict
from mer_dg.experiments.grid import Grid, Wave, WaveProgram, train_all
from mer_dg.experiments.runs import Run
from mer_dg.experiments.workdir import Workdir, read_lines
from mer_dg.protocol import Assignment, read_records

# The table of test_killed_grid, whose second wave is killed when it is to be written.
KILLED = """
import os, runpy, signal, sys
from mer_dg.experiments import tables
append, calls = tables.append_records, []
def kill_at(path, records):
  calls.append(path)
  if len(calls) == 2:
    records = records[:3]  # Half of the wave reaches the disk.
  append(path, records)
  if len(calls) == 2:
    os.kill(os.getpid(), signal.SIGKILL)
tables.append_records = kill_at
sys.argv = ["main.py", *sys.argv[1:]]
runpy.run_path("main.py", run_name="__main__")
"""

# Five runs on 2 devices and on 8: what WaveProgram gives, as arrays in files.
DEVICES = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from mer_dg.experiments import make_setup, validate
from mer_dg.experiments.grid import Grid, WaveProgram
from mer_dg.experiments.runs import Run
shared = Grid(make_setup(validate(json.loads(sys.argv[1]))))
for count in (2, 8):
  devices = jax.devices()[:count]
  program = WaveProgram(shared, "mer_kde", [("d0", ())], 5, devices=devices)
  state, pool, _ = program.begin([Run("mer_kde", "d0", seed) for seed in range(5)])
  state, metrics = program.advance(state, pool, 10)
  leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state.params))}
  found = {k: v[:5] for k, v in (metrics | leaves).items()}
  used = len(state.step.sharding.device_set)
  np.savez(f"{sys.argv[2]}/{count}.npz", used=used, **found)
"""


@pytest.fixture(scope="module")
def shared(tiny):
  return Grid(make_setup(validate(tiny("", wave=3))))


def test_runs_of_a_wave_equal_single_runs(shared, finished, comparable):
  """Bits may differ: products of stacked matrices are summed in another order."""
  name = shared.setup.config.method
  runs = [Run(name, t, s) for t, s in (("d1", 0), ("d0", 0), ("d1", 3))]
  # Compiled ahead of time, as the next method is while one trains.
  program = WaveProgram(shared, name, [r.task for r in runs[:2]], 3).prepare(runs)
  program._chunk = lambda length: pytest.fail(f"{length} steps are compiled again")
  wave = program.train(runs)
  assert not wave.diverged
  state, workdir = finished["resident"]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-5),
    wave.state.params,
    state.params,
  )
  mine = [e for e in wave.evaluations if e.run == runs[0]]
  for e, record in zip(mine, workdir.records(), strict=True):
    assert e.step == record["step"]
    for name, value in record["metrics"].items():
      np.testing.assert_allclose(e.metrics[name], value, rtol=1e-3, err_msg=name)
  # The other seed and the other target are other runs.
  nll = {e.run: e.metrics["val/nll"] for e in wave.evaluations}
  assert len(set(nll.values())) == 3


def test_waves_are_even_and_filled_up(shared):
  """Four runs at most three at once are two and two, not three and one."""
  waves = []
  runs = [Run("erm", "d0", seed) for seed in range(5)]
  train_all(shared, runs, waves.append)
  assert [len(w.runs) for w in waves] == [3, 2]
  assert [w.state.step.shape for w in waves] == [(3,), (3,)]  # One program.
  assert [e.run.seed for w in waves for e in w.evaluations if e.step == 20] == [
    0,
    1,
    2,
    3,
    4,
  ]
  # A run's numbers do not depend on its company.
  again = []
  train_all(shared, runs, again.append, done=runs[:3])
  assert [len(w.runs) for w in again] == [2]
  for a, b in zip(waves[1].evaluations, again[0].evaluations, strict=True):
    assert a.metrics == b.metrics


@pytest.mark.parametrize("fails", [False, True])
def test_the_next_method_is_made_while_one_trains(shared, monkeypatch, fails):
  made = []

  class Program:
    def __init__(self, grid, name, tasks, lanes):
      made.append((name, threading.current_thread() is threading.main_thread()))

    def prepare(self, runs):
      if fails:
        raise RuntimeError("no memory for two")
      return self

    def train(self, runs, on_chunk):
      return Wave(runs, [], [], None, None)

  monkeypatch.setattr(grid, "WaveProgram", Program)
  runs = [Run(m, "d0", seed) for m in ("erm", "heads", "md") for seed in range(4)]
  waves = []
  train_all(shared, runs, waves.append)
  assert [r for w in waves for r in w.runs] == runs
  first, ahead = ("erm", True), [("heads", False), ("md", False)]
  again = [("heads", True), ("md", True)] if fails else []
  assert sorted(made) == sorted([first, *ahead, *again])


TABLE = dict(methods=("erm",), targets=("d0", "d1"), seeds=(0, 1), wave=2)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
  """``(folder, text)`` of a table that nothing interrupted."""
  folder = tmp_path_factory.mktemp("whole")
  return folder, run(tiny("", **TABLE), workdir=str(folder))


def test_killed_grid(tiny, flags, whole, tmp_path, repo_root, comparable):
  words = ["--config.methods=('erm',)", "--config.targets=('d0','d1')"]
  words += ["--config.seeds=(0,1)", "--config.wave=2"]
  command = [sys.executable, "-c", KILLED, "--config=configs/cooccurrence.py"]
  killed = tmp_path / "killed"
  died = subprocess.run(
    [*command, *flags, *words, f"--workdir={killed}"],
    cwd=repo_root,
    env=os.environ | {"PYTHONPATH": str(repo_root)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert died.returncode == -signal.SIGKILL, died.stderr
  # Two runs, two steps each; then three records of the next four.
  assert len(read_records(killed / "results.jsonl")) == 7
  text = run(tiny("", **TABLE), workdir=str(killed))
  resumed = read_records(killed / "results.jsonl")
  expected = read_records(whole[0] / "results.jsonl")
  assert [*map(comparable, resumed)] == [*map(comparable, expected)]
  assert len(expected) == 8
  assert "| ERM" in text


def test_a_diverged_run_is_reported_and_left_out(tiny, tmp_path, capsys, monkeypatch):
  """Seed 1 gets an absurd learning rate; the other seeds make the table."""
  runs = [Run("erm", "d0", s, (("optimizer.lr", 1e30),) * (s == 1)) for s in range(3)]
  monkeypatch.setattr(tables, "final_runs", lambda *_: runs)
  config = tiny("", methods=("erm",), targets=("d0",), seeds=(0, 1, 2), wave=3)
  text = run(config, workdir=str(tmp_path))
  assert {r["seed"] for r in read_records(tmp_path / "results.jsonl")} == {0, 2}
  (row,) = read_lines(tmp_path / "diverged.jsonl")
  assert "erm, target d0, seed 1, optimizer.lr 1e+30" in row["message"]
  assert "stopped being finite at step" in row["message"]
  for shown in (text, (tmp_path / "report" / "report.md").read_text()):
    assert "### Left out\n\n- erm, target d0, seed 1" in shown
  assert "the run is left out" in capsys.readouterr().err
  # It is not tried again.
  monkeypatch.setattr(tables, "train_all", lambda *_, **__: pytest.fail("trained"))
  assert "Left out" in run(config, workdir=str(tmp_path))
  assert capsys.readouterr().out.startswith("Finished already: nothing to train.\n")


def test_a_run_that_diverges_late_leaves_no_evaluation(shared, monkeypatch):
  found = []

  def second_run_at_step_12(metrics, start):
    found.append(start)
    return (12, "loss/fused") if len(found) == 3 + 2 else None

  monkeypatch.setattr(grid, "first_nonfinite", second_run_at_step_12)
  runs = [Run("erm", "d0", seed) for seed in range(3)]
  wave = WaveProgram(shared, "erm", [runs[0].task], 3).train(runs)
  assert wave.diverged == [grid.Divergence(runs[1], 12, "loss/fused")]
  assert [(e.run.seed, e.step) for e in wave.evaluations] == [
    (0, 10),
    (2, 10),
    (0, 20),
    (2, 20),
  ]


def test_devices_share_the_runs_and_change_no_number(tiny, tmp_path, repo_root):
  """Five runs on 2 devices (three each, one to fill up) and on 8 (five used)."""
  config = validate(tiny("", methods=("mer_kde",)))
  command = [sys.executable, "-c", DEVICES, json.dumps(as_dict(config)), str(tmp_path)]
  # -k: a process that dead-locks among its devices does not heed SIGTERM.
  ended = subprocess.run(
    ["timeout", "-k", "5", "300", *command],
    cwd=repo_root,
    env=os.environ | {"PYTHONPATH": str(repo_root)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 0, ended.stderr
  program = WaveProgram(Grid(make_setup(config)), "mer_kde", [Assignment("d0")], 5)
  state, pool, _ = program.begin([Run("mer_kde", "d0", seed) for seed in range(5)])
  state, metrics = program.advance(state, pool, 10)
  leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state.params))}
  assert np.ptp(metrics["loss"], axis=0).min() > 0  # Five different runs.
  for devices, used in ((2, 2), (8, 5)):
    with np.load(tmp_path / f"{devices}.npz") as arrays:
      found = dict(arrays)
    assert found.pop("used") == used
    assert found.keys() == (metrics | leaves).keys()
    for name, value in (metrics | leaves).items():
      # Ten steps: other shapes are summed in another order, and Adam carries it on.
      np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_finished_table_trains_nothing(tiny, whole, monkeypatch, capsys):
  folder, text = whole
  monkeypatch.setattr(tables, "train_all", lambda *_, **__: pytest.fail("trained"))
  capsys.readouterr()
  assert run(tiny("", **TABLE), workdir=str(folder)) == text
  page = folder / "report" / "index.html"
  said = f"Finished already: nothing to train.\nReport: {page}\n"
  assert capsys.readouterr() == (said, "")
  ids = {r["run_id"] for r in Workdir(folder, validate(tiny("", **TABLE))).records()}
  assert {p.name for p in (folder / "tensorboard").iterdir()} == ids
  own = folder / "tensorboard" / min(ids)
  assert (own / "settings").is_dir()
  events = EventAccumulator(str(own)).Reload()
  assert [e.step for e in events.Scalars("val/accuracy")] == [10, 20]
  assert not [name for name in events.Tags()["scalars"] if "target" in name]
