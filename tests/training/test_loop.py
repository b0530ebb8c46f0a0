"""The loop around a driver: intervals, resume, divergence; no network involved."""

import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.training.checkpoints import Checkpoints
from mer_dg.training.loop import TrainingDiverged, fit
from mer_dg.training.state import TrainState


class Counter:
  """A driver whose state sums the numbers of its steps; nan from a step on."""

  def __init__(self, bad_from=10**9):
    self.bad_from, self.chunks = bad_from, []

  def advance(self, state, steps):
    first = int(state.step)
    self.chunks.append((first, first + steps))
    taken = np.arange(first + 1, first + steps + 1)
    loss = np.where(taken >= self.bad_from, np.nan, 1.0 * taken)
    metrics = {"loss": loss, "loss/mer": loss, "loss/fused": 1.0 * taken}
    params = state.params + jnp.sum(jnp.asarray(taken))
    return state.replace(step=jnp.int32(first + steps), params=params), metrics

  def position(self):
    return {"chunks": len(self.chunks)}

  def seek(self, step, position):
    self.sought = (step, position)

  def close(self):
    pass


def empty():
  zero = jnp.int32(0)
  return TrainState(zero, zero, jnp.float32(0), {}, (), {}, {})


def run(folder, driver, *, total=10, evaluate=None, on_eval=lambda step: None):
  log, evaluations, resumed = [], [], []

  def record(step, found):
    on_eval(step)
    evaluations.append(step)

  with Checkpoints(folder) as checkpoints:
    state = fit(
      empty(),
      driver,
      evaluate=evaluate or (lambda s: (s, {"val/x": float(s.step)})),
      checkpoints=checkpoints,
      total_steps=total,
      log_every=2,
      eval_every=4,
      rank=lambda found: (found["val/x"],),
      on_log=lambda step, metrics: log.append((step, metrics["loss"])),
      on_eval=record,
      on_resume=resumed.append,
    )
  return state, log, evaluations, resumed


def test_intervals_and_the_last_step(tmp_path):
  state, log, evaluations, resumed = run(tmp_path / "c", Counter())
  assert evaluations == [4, 8, 10]
  assert log == [(2, 1.5), (4, 3.5), (6, 5.5), (8, 7.5), (10, 9.5)]
  assert resumed == [0]
  assert float(state.params) == 55.0


def test_resume_goes_on_from_the_checkpoint(tmp_path):
  def killed(state):
    if int(state.step) == 8:
      raise KeyboardInterrupt
    return state, {"val/x": 0.0}

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / "c", Counter(), evaluate=killed)
  driver = Counter()
  state, log, evaluations, resumed = run(tmp_path / "c", driver)
  assert resumed == [4]
  assert driver.sought == (4, {"chunks": 2})
  assert evaluations == [8, 10]
  assert float(state.params) == 55.0
  # A finished run does nothing.
  driver = Counter()
  state, *_, resumed = run(tmp_path / "c", driver)
  assert (driver.chunks, resumed, float(state.params)) == ([], [10], 55.0)


def test_a_kill_between_record_and_checkpoint_loses_no_record(tmp_path):
  def killed(step):
    if step == 8:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / "c", Counter(), on_eval=killed)
  with Checkpoints(tmp_path / "c") as checkpoints:
    assert checkpoints.steps() == [4]


def test_what_terms_remember_of_an_evaluation_is_saved_with_it(tmp_path):
  def evaluate(state):
    seen = int(state.step)
    return state.replace(memory={"seen": jnp.int32(seen)}), {"val/x": 1.0}

  state, *_ = run(tmp_path / "c", Counter(), evaluate=evaluate, total=8)
  assert int(state.memory["seen"]) == 8
  with Checkpoints(tmp_path / "c") as checkpoints:
    assert int(checkpoints.restore(state, 4)[0].memory["seen"]) == 4


def test_divergence_names_steps_and_term_and_keeps_the_last_good_state(tmp_path):
  with pytest.raises(
    TrainingDiverged, match=r"loss/mer stopped being finite at step 7 \(steps 7 to 8\)"
  ):
    run(tmp_path / "c", Counter(bad_from=7))
  with Checkpoints(tmp_path / "c") as checkpoints:
    assert checkpoints.steps() == [4]
    assert float(checkpoints.restore_latest(empty())[0].params) == 10.0


def test_a_state_whose_validation_is_not_finite_is_not_saved(tmp_path):
  found = lambda s: (s, {"val/x": np.nan if int(s.step) == 8 else 1.0})
  with pytest.raises(TrainingDiverged, match="source validation .* at step 8"):
    run(tmp_path / "c", Counter(), evaluate=found)
  with Checkpoints(tmp_path / "c") as checkpoints:
    assert checkpoints.steps() == [4]
