"""The two drivers of one run: data resident on the device, or streamed to it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mer_dg.data.arrays import Arrays
from mer_dg.data.sampling import Pool
from mer_dg.training.state import TrainState, run_keys
from mer_dg.training.step import Step, make_resident_chunk


class ResidentDriver:
  """The whole set on the device; batches drawn inside the compiled program.

  Args:
    step: The training step.
    arrays: The set, on the device.
    pool: Training rows per source domain.
    per_domain: Batch rows per source domain.
  """

  def __init__(self, step: Step, arrays: Arrays, pool: Pool, per_domain: int):
    self._step, self._arrays, self._pool = step, arrays, pool
    self._per_domain = per_domain
    self._compiled: dict[int, Any] = {}

  def advance(self, state: TrainState, steps: int):
    """See `Driver`. One program per number of steps."""
    if steps not in self._compiled:
      chunk = make_resident_chunk(self._step, per_domain=self._per_domain, length=steps)
      self._compiled[steps] = jax.jit(chunk, donate_argnums=2)
    return self._compiled[steps](self._arrays, self._pool, state)

  def position(self) -> dict[str, Any]:
    """Empty: a batch is a function of the run's key and the step."""
    return {}

  def seek(self, step: int, position: dict[str, Any]) -> None:
    """Nothing to do, see `position`."""

  def close(self) -> None:
    """Nothing to do."""


class StreamDriver:
  """Batches from a host iterator, one step at a time.

  Args:
    step: The training step.
    stream: Iterator of batches whose ``get_state`` and ``set_state`` speak JSON bytes.
  """

  def __init__(self, step: Step, stream):
    self._stream = stream

    def one(state: TrainState, batch):
      key = jax.random.fold_in(run_keys(state.key).step, state.step)
      return step(state, batch, key)

    self._one = jax.jit(one, donate_argnums=0)

  def advance(self, state: TrainState, steps: int):
    """See `Driver`."""
    history = []
    for _ in range(steps):
      # Dispatch is asynchronous: the next batch is read while this step runs. Waiting
      # for the step before keeps the batches that wait on the device to two.
      state, metrics = self._one(state, next(self._stream))
      jax.block_until_ready(history[-1:])
      history.append(metrics)
    return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *history)

  def position(self) -> dict[str, Any]:
    """State of the iterator."""
    return {"stream": self._stream.get_state().decode()}

  def seek(self, step: int, position: dict[str, Any]) -> None:
    """Restores the iterator."""
    del step
    self._stream.set_state(position["stream"].encode())

  def close(self) -> None:
    """Ends the threads that read ahead."""
    self._stream.close()
