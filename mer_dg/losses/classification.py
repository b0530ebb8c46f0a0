"""Classification losses with row masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def masked_mean(values: jax.Array, where: jax.Array | None = None) -> jax.Array:
  """Mean of ``values`` over the rows in ``where``; exactly 0 if there is none.

  Args:
    values: Floating, any shape.
    where: Boolean or weights of the same shape; None means all.

  Returns:
    float32 scalar.

  Example:
    >>> float(masked_mean(jnp.array([1.0, 5.0]), jnp.array([True, False])))
    1.0
  """
  values = values.astype(jnp.float32)
  if where is None:
    return jnp.mean(values)
  where = where.astype(jnp.float32)
  # The inner `where` keeps an inf or nan of a masked row out of the gradient.
  total = jnp.sum(jnp.where(where > 0, values, 0.0) * where)
  return total / jnp.maximum(jnp.sum(where), 1e-12)


def cross_entropy(
  logits: jax.Array, targets: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
  """Softmax cross-entropy in nats, averaged over the rows in ``where``.

  Args:
    logits: ``[B, K]``, floating; computed in float32.
    targets: int ``[B]`` class indices in ``0..K-1``, or ``[B, K]`` rows of the
      probability simplex.
    where: Boolean or weights ``[B]``; rows at 0 have no influence at all.

  Returns:
    float32 scalar; 0 if no row counts.

  Raises:
    ValueError: If the shapes do not fit.

  Example:
    >>> print(f"{cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])):.4f}")
    1.3863
  """
  if logits.ndim != 2:
    raise ValueError(f"logits must be [B, K], got {logits.shape}.")
  if targets.shape not in (logits.shape[:1], logits.shape):
    raise ValueError(
      f"targets must be [B] or [B, K] with logits {logits.shape}, got {targets.shape}."
    )
  if where is not None:  # Before the softmax: 0 times an inf is no zero gradient.
    logits = jnp.where(where[:, None] > 0, logits, 0.0)
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  if targets.ndim == 1:
    nll = -jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]
  else:
    # 0 * log 0 counts as 0, also where a logit is -inf.
    nll = -jnp.sum(jnp.where(targets > 0, targets * log_p, 0.0), axis=-1)
  return masked_mean(nll, where)
