"""Checkpoints with orbax: atomic, newest plus best, restored newest-that-reads.

Three habits of orbax are handled here and nowhere else: its asynchronous save is lost
when the process ends without waiting; flipped bits in its files are other numbers; and
ranks that it keeps itself are read, unchecked, before anything else can be. The JSON
that lies beside the arrays therefore holds the rank, a checksum of itself and one of
the state, and opening a folder reads no file.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
import contextlib
import hashlib
import json
import math
from pathlib import Path
import sys
from typing import Any
import warnings

import jax
import orbax.checkpoint as ocp

from mer_dg.training.parameters import CheckpointError, hash_tree

_POLICY = ocp.checkpoint_managers


class Checkpoints:
  """The checkpoints of one run, in one folder.

  Use as a context manager: leaving it waits for the last save.

  Args:
    folder: Where the steps lie; made if absent.
    keep: Newest steps to keep, at least 2, so that one broken step still
      leaves another; the best by rank is kept besides.
    read_only: Neither makes the folder nor removes what a save that never ended left
      there: it may be in flight, of a training that runs beside.
  """

  def __init__(self, folder: str | Path, *, keep: int = 2, read_only: bool = False):
    if keep < 2:
      raise ValueError(f"keep={keep} must be at least 2.")
    self._folder = Path(folder).absolute()
    self._aside = self._folder.with_name(self._folder.name + "-broken")
    self._keep = keep
    self._read_only = read_only
    self._ranks: dict[int, list[float]] = {}
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    if not isinstance(sys.unraisablehook, _Hush):
      sys.unraisablehook = _Hush(sys.unraisablehook)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=_NewestAndBest(self._keep, self._rank),
      create=not self._read_only,
      cleanup_tmp_directories=not self._read_only,
      lightweight_initialize=True,  # Reads no file: any of them may be damaged.
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
      # What it had begun besides is told of when the program ends.
      warnings.filterwarnings("ignore", "coroutine .* was never awaited")
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
    if self._read_only:
      raise ValueError(f"{self._folder} is open for reading only.")
    if step in self.steps():
      return
    rank = [*(r if math.isfinite(r) else -math.inf for r in rank), -step]
    body = {"step": step, "rank": rank, "state": hash_tree(state), "meta": meta}
    body = json.loads(json.dumps(body))  # As it is read back: no tuples.
    with self._writing():
      self._ranks[step] = body["rank"]
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          meta=ocp.args.JsonSave({**body, "sha256": _hash_json(body)}),
        ),
      )

  def wait(self) -> None:
    """Returns when all saves are on disk; raises as `save` does."""
    with self._writing():
      self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """Saved steps, ascending; as they lie on disk, broken ones included."""
    if not self._folder.is_dir():
      return []
    return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdecimal())

  def best_step(self) -> int | None:
    """The saved step of the highest rank, or None.

    Raises:
      CheckpointError: If the rank of a step cannot be read: it might be the best.
    """
    ranks = {}
    for step in self.steps():
      try:
        ranks[step] = self._rank(step)
      except CheckpointError:
        if step in self.steps():  # Else a training that runs beside has deleted it.
          raise
    return max(ranks, key=lambda step: ranks[step], default=None)

  def _rank(self, step: int) -> list[float]:
    if step not in self._ranks:
      self._ranks[step] = self._read(step)["rank"]
    return self._ranks[step]

  def _read(self, step: int, **items: Any) -> dict[str, Any]:
    """What lies beside the state of a step, checked, and further items."""
    with self._reading(step):
      found = self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **items)
      )
      body = dict(found["meta"])
      if body.pop("sha256", None) != _hash_json(body) or body["step"] != step:
        raise ValueError("meta: not what was saved, the checksum differs")
      return body | {name: (body[name], found[name]) for name in items}

  @contextlib.contextmanager
  def _reading(self, step: int) -> Generator[None]:
    try:
      yield
    except Exception as error:  # orbax raises a dozen types for a broken file.
      reason = str(error).splitlines()[0][:200] if str(error) else ""
      raise CheckpointError(
        f"Checkpoint {self._folder / str(step)} cannot be read "
        f"({type(error).__name__}: {reason})"
      ) from error

  def restore(self, template: Any, step: int) -> tuple[Any, dict[str, Any]]:
    """State and meta of one step, bit for bit what was saved.

    Args:
      template: A state of the right structure, shapes, dtypes and sharding.
      step: One of `steps`.

    Raises:
      CheckpointError: If the step cannot be read or is not what was saved; says why.
    """
    abstract = jax.tree.map(_abstract, template)
    found = self._read(step, state=ocp.args.StandardRestore(abstract))
    promised, state = found["state"]
    with self._reading(step):
      if hash_tree(state) != promised:
        raise ValueError("state: not what was saved, the checksum differs")
    return state, found["meta"]

  def restore_best(self, template: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """Step, state and meta of the step of the highest rank; None if there is none.

    Args:
      template: As in `restore`.

    Raises:
      CheckpointError: As `best_step` and `restore` do.
    """
    while (best := self.best_step()) is not None:
      try:
        return best, *self.restore(template, best)
      except CheckpointError:
        if best in self.steps():  # Else a better one has taken its place.
          raise
    return None

  def restore_latest(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
    """State and meta of the newest step that reads; None if there is none.

    A step that does not read or is not what was saved is set aside under
    ``<folder>-broken`` with a warning, and the one before it is tried. So is an older
    one whose rank does not read.

    Args:
      template: As in `restore`.
    """
    found, broken = None, {}
    goes_on = "no other one reads: training starts anew"
    for step in reversed(self.steps()):
      try:
        if found is None:
          found = self.restore(template, step)
          goes_on = f"falling back to {self._folder / str(step)}"
        else:
          self._rank(step)
      except CheckpointError as error:
        broken[step] = error
    for error in broken.values():
      text = f"{error}. It is set aside in {self._aside}; {goes_on}."
      warnings.warn(text, RuntimeWarning, stacklevel=2)
    if broken:
      self._set_aside(broken)
    return found

  def _set_aside(self, steps: Iterable[int]) -> None:
    self._manager.close()
    self._aside.mkdir(exist_ok=True)
    for step in steps:
      self._ranks.pop(step, None)
      goal = self._aside / str(step)
      while goal.exists():
        goal = goal.with_name(goal.name + "_")
      (self._folder / str(step)).rename(goal)
    self._manager = self._open()


class _NewestAndBest(_POLICY.PreservationPolicy):
  """Keeps the newest steps and the best one, the earlier of two equal ones."""

  def __init__(self, newest: int, rank: Callable[[int], list[float]]):
    self._newest, self._rank = newest, rank

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    steps = sorted(checkpoint.step for checkpoint in checkpoints)
    kept = {*steps[-self._newest :], max(steps, key=self._rank)}
    return [checkpoint.step in kept for checkpoint in checkpoints]


class _Hush:
  """Keeps quiet what tensorstore says of reads and writes that orbax gave up.

  Of several that fail orbax raises the first and closes its event loop; each of the
  others then prints a traceback from a thread, which nobody could catch.
  """

  def __init__(self, before: Callable[[Any], object]):
    self._before = before

  def __call__(self, what) -> None:
    closed = isinstance(what.exc_value, RuntimeError) and (
      str(what.exc_value) == "Event loop is closed"
    )
    code = getattr(what.object, "cr_code", None)  # Of a coroutine that is thrown away.
    ours = code is not None and "orbax" in code.co_filename
    if not (ours or (closed and what.object is None)):
      self._before(what)


def _abstract(leaf):
  """Shape, dtype and place of a leaf; the place is what a restore goes to."""
  leaf = jax.numpy.asarray(leaf) if not isinstance(leaf, jax.Array) else leaf
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _hash_json(body: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
