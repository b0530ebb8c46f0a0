"""Checkpoints with orbax: atomic, newest plus best, restored newest-that-reads.

Two habits of orbax are handled here and nowhere else: its asynchronous save is
lost when the process ends without waiting, and ``max_to_keep`` with ``best_fn``
deletes the newest step (the preservation policy below keeps both).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
import contextlib
import math
from pathlib import Path
from typing import Any
import warnings

import jax
import orbax.checkpoint as ocp

_POLICY = ocp.checkpoint_managers


class CheckpointError(ValueError):
  """A checkpoint cannot be read or written; the message names it."""


class Checkpoints:
  """The checkpoints of one run, in one folder.

  Use as a context manager: leaving it waits for the last save.

  Args:
    folder: Where the steps lie; made if absent.
    keep: Newest steps to keep, at least 2, so that one broken step still
      leaves another; the best by rank is kept besides.
  """

  def __init__(self, folder: str | Path, *, keep: int = 2):
    if keep < 2:
      raise ValueError(f"keep={keep} must be at least 2.")
    self._folder = Path(folder).absolute()
    self._keep = keep
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    # A tuple where orbax declares a float: it is compared, and nothing else.
    rank: Any = lambda metrics: tuple(metrics["rank"])
    options = ocp.CheckpointManagerOptions(
      preservation_policy=_POLICY.AnyPreservationPolicy(
        [_POLICY.LatestN(self._keep), _POLICY.BestN(get_metric_fn=rank, n=1)]
      ),
      best_fn=rank,
      cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(self._folder, options=options)

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *exc) -> None:
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Generator[None]:
    """Turns what orbax raises for a save, then or later, into one sentence."""
    try:
      yield
    except Exception as error:  # A full disk is a ValueError or an OSError to it.
      reason = " ".join(str(error).split())
      raise CheckpointError(
        f"A checkpoint in {self._folder} cannot be written ({type(error).__name__}: "
        f"{reason if len(reason) < 300 else '... ' + reason[-300:]})."
      ) from error

  def save(
    self, step: int, state: Any, meta: dict[str, Any], rank: Sequence[float]
  ) -> None:
    """Saves a step.

    The end is not waited for: what fails then is raised by the next save, by `wait`,
    or on leaving.

    Args:
      step: Its number; saving one that exists is a no-op.
      state: Pytree of arrays.
      meta: JSON object, such as the state of the data iterator.
      rank: Numbers from source validation, compared in order, larger is better;
        nan ranks last. The earlier of two equal steps is the better one.

    Raises:
      CheckpointError: If it, or the one before it, cannot be written.
    """
    # orbax ranks nan as the best score there is.
    rank = [r if math.isfinite(r) else -math.inf for r in rank]
    with self._writing():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
        ),
        metrics={"rank": [*rank, -step]},
      )

  def wait(self) -> None:
    """Returns when all saves are on disk; raises as `save` does."""
    with self._writing():
      self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """Saved steps, ascending."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """The saved step of the highest rank, or None."""
    return self._manager.best_step()

  def restore(self, template: Any, step: int) -> tuple[Any, dict[str, Any]]:
    """State and meta of one step.

    Args:
      template: A state of the right structure, shapes, dtypes and sharding.
      step: One of `steps`.

    Raises:
      CheckpointError: If the step cannot be read; says why.
    """
    abstract = jax.tree.map(_abstract, template)
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
        ),
      )
    except Exception as error:  # orbax raises a dozen types for a broken file.
      reason = str(error).splitlines()[0][:200] if str(error) else ""
      raise CheckpointError(
        f"Checkpoint {self._folder / str(step)} cannot be read "
        f"({type(error).__name__}: {reason})"
      ) from error
    return restored["state"], restored["meta"]

  def restore_latest(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
    """State and meta of the newest step that reads; None if there is none.

    A step that does not read (a truncated file, say) is set aside under
    ``<folder>-broken`` with a warning, and the one before it is tried.

    Args:
      template: As in `restore`.
    """
    found, broken = None, []
    for step in reversed(self.steps()):
      try:
        found = self.restore(template, step)
        break
      except CheckpointError as error:
        warnings.warn(
          f"{error}; falling back to the one before it.", RuntimeWarning, stacklevel=2
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
