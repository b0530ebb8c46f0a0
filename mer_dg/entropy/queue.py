"""First-in first-out memory of rows with static shapes."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.entropy import _arrays


class FifoQueue(NamedTuple):
  """Ring buffer: ``rows [capacity, d]``, number pushed so far ``pushed`` (int32)."""

  rows: jax.Array
  pushed: jax.Array

  @property
  def where(self) -> jax.Array:
    """Boolean ``[capacity]``: slots that hold a row."""
    return jnp.arange(self.rows.shape[0]) < self.pushed


def fifo_init(capacity: int, d: int, dtype=jnp.float32) -> FifoQueue:
  """An empty queue for ``capacity`` rows of length ``d``.

  Raises:
    ValueError: If ``capacity`` or ``d`` is < 1.

  Example:
    >>> fifo_init(3, 2).rows.shape
    (3, 2)
  """
  for name, value in (("capacity", capacity), ("d", d)):
    if value < 1:
      raise ValueError(f"{name} must be >= 1, got {value}.")
  return FifoQueue(jnp.zeros((capacity, d), dtype), jnp.zeros((), jnp.int32))


def fifo_push(
  queue: FifoQueue, z: jax.Array, *, where: jax.Array | None = None
) -> FifoQueue:
  """Appends the rows of ``z`` (detached), dropping the oldest ones when full.

  Args:
    queue: The queue.
    z: Rows ``[n, d]``, ``n <= capacity``.
    where: Boolean ``[n]``; False rows are not pushed.

  Returns:
    The new queue, same shapes. For use as ``memory=queue.rows,
    memory_where=queue.where`` of ``kde_entropy``.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: If ``z`` does not fit.

  Example:
    >>> queue = fifo_push(fifo_init(3, 1), jnp.array([[1.0], [2.0]]))
    >>> queue = fifo_push(queue, jnp.array([[3.0], [4.0]]))
    >>> print(queue.rows[:, 0], queue.where)
    [4. 2. 3.] [ True  True  True]
  """
  z = _arrays.check_samples("z", z, ndim=2)
  where = _arrays.check_where(where, z)
  capacity, d = queue.rows.shape
  n = z.shape[0]
  if z.shape[1] != d or n > capacity:
    raise ValueError(
      f"z must have shape [n <= {capacity}, {d}] to fit the queue, got {z.shape}."
    )
  valid = jnp.ones(n, bool) if where is None else where
  order = jnp.cumsum(valid.astype(jnp.int32)) - 1
  # The counter wraps at a multiple of capacity, so that it never overflows.
  slot = jnp.where(valid, (queue.pushed + order) % capacity, capacity)
  rows = queue.rows.at[slot].set(
    lax.stop_gradient(z).astype(queue.rows.dtype), mode="drop"
  )
  pushed = queue.pushed + jnp.sum(valid, dtype=jnp.int32)
  pushed = jnp.where(pushed >= 2 * capacity, pushed - capacity, pushed)
  return FifoQueue(rows, pushed)
