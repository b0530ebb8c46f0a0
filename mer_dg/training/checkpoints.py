"""Checkpoints with orbax: atomic, newest plus best, restored newest-that-reads.

Two habits of orbax are handled here and nowhere else: its asynchronous save is
lost when the process ends without waiting, and ``max_to_keep`` with ``best_fn``
deletes the newest step (the preservation policy below keeps both).
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

_POLICY = ocp.checkpoint_managers


class Checkpoints:
  """The checkpoints of one run, in one folder.

  Use as a context manager: leaving it waits for the last save.

  Args:
    folder: Where the steps lie; made if absent.
    keep: Newest steps to keep, at least 2, so that one broken step still
      leaves another; the best by score is kept besides.
  """

  def __init__(self, folder: str | Path, *, keep: int = 2):
    if keep < 2:
      raise ValueError(f"keep={keep} must be at least 2.")
    self._folder = Path(folder).absolute()
    self._keep = keep
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    score = lambda metrics: metrics["score"]
    options = ocp.CheckpointManagerOptions(
      preservation_policy=_POLICY.AnyPreservationPolicy(
        [_POLICY.LatestN(self._keep), _POLICY.BestN(get_metric_fn=score, n=1)]
      ),
      best_fn=score,
      cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(self._folder, options=options)

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *exc) -> None:
    self._manager.close()

  def save(self, step: int, state: Any, meta: dict[str, Any], score: float) -> None:
    """Saves a step.

    Args:
      step: Its number; saving one that exists is a no-op.
      state: Pytree of arrays.
      meta: JSON object, such as the state of the data iterator.
      score: Source-validation metric, larger is better; nan ranks last.
    """
    # orbax ranks nan as the best score there is.
    score = score if math.isfinite(score) else -math.inf
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
      ),
      metrics={"score": score},
    )

  def wait(self) -> None:
    """Returns when all saves are on disk."""
    self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """Saved steps, ascending."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """The saved step of the highest score, or None."""
    return self._manager.best_step()

  def restore(self, template: Any, step: int) -> tuple[Any, dict[str, Any]]:
    """State and meta of one step; raises whatever orbax raises if it is broken."""
    abstract = jax.tree.map(_abstract, template)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
      ),
    )
    return restored["state"], restored["meta"]

  def restore_latest(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
    """State and meta of the newest step that reads; None if there is none.

    A step that does not read (a truncated file, say) is set aside under
    ``<folder>-broken`` with a warning, and the one before it is tried.

    Args:
      template: A state of the right structure, shapes, dtypes and sharding.
    """
    found, broken = None, []
    for step in reversed(self.steps()):
      try:
        found = self.restore(template, step)
        break
      except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else ""
        warnings.warn(
          f"Checkpoint {self._folder / str(step)} cannot be read "
          f"({type(error).__name__}: {reason}); falling back to the one before it.",
          RuntimeWarning,
          stacklevel=2,
        )
        broken.append(step)
    if broken:
      self._set_aside(broken)
    return found

  def _set_aside(self, steps: list[int]) -> None:
    self._manager.close()
    aside = self._folder.with_name(self._folder.name + "-broken")
    aside.mkdir(exist_ok=True)
    for step in steps:
      goal = aside / str(step)
      while goal.exists():
        goal = goal.with_name(goal.name + "_")
      (self._folder / str(step)).rename(goal)
    self._manager = self._open()


def _abstract(leaf):
  """Shape, dtype and place of a leaf; the place is what a restore goes to."""
  leaf = jax.numpy.asarray(leaf) if not isinstance(leaf, jax.Array) else leaf
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
