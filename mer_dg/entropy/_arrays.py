"""Input checks, masks, batch axes and safe arithmetic shared by every estimator."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mer_dg.contracts import as_array


def check_samples(name: str, z: jax.Array, *, ndim: int | None = None) -> jax.Array:
  """Returns ``z`` as an array of shape ``[..., n, d]`` or raises with its name."""
  z = as_array(name, z)
  if not jnp.issubdtype(z.dtype, jnp.floating):
    raise TypeError(f"{name} must be floating, got dtype {z.dtype}.")
  if z.ndim < 2 or (ndim is not None and z.ndim != ndim):
    want = "[..., n, d]" if ndim is None else "[n, d]"
    raise ValueError(f"{name} must have shape {want}, got {z.shape}.")
  if z.shape[-2] < 1 or z.shape[-1] < 1:
    raise ValueError(f"{name} must have n >= 1 and d >= 1, got {z.shape}.")
  return z


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


def check_choice(name: str, value, allowed) -> None:
  """Raises ValueError listing the allowed values."""
  if value not in allowed:
    raise ValueError(f"{name}={value!r} is not one of {tuple(allowed)}.")


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


def estimate(one: Callable, z: jax.Array, where: jax.Array | None, *, min_rows: int):
  """``one(z [n, d], where)`` over the leading axes of ``z``, with the conventions.

  Half precision becomes float32; masked rows become zero, whatever was in them; a
  result is 0 with zero gradient below ``min_rows`` valid rows, and nan if a valid entry
  is. ``one`` returns a scalar (or a tree of them) and must be finite on zero rows.
  """
  z = check_samples("z", z)
  where = check_where(where, z)

  def safe(z, where):
    z = drop_rows(accumulate(z), where)
    if z.shape[0] < min_rows:
      value, enough = jnp.zeros((), z.dtype), True
    else:
      value, enough = one(z, where), row_count(z, where) >= min_rows
    poison = jnp.where(jnp.isnan(z).any(), jnp.nan, 0).astype(z.dtype)
    poison = lax.stop_gradient(poison)
    return jax.tree.map(lambda v: jnp.where(enough, v, 0) + poison, value)

  return over_batch(safe, z, where)


def over_batch(fn, z: jax.Array, *rows):
  """Maps ``fn(z [n, d], *rows)`` over the leading axes of ``z``.

  Each of ``rows`` is None (passed on as None) or has the leading axes of ``z``.
  """
  axes = tuple(None if r is None else 0 for r in rows)
  for _ in range(z.ndim - 2):
    fn = jax.vmap(fn, in_axes=(0, *axes))
  return fn(z, *rows)


def accumulate(z: jax.Array) -> jax.Array:
  """Casts half precision to float32; float32 and float64 pass unchanged."""
  return z.astype(jnp.promote_types(z.dtype, jnp.float32))


def drop_rows(z: jax.Array, where: jax.Array | None) -> jax.Array:
  """Zeroes the masked rows, so that garbage or nan in them cannot leak. ``[n, d]``."""
  return z if where is None else jnp.where(where[:, None], z, 0)


def row_count(z: jax.Array, where: jax.Array | None) -> jax.Array:
  """Number of valid rows, in the dtype of ``z``."""
  if where is None:
    return jnp.asarray(z.shape[0], z.dtype)
  return jnp.sum(where, dtype=z.dtype)


def row_mean(x: jax.Array, where: jax.Array | None) -> jax.Array:
  """Mean over valid entries of ``x [n]``; 0 where there is none.

  Divided before the sum, which would overflow for a few numbers of size 1e38.
  """
  count = row_count(x, where)
  x = x / jnp.maximum(count, 1)
  return jnp.sum(x if where is None else jnp.where(where, x, 0))


def _varying_axes(a: jax.Array) -> frozenset:
  aval = jax.typeof(a)
  if hasattr(aval, "manual_axis_type"):  # jax >= 0.10
    return aval.manual_axis_type.varying
  return aval.vma


def align_varying(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Marks arrays as varying over every mesh axis that any of them varies over.

  Inside ``shard_map`` (runs split over devices) a loop's carry, and a hand-written
  gradient, must have the same marks as its inputs. Outside of it nothing happens.
  """
  axes = frozenset().union(*map(_varying_axes, arrays))

  def mark(a):
    missing = tuple(sorted(axes - _varying_axes(a)))
    return lax.pcast(a, missing, to="varying") if missing else a

  return tuple(mark(a) for a in arrays)


# --- arithmetic without nan -----------------------------------------------------------


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


def log_norm(x: jax.Array) -> jax.Array:
  """Log Euclidean norm over the last axis, at any scale; -inf, gradient 0 at zero."""
  unit = power_of_two(jnp.max(jnp.abs(x), axis=-1))
  square = jnp.sum((x / unit[..., None]) ** 2, axis=-1)
  return jnp.log(unit) + 0.5 * safe_log(square)


# --- scale, centre, moments -----------------------------------------------------------


def power_of_two(x: jax.Array) -> jax.Array:
  """The power of two in (x / 2, x], 1 for x = 0: division by it is exact.

  At most a quarter of the largest number: compilers divide by multiplying with the
  inverse, which must not vanish.
  """
  info = jnp.finfo(x.dtype)
  pattern = lax.bitcast_convert_type(lax.stop_gradient(x), f"int{info.bits}")
  pattern = (pattern >> info.nmant) << info.nmant  # sign and exponent remain
  power = jnp.where(x > 0, lax.bitcast_convert_type(pattern, x.dtype), 1)
  return jnp.minimum(power, float(info.max) / 4)


def in_units(
  z: jax.Array, where: jax.Array | None, *, per_column: bool = False, least: float = 0
) -> tuple[jax.Array, jax.Array]:
  """Rows around a robust centre in units of their largest entry, and the unit.

  There squares neither overflow nor vanish. Where ``H(aZ) = H(Z) + d log a``, an
  estimator works on the former and adds ``d log`` of the latter. Units are powers of
  two, so that this costs no digit, and constants for the gradient.

  Args:
    z: ``[n, d]``, masked rows zero (and zero afterwards).
    where: Mask ``[n]`` or None.
    per_column: One unit per column, ``[d]``, rather than one for all.
    least: Smallest unit, a power of two.
  """
  center = robust_center(z, where)[None, :]
  # A difference may overflow, which makes the unit the largest one.
  size = jnp.max(jnp.abs(drop_rows(z - center, where)), axis=0 if per_column else None)
  unit = jnp.maximum(power_of_two(size), least)
  inverse = jnp.broadcast_to(1 / unit, (1, z.shape[1]))
  return drop_rows(z * inverse - center * inverse, where), unit


def center_rows(
  z: jax.Array, where: jax.Array | None, **units
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rows minus their mean (masked rows 0), their number, and the unit they are in.

  The one place where moments come from: a variance is a sum of squares of these rows
  over the count (biased) or the count - 1.
  """
  count = row_count(z, where)
  z, unit = in_units(z, where, **units)
  # Sums, not products p @ z: full float32 on every device, and faster on a CPU.
  mean = jnp.sum(z, axis=0) / jnp.maximum(count, 1)
  return drop_rows(z - mean[None, :], where), count, unit


def variance(z: jax.Array, where: jax.Array | None, **units):
  """Unbiased variances ``[d]`` of the valid rows (0 below two), and their unit."""
  x, count, unit = center_rows(z, where, **units)
  return jnp.sum(x**2, axis=0) / jnp.maximum(count - 1, 1), unit


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


def median(x: jax.Array, valid: jax.Array) -> jax.Array:
  """Median of the non-negative entries of ``x`` that are valid; 0 if none is.

  By bisection on the bit pattern, which orders non-negative floats: exact, and on a CPU
  ten to forty times faster than XLA's sort. The gradient goes to the middle entries.
  """
  count = jnp.sum(valid)
  low = _smallest(x, valid, jnp.maximum(count - 1, 0) // 2)
  above = valid & (x > low)
  more = jnp.sum(valid & (x <= low)) > count // 2  # then the upper middle is the same
  high = jnp.where(more, low, jnp.min(jnp.where(above, x, jnp.inf)))

  def entry(value):
    hit = valid & (x == lax.stop_gradient(value))
    return jnp.sum(jnp.where(hit, x, 0)) / jnp.maximum(jnp.sum(hit), 1)

  return 0.5 * (entry(low) + entry(high))


def _smallest(x, valid, rank):
  """The entry of that rank (from 0) among the valid ones."""
  bits = jnp.finfo(x.dtype).bits
  integer = jnp.dtype(f"int{bits}")
  pattern = lax.bitcast_convert_type(lax.stop_gradient(x), integer)
  pattern, valid = pattern.reshape(len(x), -1), valid.reshape(len(x), -1)
  ones = jnp.ones(len(x), jnp.float32)

  def bit(i, low):
    trial = low | lax.shift_left(jnp.ones((), integer), (bits - 2 - i).astype(integer))
    # Counted by a product, which a CPU does with vector instructions; counts up to 2^24
    # are exact.
    below = jnp.sum(ones @ (valid & (pattern < trial)).astype(jnp.float32))
    return jnp.where(below <= rank, trial, low)

  start = align_varying(jnp.zeros((), integer), pattern, valid)[0]
  found = lax.fori_loop(jnp.int32(0), jnp.int32(bits - 1), bit, start)
  return lax.bitcast_convert_type(found, x.dtype)
