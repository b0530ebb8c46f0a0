"""Bandwidths: numbers and rules that follow the data."""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.contracts import cut_off, square_limit
from mer_dg.entropy import _arrays

RULES = ("scott", "silverman", "median")

# The median rule looks at this many evenly spaced rows at most: 8,128 pairs, found in
# the time of a small product.
MEDIAN_ROWS = 128


def check_bandwidth(bandwidth) -> None:
  """Raises for an unknown rule, an array, or a known value <= 0."""
  if isinstance(bandwidth, str):
    _arrays.check_choice("bandwidth", bandwidth, RULES)
    return
  if jnp.ndim(bandwidth) != 0:
    raise ValueError(
      f"bandwidth must be a number or one of {RULES}, "
      f"got an array of shape {jnp.shape(bandwidth)}."
    )
  _arrays.check_positive("bandwidth", bandwidth)


def scaled_by_rule(
  rule: str,
  z: jax.Array,
  where: jax.Array | None,
  *,
  smallest: float,
  on_sphere: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  r"""``(x, h, unit)``: rows around a centre and their bandwidth, both in units.

  * ``scott``: ``sigma n^(-1/(d+4))``; ``silverman``: ``sigma (n (d+2)/4)^(-1/(d+4))``
    with ``sigma^2`` the mean over dimensions of the unbiased variances (for ``d = 1``
    exactly ``scipy.stats.gaussian_kde``). One scalar rather than one value per
    dimension: a dead dimension would otherwise have bandwidth 0, and the entropy would
    not be invariant to rotation.
  * ``median``: median pairwise distance between rows (at most 128 of them).

  Args:
    rule: Name.
    z: Rows ``[n, d]``; masked ones are zero.
    where: Mask ``[n]`` or None.
    smallest: Floor of ``h``. Identical rows have no scale: the entropy is then finite
      (very negative) with zero gradient.
    on_sphere: Whether rows have unit length, and hence ordinary ones.
  """
  n, d = z.shape
  if rule == "median" and on_sphere:
    x = _arrays.drop_rows(z - _arrays.robust_center(z, where)[None, :], where)
    h, unit = _median_distance(x, where), jnp.ones((), z.dtype)
  elif rule == "median":
    x, unit = _ordinary_units(z, where)
    h = _median_distance(cut_off(x, square_limit(d, z.dtype)), where)
  else:
    x, unit = _arrays.in_units(z, where)
    count = jnp.maximum(_arrays.row_count(z, where), 1)
    spread = x - jnp.sum(x, axis=0)[None, :] / count
    total = jnp.sum(_arrays.drop_rows(spread, where) ** 2)
    sigma = _arrays.safe_sqrt(total / d / jnp.maximum(count - 1, 1))
    factor = count if rule == "scott" else count * ((d + 2) / 4)
    h = sigma * factor ** (-1 / (d + 4))
  return x, jnp.maximum(h, smallest), unit


def ordinary_rows(z, where):
  """Rows around a robust centre, one of ordinary size as unit; far ones are cut off.

  A far row may be 1e20 times as long as the others, which then have no squares.
  """
  x, _ = _ordinary_units(z, where)
  return cut_off(x, square_limit(z.shape[1], z.dtype))


def _ordinary_units(z, where):
  """The same before they are cut off, and the unit."""
  center = _arrays.robust_center(z, where)[None, :]
  size = jnp.max(jnp.abs(_arrays.drop_rows(z - center, where)), axis=1)
  ordinary = _arrays.median(size, jnp.ones_like(size, bool) if where is None else where)
  inverse = 1 / _arrays.power_of_two(jnp.where(ordinary > 0, ordinary, jnp.max(size)))
  # What overflows here is infinitely far for every rule.
  largest = float(jnp.finfo(z.dtype).max)
  x = jnp.clip(z * inverse, -largest, largest) - center * inverse
  return _arrays.drop_rows(jnp.clip(x, -largest, largest), where), 1 / inverse


def _median_distance(z, where):
  stride = math.ceil(z.shape[0] / MEDIAN_ROWS)
  valid = jnp.ones(z.shape[0], bool) if where is None else where
  z, valid = z[::stride], valid[::stride]
  norm = jnp.sum(z**2, axis=1)
  gram = jnp.matmul(z, z.T, precision=lax.Precision.HIGHEST)
  distance = _arrays.safe_sqrt(jnp.maximum(norm[:, None] + norm[None, :] - 2 * gram, 0))
  pairs = valid[:, None] & valid[None, :] & ~jnp.eye(len(z), dtype=bool)
  return _arrays.median(distance, pairs)
