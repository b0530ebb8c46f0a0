"""Input checks, masks and batch axes shared by every estimator in this room."""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


def check_samples(name: str, z: jax.Array, *, ndim: int | None = None) -> jax.Array:
  """Returns ``z`` as an array of shape ``[..., n, d]`` or raises with its name."""
  z = jnp.asarray(z)
  if not jnp.issubdtype(z.dtype, jnp.floating):
    raise TypeError(f"{name} must be floating, got dtype {z.dtype}.")
  if z.ndim < 2 or (ndim is not None and z.ndim != ndim):
    want = "[..., n, d]" if ndim is None else "[n, d]"
    raise ValueError(f"{name} must have shape {want}, got {z.shape}.")
  if z.shape[-2] < 1 or z.shape[-1] < 1:
    raise ValueError(f"{name} must have n >= 1 and d >= 1, got {z.shape}.")
  return z


def accumulate(z: jax.Array) -> jax.Array:
  """Casts half precision to float32; float32 and float64 pass unchanged."""
  return z.astype(jnp.promote_types(z.dtype, jnp.float32))


def check_where(where, z: jax.Array, *, name: str = "where") -> jax.Array | None:
  """Returns a boolean mask ``[..., n]`` of the rows of ``z``, or None."""
  if where is None:
    return None
  where = jnp.asarray(where)
  if where.shape != z.shape[:-1]:
    raise ValueError(
      f"{name} must have shape {z.shape[:-1]} (rows of samples {z.shape}), "
      f"got {where.shape}."
    )
  if not (where.dtype == jnp.bool_ or jnp.issubdtype(where.dtype, jnp.number)):
    raise TypeError(f"{name} must be boolean or 0/1, got dtype {where.dtype}.")
  return where.astype(bool)


def check_weights(weights, z: jax.Array) -> jax.Array | None:
  """Returns non-negative sample weights ``[..., n]`` or None."""
  if weights is None:
    return None
  concrete = concrete_value(weights)
  weights = jnp.asarray(weights)
  if weights.shape != z.shape[:-1]:
    raise ValueError(
      f"weights must have shape {z.shape[:-1]} (rows of samples {z.shape}), "
      f"got {weights.shape}."
    )
  if concrete is not None and (concrete < 0).any():
    raise ValueError(f"weights must be >= 0, got minimum {concrete.min()}.")
  return weights


def check_choice(name: str, value, allowed) -> None:
  """Raises ValueError listing the allowed values."""
  if value not in allowed:
    raise ValueError(f"{name}={value!r} is not one of {tuple(allowed)}.")


def check_block_size(block_size: int | None) -> None:
  if block_size is None:
    return
  if isinstance(block_size, bool) or not isinstance(block_size, (int, np.integer)):
    raise TypeError(f"block_size must be an int or None, got {block_size!r}.")
  if block_size <= 0:
    raise ValueError(f"block_size must be > 0, got {block_size}.")


def concrete_value(x) -> np.ndarray | None:
  """The value of ``x`` where it is known now, None where it is traced."""
  if isinstance(x, jax.core.Tracer):
    return None
  return np.asarray(x)


def check_positive(name: str, value) -> None:
  """Raises when a number (or array) known at trace time is not > 0.

  A traced value cannot be looked at; it is the caller's duty then.
  """
  concrete = concrete_value(value)
  if concrete is not None and not (concrete > 0).all():
    raise ValueError(f"{name} must be > 0, got {value}.")


def over_batch(fn, z: jax.Array, *rows):
  """Maps ``fn(z [n, d], *rows)`` over the leading axes of ``z``.

  Each of ``rows`` is None (passed on as None) or has the leading axes of ``z``.
  """
  axes = tuple(None if r is None else 0 for r in rows)
  for _ in range(z.ndim - 2):
    fn = jax.vmap(fn, in_axes=(0, *axes))
  return fn(z, *rows)


def _varying_axes(a: jax.Array) -> frozenset:
  aval = jax.typeof(a)
  if hasattr(aval, "manual_axis_type"):  # jax >= 0.10
    return aval.manual_axis_type.varying
  return aval.vma


def align_varying(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Marks arrays as varying over every mesh axis that any of them varies over.

  Inside ``shard_map`` a loop's carry, and a hand-written gradient, must have the same
  marks as its inputs. Outside of it nothing happens.
  """
  axes = frozenset().union(*map(_varying_axes, arrays))

  def mark(a):
    missing = tuple(sorted(axes - _varying_axes(a)))
    return lax.pcast(a, missing, to="varying") if missing else a

  return tuple(mark(a) for a in arrays)


def row_weights(
  z: jax.Array, where: jax.Array | None, weights: jax.Array | None = None
) -> jax.Array:
  """``where * weights`` in the dtype of ``z``; ones where both are None. ``[n]``."""
  n = z.shape[0]
  v = jnp.ones(n, z.dtype) if weights is None else weights.astype(z.dtype)
  return v if where is None else jnp.where(where, v, 0)


def drop_rows(z: jax.Array, where: jax.Array | None) -> jax.Array:
  """Zeroes the masked rows, so that garbage or nan in them cannot leak. ``[n, d]``."""
  return z if where is None else jnp.where(where[:, None], z, 0)


def nan_if_nan(z: jax.Array) -> jax.Array:
  """0, or nan if any entry is nan: for branches that would otherwise hide it."""
  return jnp.where(jnp.isnan(z).any(), jnp.nan, 0).astype(z.dtype)


def safe_log(x: jax.Array) -> jax.Array:
  """log with ``log(0) = -inf`` and gradient 0 there (plain log gives nan)."""
  positive = x > 0
  return jnp.where(
    positive | jnp.isnan(x), jnp.log(jnp.where(positive, x, 1) + 0 * x), -jnp.inf
  )


def safe_sqrt(x: jax.Array) -> jax.Array:
  """sqrt with gradient 0 at 0 (plain sqrt gives inf)."""
  positive = x > 0
  return jnp.where(
    positive | jnp.isnan(x), jnp.sqrt(jnp.where(positive, x, 1) + 0 * x), 0
  )


def weighted_moments(z: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Weighted mean ``[d]`` and unbiased variance ``[d]`` (ddof 1 for 0/1 weights).

  For general weights the unbiased form of ``numpy.cov(aweights=)`` is used, which is
  also what ``scipy.stats.gaussian_kde`` does. Variance 0 for fewer than two rows.
  """
  total = jnp.sum(v)
  p = v / jnp.where(total > 0, total, 1)
  # Sums, not products p @ z: full float32 on every device, and faster on a CPU.
  mean = jnp.sum(p[:, None] * z, axis=0)
  spread = 1 - jnp.sum(p**2)  # (n - 1) / n for equal weights
  var = jnp.sum(p[:, None] * (z - mean[None, :]) ** 2, axis=0)
  enough = jnp.sum(v > 0) >= 2
  return mean, jnp.where(enough, var / jnp.where(enough, spread, 1), 0 * var)


def robust_center(z: jax.Array, where: jax.Array | None) -> jax.Array:
  """A point ``[d]`` in the bulk of the rows, insensitive to a few far ones.

  Distances are computed as ``|a|^2 + |b|^2 - 2ab``, whose rounding error grows with
  the distance from the origin. The mean would be dragged away by one far row, the
  median costs a sort; Tukey's ninther (median of three medians of three rows)
  costs twelve min/max per coordinate. Any choice gives the same entropy in exact
  arithmetic, hence no gradient.
  """
  n = z.shape[0]
  nine = np.arange(9)
  if where is None:
    picked = z[np.array((nine * n) // 9)]
  else:
    count = jnp.cumsum(where.astype(jnp.int32))
    rank = (nine * count[-1]) // 9  # of the picked rows among the valid ones
    index = jnp.sum(count[None, :] <= rank[:, None], axis=1)
    picked = z[jnp.minimum(index, n - 1)]

  def median3(a, b, c):
    return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))

  triples = median3(picked[0::3], picked[1::3], picked[2::3])  # [3, d]
  return lax.stop_gradient(median3(triples[0], triples[1], triples[2]))
