"""Batching rule for functions that call LAPACK."""

from __future__ import annotations

from collections.abc import Callable
import functools

import jax
from jax import lax


def one_by_one_on_cpu(fn: Callable) -> Callable:
  """``fn`` with a batching rule that loops over the batch on a CPU.

  There, programs that scan over training steps of 16 vmapped runs hung with batched
  factorisations and triangular solves (jaxlib 0.10.2, 2 cores, every time) and do not
  hang without; one matrix after another is no slower. Other platforms keep the batched
  kernel.

  Args:
    fn: Function of arrays; never differentiated (its callers bring their own rule).

  Returns:
    The function, with the same values.
  """

  @jax.custom_batching.custom_vmap
  def call(*args):
    return fn(*args)

  @call.def_vmap
  def rule(axis_size, in_batched, *args):
    del axis_size
    axes = [0 if batched else None for batched in in_batched]

    def looped(*args):
      def one(moving):
        moving = iter(moving)
        return call(
          *(next(moving) if b else a for a, b in zip(args, in_batched, strict=False))
        )

      return lax.map(one, tuple(a for a, b in zip(args, in_batched, strict=False) if b))

    out = lax.platform_dependent(*args, cpu=looped, default=jax.vmap(fn, axes))
    return out, jax.tree.map(lambda _: True, out)

  return functools.wraps(fn)(lambda *args: call(*args))
