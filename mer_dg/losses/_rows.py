"""Argument checks, row masks and norms shared by the losses."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from mer_dg.contracts import as_array

HIGHEST = jax.lax.Precision.HIGHEST


def floating(name: str, x) -> jax.Array:
  """``x`` in float32; float64 stays float64, and anything not floating is an error."""
  x = as_array(name, x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(f"{name} must be floating, got {x.dtype}.")
  return x.astype(jnp.result_type(x, jnp.float32))


def rows(name: str, x) -> jax.Array:
  """``x`` as floating ``[B, D]``."""
  x = floating(name, x)
  if x.ndim != 2:
    raise ValueError(f"{name} must be [B, D], got {x.shape}.")
  return x


def by_modality(name: str, arrays, *, at_least: int = 1) -> dict[str, jax.Array]:
  """``{m: floating [B, D_m]}`` with one batch size, in the order given."""
  require_names(name, arrays, at_least=at_least)
  out = {m: rows(f"{name}[{m!r}]", x) for m, x in arrays.items()}
  sizes = {m: x.shape[0] for m, x in out.items()}
  if len(set(sizes.values())) > 1:
    raise ValueError(f"{name} has unequal batch sizes {sizes}.")
  return out


def scalars(name: str, values, *, at_least: int = 1) -> dict[str, jax.Array]:
  """``{name: floating scalar}``, in the order given."""
  require_names(name, values, at_least=at_least)
  out = {m: floating(f"{name}[{m!r}]", v) for m, v in values.items()}
  for m, v in out.items():
    if v.ndim:
      raise ValueError(f"{name}[{m!r}] must be a scalar, got shape {v.shape}.")
  return out


def require_names(name: str, values, *, at_least: int = 1) -> None:
  if not isinstance(values, Mapping):
    raise TypeError(f"{name} must map names to arrays, got {type(values).__name__}.")
  if len(values) < at_least:
    raise ValueError(
      f"{name} needs at least {at_least} entries, got {tuple(values) or 'none'}."
    )


def same_names(name: str, given: Mapping, reference: str, expected: Mapping) -> None:
  if set(given) != set(expected):
    raise ValueError(
      f"{name} has {sorted(given)}, but {reference} has {sorted(expected)}."
    )


def index_vector(name: str, x, size: int) -> jax.Array:
  """Labels or domains: integers ``[B]``."""
  x = jnp.asarray(x)
  if x.shape != (size,) or not jnp.issubdtype(x.dtype, jnp.integer):
    raise ValueError(f"{name} must be integer [{size}], got {x.dtype} {x.shape}.")
  return x


def row_mask(where, size: int) -> jax.Array:
  """``where`` as bool ``[B]``; all rows where it is None."""
  if where is None:
    return jnp.ones((size,), bool)
  where = jnp.asarray(where)
  if where.shape != (size,):
    raise ValueError(f"where must have shape ({size},), got {where.shape}.")
  return where.astype(bool)


def positive(name: str, value) -> None:
  """Checks a number if it is known now, that is, not while JAX is tracing it."""
  if not isinstance(value, jax.core.Tracer) and not (np.asarray(value) > 0).all():
    raise ValueError(f"{name} must be > 0, got {value!r}.")


def keep(x: jax.Array, mask: jax.Array, *, fill: float = 0) -> jax.Array:
  """Rows outside of ``mask`` become ``fill`` before anything is computed from them.

  Multiplying later would not do: 0 times the gradient at an inf or nan is nan.
  """
  return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, fill)


# Norms times this power of two, and the sum of a million of them, do not overflow.
SMALL = 2.0**-24


def norm(x: jax.Array, *, times: float = 1) -> jax.Array:
  """Euclidean norm over the last axis times a number; gradient 0 where it is 0."""
  # (Not of x times the number: XLA multiplies that with the inverse of the peak.)
  scaled, peak, square = _scaled_square(x)
  root = jnp.sqrt(jnp.where(square > 0, square, 1))
  return jnp.where(square > 0, root * (times * peak), 0)[..., 0]


def unit(x: jax.Array) -> jax.Array:
  """``x`` over its norm along the last axis; a zero row stays 0, with gradient 0."""
  scaled, _, square = _scaled_square(x)
  return scaled / jnp.sqrt(jnp.where(square > 0, square, 1))


def power_of_two(x: jax.Array) -> jax.Array:
  """The power of two in (x / 2, x], 1 for x = 0: division by it is exact."""
  _, exponent = jnp.frexp(_divisor(x))
  return jnp.ldexp(jnp.ones_like(x), exponent - 1)


def _divisor(x):
  """``x`` without gradient, 1 for 0.

  At most a quarter of the largest number: compilers divide by multiplying with the
  inverse, which must not vanish.
  """
  most = float(jnp.finfo(x.dtype).max) / 4
  return jax.lax.stop_gradient(jnp.where(x > 0, jnp.minimum(x, most), 1))


def _scaled_square(x):
  """``x / peak``, ``peak`` and ``|x / peak|^2``, so that no square overflows.

  The peak carries no gradient: neither a norm nor a direction depends on it.
  """
  peak = _divisor(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
  scaled = x / peak
  return scaled, peak, jnp.sum(scaled * scaled, axis=-1, keepdims=True)
