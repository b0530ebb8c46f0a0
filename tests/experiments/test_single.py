"""One run: drivers agree, a killed run ends as if nothing had happened."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mer_dg.data.arrays import to_arrays
from mer_dg.experiments import (
  TrainingDiverged,
  WorkdirError,
  make_setup,
  run,
  setup,
  single,
  validate,
)
from mer_dg.experiments.workdir import Workdir, read_lines
from mer_dg.protocol import select
from mer_dg.training.checkpoints import CheckpointError, Checkpoints
from mer_dg.training.step import make_resident_chunk

# main.py, in which writing row N of metrics.jsonl is the last thing that happens; if
# told so, once the checkpoint that is being written meanwhile is complete.
KILLED = """
import os, runpy, signal, sys, time
from mer_dg.experiments.workdir import MetricsLog
write, calls = MetricsLog.write, []
def kill_at(self, step, metrics):
  write(self, step, metrics)
  calls.append(step)
  if len(calls) == int(os.environ["KILL_AT"]):
    while not os.path.exists(os.environ["WAIT_FOR"]):
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
MetricsLog.write = kill_at
sys.argv = ["main.py", *sys.argv[1:]]
runpy.run_path("main.py", run_name="__main__")
"""


@pytest.fixture(autouse=True, scope="module")
def _quick_programs():
  """None here: what is compared bit by bit compiles as users do."""


def assert_equal_states(a, b):
  plain = lambda s: s.replace(key=jax.random.key_data(s.key))
  jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


def rows(workdir):
  """metrics.jsonl without speed."""
  return [
    {k: v for k, v in row.items() if k != "steps_per_s"}
    for row in read_lines(workdir.metrics)
  ]


def test_both_drivers_end_with_the_same_bits(finished, comparable):
  (a, here), (b, there) = finished["resident"], finished["stream"]
  assert_equal_states(a, b)
  assert rows(here) == rows(there)
  for one, other in zip(here.records(), there.records(), strict=True):
    one, other = comparable(one), comparable(other)
    mine, theirs = one.pop("metrics"), other.pop("metrics")
    assert one == other
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
      # One program for all blocks, or one block at a time: the last bit may differ.
      np.testing.assert_allclose(theirs[name], value, rtol=1e-5, err_msg=name)


def test_a_run_learns_and_leaves_what_it_should(finished):
  state, workdir = finished["resident"]
  assert int(state.step) == 20
  assert [row["step"] for row in rows(workdir)] == [5, 10, 15, 20]
  assert rows(workdir)[-1]["loss/fused"] < rows(workdir)[0]["loss/fused"]
  assert [r["step"] for r in workdir.records()] == [10, 20]
  names = {p.name for p in workdir.path.iterdir()}
  assert {"config.json", "metrics.jsonl", "results.jsonl", "done"} < names
  ids = {r["run_id"] for r in workdir.records()}
  for folder in ("tensorboard", "checkpoints"):
    assert {p.name for p in (workdir.path / folder).iterdir()} == ids
  assert {row["run"] for row in rows(workdir)} == ids
  events = EventAccumulator(str(workdir.path / "tensorboard" / min(ids))).Reload()
  shown = set(events.Tags()["scalars"])
  assert {"train/loss", "val/accuracy", "val/nll", "entropy/m0"} < shown
  assert not [name for name in shown if "target" in name]  # Nobody peeks.
  assert (workdir.path / "tensorboard" / min(ids) / "settings").is_dir()
  wanted = {"val/accuracy", "target/accuracy", "val/d0/accuracy", "entropy/m0"}
  assert wanted < set(workdir.records()[-1]["metrics"])


# After the third row the checkpoint of step 10 is perhaps still being written; after
# the fourth, everything but the last record is there.
@pytest.mark.parametrize(
  ("driver", "kill_at", "resumed"),
  [
    pytest.param("resident", 3, (0, 10), marks=pytest.mark.slow),
    ("stream", 4, (10,)),
  ],
)
def test_killed_and_started_again(
  flags,
  train,
  finished,
  comparable,
  checkpoints,
  tmp_path,
  repo_root,
  capsys,
  driver,
  kill_at,
  resumed,
):
  saved = tmp_path / "checkpoints" / checkpoints(finished[driver][1]).name
  command = [sys.executable, "-c", KILLED, "--config=configs/cooccurrence.py:d1"]
  command += [*flags, f"--config.driver={driver}", f"--workdir={tmp_path}"]
  died = subprocess.run(
    command,
    cwd=repo_root,
    env=os.environ
    | {"PYTHONPATH": str(repo_root), "KILL_AT": str(kill_at)}
    | {"WAIT_FOR": str(saved / "10") if kill_at == 4 else "main.py"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert died.returncode == -signal.SIGKILL, died.stderr
  written = read_lines(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in written] == [5, 10, 15, 20][:kill_at]
  assert not (tmp_path / "done").exists()

  expected, reference = finished[driver]
  capsys.readouterr()
  state, workdir = train(tmp_path, driver=driver)
  went_on = re.findall(r"Resuming .* at step (\d+) of 20", capsys.readouterr().out)
  assert int(went_on[0] if went_on else 0) in resumed
  assert_equal_states(state, expected)
  assert rows(workdir) == rows(reference)
  assert [*map(comparable, workdir.records())] == [
    *map(comparable, reference.records())
  ]


def test_a_truncated_newest_checkpoint(
  train, finished, comparable, checkpoints, tmp_path
):
  expected, reference = finished["resident"]
  shutil.copytree(reference.path, tmp_path / "w")
  saved = tmp_path / "w" / "checkpoints" / checkpoints(reference).name
  for file in (saved / "20" / "state").rglob("*"):
    if file.is_file():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  with pytest.warns(RuntimeWarning, match=r"checkpoints/\w+/20 cannot be read"):
    state, workdir = train(tmp_path / "w", driver="resident")
  assert_equal_states(state, expected)
  assert rows(workdir) == rows(reference)
  assert [*map(comparable, workdir.records())] == [
    *map(comparable, reference.records())
  ]


def test_evaluation_equals_the_record_of_the_selected_step(finished, tiny):
  _, workdir = finished["resident"]
  config = validate(tiny(driver="resident"))
  found = single.evaluate(make_setup(config), workdir)
  (record,) = select(workdir.records(), metric="accuracy")
  assert found.pop("step") == record["step"]
  assert found == record["metrics"]
  stored = json.loads((workdir.path / "evaluation.json").read_text())
  assert stored["metrics"] == found
  assert stored["run_id"] == record["run_id"]


def test_evaluation_without_a_readable_checkpoint(
  tiny, finished, checkpoints, tmp_path
):
  _, reference = finished["resident"]
  config = validate(tiny(driver="resident"))
  with pytest.raises(WorkdirError, match="holds no checkpoint of mer_kde.*train first"):
    run(config, workdir=str(tmp_path / "none"), mode="evaluate")
  assert not (tmp_path / "none").exists()
  shutil.copytree(reference.path, tmp_path / "w")
  for step in (10, 20):
    saved = tmp_path / "w" / "checkpoints" / checkpoints(reference).name
    shutil.rmtree(saved / str(step) / "state")
  with pytest.raises(CheckpointError, match="cannot be read"):
    run(config, workdir=str(tmp_path / "w"), mode="evaluate")


def test_the_selected_checkpoint_is_not_replaced_by_another(
  tiny, finished, checkpoints, tmp_path
):
  _, reference = finished["resident"]
  shutil.copytree(reference.path, tmp_path / "w")
  (best,) = select(reference.records(), metric="accuracy")
  saved = tmp_path / "w" / "checkpoints" / checkpoints(reference).name
  assert best["step"] < 20  # Else nothing is left that could take its place.
  lost = saved / str(best["step"])
  shutil.rmtree(lost)
  config = validate(tiny(driver="resident"))
  with pytest.raises(CheckpointError, match=f"{lost} is not there.*makes it again"):
    run(config, workdir=str(tmp_path / "w"), mode="evaluate")


def test_a_workdir_of_another_protocol_is_refused(tiny, finished):
  _, workdir = finished["resident"]
  before = sorted(workdir.path.rglob("*"))
  with pytest.raises(
    WorkdirError, match=r"another protocol: config.total_steps was 20 and is now 40"
  ):
    run(tiny(driver="resident", total_steps=40), workdir=str(workdir.path))
  assert sorted(workdir.path.rglob("*")) == before


def test_divergence_stops_the_run_and_leaves_the_last_good_state(
  tiny, train, finished, checkpoints, tmp_path
):
  """A run that goes on from step 10 with an absurd learning rate."""
  _, reference = finished["resident"]
  absurd = {"optimizer__lr": 1e30, "driver": "resident"}
  with pytest.raises(
    TrainingDiverged, match=r"loss/\w+ stopped being finite at step \d \(steps 1 to 5\)"
  ):
    train(tmp_path / "fresh", **absurd)
  assert not (tmp_path / "fresh" / "done").exists()
  # The same in a workdir that has a checkpoint: it is still there, and restores.
  shutil.copytree(reference.path, tmp_path / "w")
  saved = tmp_path / "w" / "checkpoints" / checkpoints(reference).name
  shutil.rmtree(saved / "20")
  config = validate(tiny(driver="resident"))
  made, workdir = make_setup(config), Workdir(tmp_path / "w", config)
  _, template, _ = single._prepare(made, single.the_run(made))
  hyper = jax.tree.map(np.float32, template.hyper)
  hyper["optimizer"]["lr"] = np.float32(1e30)
  with Checkpoints(saved) as manager:
    good, meta = manager.restore_latest(template)
    manager.save(11, good.replace(hyper=hyper), meta, (0.0, 0.0))
    manager.wait()
  with pytest.raises(TrainingDiverged, match=r"\(steps 11 to 15\)"):
    single.train(made, workdir)
  (row,) = workdir.gave_up()
  assert (row["run_id"], row["target"]) == (saved.name, "d1")
  with Checkpoints(saved) as manager:
    assert manager.steps() == [10, 11]
    again, _ = manager.restore(template, 10)
  jax.tree.map(np.testing.assert_array_equal, again.params, good.params)


# Together these have every term and both estimators.
@pytest.mark.parametrize("method", ["mer_kde+mm", "mer_logdet"])
def test_target_rows_replaced_by_noise_change_no_parameter(tiny, method, monkeypatch):
  load = setup.load_dataset

  def with_noise(*fields):
    dataset = load(*fields)
    rows = dataset.domain == dataset.domain_id("d1")
    rng = np.random.default_rng(5)
    noisy = {
      m: np.where(rows[:, None], 1e3 * rng.normal(size=x.shape), x).astype(x.dtype)
      for m, x in dataset.inputs.items()
    }
    label = np.where(rows, rng.permutation(dataset.label), dataset.label)
    return dataclasses.replace(dataset, inputs=noisy, label=label)

  chunk, params = None, []
  for loader in (load, with_noise):
    monkeypatch.setattr(setup, "load_dataset", loader)
    made = make_setup(validate(tiny(method=method)))
    task, state, step = single._prepare(made, single.the_run(made))
    chunk = chunk or jax.jit(make_resident_chunk(step, per_domain=48, length=10))
    pool = jax.tree.map(jnp.asarray, task.pool)
    arrays = to_arrays(made.dataset.in_memory())
    params.append(chunk(arrays, pool, state)[0].params)
  jax.tree.map(np.testing.assert_array_equal, *params)
  # The test sees what it is meant to see: source rows do change parameters.
  flipped = arrays._replace(label=arrays.label[::-1])
  changed = chunk(flipped, pool, state)[0].params
  same = [
    np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(changed), jax.tree.leaves(params[0]), strict=True)
  ]
  assert not all(same)
