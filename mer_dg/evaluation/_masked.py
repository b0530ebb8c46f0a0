"""Masked means and checks shared by the metrics."""

import jax
import jax.numpy as jnp

from mer_dg.losses import masked_mean


def check(logits: jax.Array, label: jax.Array, where: jax.Array | None) -> jax.Array:
  """Validates shapes and types, returns the mask as bool ``[n]``."""
  if logits.ndim != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
    raise ValueError(
      f"logits must be floating [n, K], got {logits.dtype} {logits.shape}."
    )
  n = logits.shape[0]
  if label.shape != (n,) or not jnp.issubdtype(label.dtype, jnp.integer):
    raise ValueError(
      f"label must be integer [{n}] as logits, got {label.dtype} {label.shape}."
    )
  return full_mask(n, where)


def full_mask(n: int, where: jax.Array | None) -> jax.Array:
  """``where`` as bool ``[n]``; all rows where it is None."""
  if where is None:
    return jnp.ones((n,), bool)
  if where.shape != (n,):
    raise ValueError(f"where must have shape [{n}], got {where.shape}.")
  return where.astype(bool)


def ratio(num: jax.Array, den: jax.Array) -> jax.Array:
  """``num / den``, NaN where ``den`` is 0."""
  return jnp.where(den > 0, num / jnp.where(den > 0, den, 1), jnp.nan)


def mean_or_nan(x: jax.Array, mask: jax.Array) -> jax.Array:
  """float32 mean of the kept entries; NaN if none is kept, where a loss would be 0."""
  return jnp.where(jnp.any(mask), masked_mean(x.astype(jnp.float32), mask), jnp.nan)
