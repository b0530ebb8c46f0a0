"""SWAD (Cha et al., NeurIPS 2021): the mean of all weights inside a flat valley.

Weights are averaged at every step between two evaluations (a segment). Converged: the
oldest of the last ``N_s = 3`` source-validation losses is the smallest. The valley ends
when the smallest of the last ``N_e = 6`` exceeds ``(1 + tolerance)`` times the mean of
the three. The result is the mean over segments, with equal weights, from up to
``N_e - N_s`` before convergence to the end of the valley; before convergence it is the
last segment. The public code overwrites the first segment that it averages, starts one
segment later than it says, and counts the segment of convergence twice: not here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mer_dg.methods.term import Number, Spec, Term

_CONVERGE, _LAST = 3, 6  # N_s, N_e.
_AT = _LAST - _CONVERGE  # Place of the segment of convergence among the last six.


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


def make(task, options):
  del task, options
  return Term(init=_init, update=_update, eval_params=_mean, on_eval=_on_eval)


def _init(key, task, params):
  del key, task
  zeros = jax.tree.map(jnp.zeros_like, params)
  many = jax.tree.map(lambda p: jnp.zeros((_LAST, *p.shape), p.dtype), params)
  losses, zero = jnp.full(_LAST, jnp.inf), jnp.float32(0.0)
  return {}, Valley(
    params, zero, many, losses, zeros, zero, jnp.int32(-1), zero, jnp.bool(False), zero
  )


def _update(valley, aux, params, ctx):
  del aux
  count = valley.count + 1
  running = jax.tree.map(lambda a, p: a + (p - a) / count, valley.running, params)
  return valley._replace(running=running, count=count, tolerance=ctx.hyper["tolerance"])


def _on_eval(valley, metrics):
  push = lambda old, new: jnp.concatenate([old[1:], new[None]])
  segments = jax.tree.map(push, valley.segments, valley.running)
  losses = push(valley.losses, metrics["val/nll"].astype(jnp.float32))
  recent = losses[_AT:]
  converged = valley.since >= 0
  begins = ~converged & (jnp.argmin(recent) == 0) & jnp.isfinite(recent).all()
  since = jnp.where(begins, 0, jnp.where(converged, valley.since + 1, -1))
  mean = jnp.mean(recent) * (1 + valley.tolerance)
  threshold = jnp.where(begins, mean, valley.threshold)
  # At convergence: back to the segment after the last one above the threshold.
  place = jnp.arange(_LAST)
  above = (place <= _AT) & ~(losses <= threshold)
  first = jnp.max(jnp.where(above, place + 1, 0))
  take = begins & (place >= jnp.minimum(first, _AT)) & (place <= _AT)
  # Later: one segment leaves the six at a time, unless the valley has ended.
  leaves = (since > _AT) & ~valley.over
  over = valley.over | (leaves & (jnp.min(losses) > threshold))
  take |= leaves & ~over & (place == 0)
  add = lambda t, s: t + jnp.tensordot(take.astype(s.dtype), s, axes=1)
  total = jax.tree.map(add, valley.total, segments)
  return valley._replace(
    count=jnp.float32(0.0), segments=segments, losses=losses, total=total,
    taken=valley.taken + take.sum(), since=since, threshold=threshold, over=over,
  )  # fmt: skip


def _mean(params, valley):
  """The mean if training ended now; the parameters before the first evaluation."""
  place = jnp.arange(_LAST)
  # The oldest of the six that is not taken yet; then as long as the valley lasts.
  low = jnp.maximum(_AT + 1 - valley.since, 1)
  ahead = jax.lax.cummin(valley.losses, reverse=True)
  inside = jnp.cumprod((place < low) | (ahead <= valley.threshold)) > 0
  rest = (place >= low) & inside & ~valley.over
  before, never = valley.since < 0, ~jnp.isfinite(valley.losses[-1])
  weight = jnp.where(before, place == _LAST - 1, rest).astype(jnp.float32)
  taken = jnp.where(before, 0.0, valley.taken)
  count = jnp.maximum(taken + weight.sum(), 1.0)

  def leaf(p, total, segments):
    whole = jnp.where(before, 0, total) + jnp.tensordot(weight, segments, axes=1)
    return jnp.where(never, p, (whole / count).astype(p.dtype))

  return jax.tree.map(leaf, params, valley.total, valley.segments)


SPEC = Spec(
  "swad",
  make,
  {"tolerance": Number(0.3, 0.0, 1e3)},
  recipes={"swad": {"swad": {}}},
  off={},
)
