"""SWAD (Cha et al., NeurIPS 2021): the mean of all weights inside a flat valley.

Weights are averaged between evaluations (a segment). Converged: the oldest of the last
``N_s = 3`` source-validation losses is the smallest. The valley ends when the smallest
of ``N_e = 6`` exceeds ``1 + tolerance`` times the mean of the three. The result is the
mean over segments from up to ``N_e - N_s`` before convergence to the end; before,
the last one. Public code overwrites the first, starts late, counts one twice: not here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mer_dg.methods.term import Hyperparameter, Spec, Term

_AT = 3  # Place of the segment of convergence among the last N_e = 6: N_e - N_s.


class Valley(NamedTuple):
  """The last six segments, oldest first, and what was averaged of older ones."""

  running: Any  # Mean of the segment that is under way,
  count: jax.Array  # of so many steps.
  segments: Any  # Each leaf [6, ...].
  losses: jax.Array  # [6]; inf where there was no evaluation yet.
  total: Any  # Sum over the segments that are taken for good,
  taken: jax.Array  # and how many those are.
  since: jax.Array  # Evaluations since convergence; -1 before.
  threshold: jax.Array
  over: jax.Array  # Whether the valley has ended.
  tolerance: jax.Array


def _init(key, task, params):
  del key, task
  zeros, losses, zero = jax.tree.map(jnp.zeros_like, params), jnp.full(6, jnp.inf), 0.0
  many = jax.tree.map(lambda p: jnp.zeros((6, *p.shape), p.dtype), params)
  numbers = map(jnp.asarray, (zero, -1, zero, False, zero))
  return {}, Valley(params, jnp.asarray(zero), many, losses, zeros, *numbers)


def _update(valley, _, params, ctx):
  n = valley.count + 1
  running = jax.tree.map(lambda a, p: a + (p - a) / n, valley.running, params)
  return valley._replace(running=running, count=n, tolerance=ctx.hyper["tolerance"])


def _on_eval(valley, metrics):
  push = lambda old, new: jnp.concatenate([old[1:], new[None]])
  segments = jax.tree.map(push, valley.segments, valley.running)
  losses = push(valley.losses, metrics["val/nll"].astype(jnp.float32))
  last = losses[_AT:]
  begins = (jnp.argmin(last) == 0) & jnp.isfinite(last).all() & (valley.since < 0)
  since = jnp.where(begins, 0, jnp.where(valley.since < 0, -1, valley.since + 1))
  threshold = jnp.where(begins, (1 + valley.tolerance) * last.mean(), valley.threshold)
  # At convergence: back to the segment after the last one above the threshold.
  place = jnp.arange(6)
  above = (place <= _AT) & ~(losses <= threshold)
  first = jnp.max(jnp.where(above, place + 1, 0))
  take = begins & (place >= jnp.minimum(first, _AT)) & (place <= _AT)
  # Later: one segment leaves the six at a time, unless the valley has ended.
  leaves = (since > _AT) & ~valley.over
  over = valley.over | (leaves & (jnp.min(losses) > threshold))
  take |= leaves & ~over & (place == 0)
  add = lambda t, s: t + jnp.tensordot(take.astype(s.dtype), s, axes=1)
  return valley._replace(
    count=jnp.float32(0.0), segments=segments, losses=losses, since=since, over=over,
    total=jax.tree.map(add, valley.total, segments), threshold=threshold,
    taken=valley.taken + take.sum(),
  )  # fmt: skip


def _mean(params, valley):
  """The mean if training ended now; the parameters before the first evaluation."""
  place = jnp.arange(6)
  # The oldest of the six that is not taken yet; then as long as the valley lasts.
  low = jnp.maximum(_AT + 1 - valley.since, 1)
  low_ahead = jax.lax.cummin(valley.losses, reverse=True) <= valley.threshold
  inside = jnp.cumprod((place < low) | low_ahead) > 0
  rest = (place >= low) & inside & ~valley.over
  before, never = valley.since < 0, ~jnp.isfinite(valley.losses[-1])
  weight = jnp.where(before, place == 5, rest).astype(jnp.float32)
  count = jnp.maximum(jnp.where(before, 0, valley.taken) + weight.sum(), 1.0)

  def leaf(p, total, segments):
    whole = jnp.where(before, 0, total) + jnp.tensordot(weight, segments, axes=1)
    return jnp.where(never, p, (whole / count).astype(p.dtype))

  return jax.tree.map(leaf, params, valley.total, valley.segments)


TERM = Term(init=_init, update=_update, eval_params=_mean, on_eval=_on_eval)
SPEC = Spec(
  "swad",
  lambda task, options: TERM,
  {"tolerance": Hyperparameter(0.3, 0.0, 1e3)},
  recipes={"swad": {"swad": {}}},
  off={},
)
