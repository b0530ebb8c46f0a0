"""Bandwidths: numbers, per-dimension arrays and data-driven rules."""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mer_dg.entropy import _arrays
from mer_dg.entropy.isj import isj_bandwidth

RULES = ("scott", "silverman", "median", "isj")

# The median rule looks at this many evenly spaced rows at most, so that its cost and
# memory do not grow as n^2.
MEDIAN_ROWS = 1024


def check_bandwidth(bandwidth, d: int) -> None:
  """Raises for an unknown rule, a wrong shape, or a concrete value <= 0."""
  if isinstance(bandwidth, str):
    _arrays.check_choice("bandwidth", bandwidth, RULES)
    if bandwidth == "isj" and d != 1:
      raise ValueError(f"bandwidth='isj' is for samples with d = 1, got d = {d}.")
    return
  array = jnp.asarray(bandwidth)
  if array.shape not in ((), (d,)):
    raise ValueError(
      f"bandwidth must be a scalar, an array of shape ({d},) or one of {RULES}, "
      f"got shape {array.shape}."
    )
  _arrays.check_positive("bandwidth", bandwidth)


def resolve_bandwidth(
  bandwidth, z: jax.Array, v: jax.Array, *, center: jax.Array, gradient: bool = False
) -> jax.Array:
  """Bandwidth of ``z [n, d]`` with row weights ``v [n]``: scalar or ``[d]``.

  ``center [d]`` is a point in the bulk of the rows, which the caller needs as well.
  """
  if not isinstance(bandwidth, str):
    return jnp.asarray(bandwidth).astype(z.dtype)
  h = bandwidth_rule(bandwidth, z, v, center)
  return h if gradient else lax.stop_gradient(h)


def bandwidth_rule(
  rule: str, z: jax.Array, v: jax.Array, center: jax.Array
) -> jax.Array:
  r"""Scalar bandwidth by a rule, invariant to rotation and equivariant to scale.

  * ``scott``: ``sigma n^(-1/(d+4))``; ``silverman``: ``sigma (n (d+2)/4)^(-1/(d+4))``
    with ``sigma^2`` the mean over dimensions of the unbiased variances and ``n``
    Kish's effective sample size (for ``d = 1`` exactly ``scipy.stats.gaussian_kde``).
    One scalar rather than one value per dimension: a dead dimension would otherwise
    have bandwidth 0, and the entropy would not be invariant to rotation.
  * ``median``: median pairwise distance between rows (at most 1024 of them).
  * ``isj``: improved Sheather-Jones (Botev et al. 2010), d = 1 only.

  Identical rows have no scale: the result is then floored at a tiny positive number,
  which keeps the entropy finite (very negative) with zero gradient.
  """
  # In units of the largest entry squares neither overflow nor vanish.
  z = jnp.where((v > 0)[:, None], z - center[None, :], 0)
  peak = lax.stop_gradient(jnp.max(jnp.abs(z)))
  peak = jnp.where(peak > 0, peak, 1)
  h = peak * _rule_in_units(rule, z / peak, v)
  return jnp.maximum(h, float(jnp.finfo(z.dtype).tiny) ** 0.5)


def _rule_in_units(rule: str, z: jax.Array, v: jax.Array) -> jax.Array:
  d = z.shape[1]
  if rule == "median":
    return _median_distance(z, v)
  if rule == "isj":
    return isj_bandwidth(z[:, 0], v)
  _, var = _arrays.weighted_moments(z, v)
  sigma = _arrays.safe_sqrt(jnp.mean(var))
  total = jnp.sum(v)
  n_eff = total**2 / jnp.where(total > 0, jnp.sum(v**2), 1)
  n_eff = lax.stop_gradient(jnp.maximum(n_eff, 1))
  factor = n_eff if rule == "scott" else n_eff * ((d + 2) / 4)
  return sigma * factor ** (-1 / (d + 4))


def _median_distance(z: jax.Array, v: jax.Array) -> jax.Array:
  """Median over pairs of valid rows of their distance."""
  n = z.shape[0]
  stride = math.ceil(n / MEDIAN_ROWS)
  z, v = z[::stride], v[::stride]
  z = z - _arrays.robust_center(z, v > 0)[None, :]
  norm = jnp.sum(z**2, axis=1)
  gram = jnp.matmul(z, z.T, precision=lax.Precision.HIGHEST)
  sq = jnp.maximum(norm[:, None] + norm[None, :] - 2 * gram, 0)
  i, j = np.triu_indices(z.shape[0], k=1)
  if i.size == 0:
    return jnp.zeros((), z.dtype)
  valid = v > 0
  sq = jnp.where(valid[:, None] & valid[None, :], sq, jnp.inf)
  sq = jnp.sort(sq[i, j])
  count = jnp.sum(valid)
  pairs = count * (count - 1) // 2
  middle = jnp.maximum(pairs - 1, 0)
  pick = lambda at: jnp.where(pairs > 0, sq[jnp.minimum(at, i.size - 1)], 0)
  low, high = pick(middle // 2), pick((middle + 1) // 2)
  return 0.5 * (_arrays.safe_sqrt(low) + _arrays.safe_sqrt(high))
