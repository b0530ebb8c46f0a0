"""The loop of one run around a driver: progress, evaluation, checkpoints, resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import time
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from mer_dg.training.progress import Progress
from mer_dg.training.state import TrainState
from mer_dg.training.step import first_nonfinite

if TYPE_CHECKING:
  from mer_dg.training.checkpoints import Checkpoints  # Orbax: a second to import.


class TrainingDiverged(RuntimeError):
  """A loss stopped being finite; the message names steps and term."""


class Driver(Protocol):
  """Feeds batches to the step; `resident` and `stream` are the two there are."""

  def advance(self, state: TrainState, steps: int) -> tuple[TrainState, Any]:
    """State after ``steps`` steps and their metrics, stacked over steps."""
    ...

  def position(self) -> dict[str, Any]:
    """JSON object that `seek` takes after a resume."""
    ...

  def seek(self, step: int, position: dict[str, Any]) -> None:
    """Goes to the batch that follows ``step`` taken steps."""
    ...

  def close(self) -> None:
    """Ends what runs beside the loop."""
    ...


def fit(
  state: TrainState,
  driver: Driver,
  *,
  evaluate: Callable[[TrainState], tuple[TrainState, Mapping[str, float]]],
  checkpoints: Checkpoints,
  total_steps: int,
  log_every: int,
  eval_every: int,
  rank: Callable[[Mapping[str, float]], Sequence[float]],
  on_log: Callable[[int, Mapping[str, float]], None],
  on_eval: Callable[[int, Mapping[str, float]], None],
  on_resume: Callable[[int], None],
  label: str = "",
  metric: str = "accuracy",
) -> TrainState:
  """Trains from the newest checkpoint, or from ``state``, to ``total_steps``.

  Every ``eval_every`` steps the run is evaluated, its records are written and
  then it is checkpointed; a killed run loses what came after and repeats it
  exactly. Metrics are averaged over the ``log_every`` steps they cover.

  Args:
    state: The state before the first step.
    driver: Where batches come from.
    evaluate: ``state -> (state, {metric: float})``; terms may remember what they saw.
    checkpoints: Where states go.
    total_steps: When to stop.
    log_every: Steps between log lines; divides ``eval_every``.
    eval_every: Steps between evaluations and checkpoints.
    rank: ``evaluation -> numbers`` by which the best checkpoint is kept, larger is
      better. It must look at source validation only, and is finite for a model
      that predicts at all.
    on_log: Called with (step, mean metrics).
    on_eval: Called with (step, evaluation), before the checkpoint is saved.
    on_resume: Called with the step from which training goes on (0 for fresh).
    label: Name shown by the progress bar.
    metric: Of source validation, shown at every evaluation.

  Returns:
    The final state.

  Raises:
    TrainingDiverged: If a metric is not finite, or the validation of a state that
      was about to be saved is not; the last checkpoint is good.
  """
  restored = checkpoints.restore_latest(state)
  if restored is not None:
    state, meta = restored
    driver.seek(int(state.step), meta["data"])
  step = int(state.step)
  on_resume(step)
  with Progress(total_steps, step, label) as progress:
    progress.name(label, compiling=step < total_steps)
    while step < total_steps:
      start, began = step, time.perf_counter()
      # Boundaries lie on multiples of the intervals, wherever a resume starts.
      stop = min((step // log_every + 1) * log_every, total_steps)
      state, metrics = driver.advance(state, stop - step)
      metrics = jax.tree.map(np.asarray, metrics)
      step = stop
      _check_finite(metrics, start)
      means = {k: float(v.mean()) for k, v in metrics.items()}
      means["steps_per_s"] = (step - start) / (time.perf_counter() - began)
      progress.update(step, means)
      on_log(step, means)
      if step % eval_every == 0 or step == total_steps:
        state, evaluation = evaluate(state)
        found = rank(evaluation)
        if not np.all(np.isfinite(found)):
          raise _diverged("the source validation", step, start, step)
        progress.note(step, evaluation, metric)
        on_eval(step, evaluation)
        checkpoints.save(step, state, {"data": driver.position()}, found)
  checkpoints.wait()
  return state


def _check_finite(metrics: Mapping[str, np.ndarray], start: int) -> None:
  bad = first_nonfinite(metrics, start)
  if bad is not None:
    length = len(next(iter(metrics.values())))
    raise _diverged(bad[1], bad[0], start, start + length)


def _diverged(what: str, step: int, start: int, stop: int) -> TrainingDiverged:
  return TrainingDiverged(
    f"{what} stopped being finite at step {step} (steps {start + 1} to {stop}). The "
    "last good checkpoint is kept; lower config.optimizer.lr or the weight of that "
    "term: that is another run, for which the same workdir has room."
  )
