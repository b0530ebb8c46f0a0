"""Classification losses with row masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mer_dg.contracts import as_array
from mer_dg.losses import _rows


def masked_mean(values: jax.Array, where: jax.Array | None = None) -> jax.Array:
  """Mean of ``values`` over the entries in ``where``; exactly 0 if there is none.

  A loss without rows is 0, so that it can be added to others. (A *metric* without rows
  is undefined, hence NaN, in `mer_dg.evaluation`.)

  Args:
    values: Any shape; integers and booleans are numbers.
    where: Boolean or weights of the same shape; None means all.

  Returns:
    float32 scalar, float64 for float64 values.

  Example:
    >>> float(masked_mean(jnp.array([1.0, 5.0]), jnp.array([True, False])))
    1.0
  """
  values = as_array("values", values)
  values = values.astype(jnp.result_type(values, jnp.float32))
  if where is None:
    where = jnp.ones_like(values)
  where = where.astype(values.dtype)
  # The inner `where` keeps an inf or nan of a masked row out of the gradient.
  values = jnp.where(where > 0, values, 0.0)
  # A sum of the largest numbers is none. (A power of two, and 1 for all others.)
  vast = jax.lax.stop_gradient(jnp.max(jnp.abs(values), initial=0)) > 1e30
  unit = jnp.where(vast, 2.0**30, 1.0).astype(values.dtype)
  return jnp.sum(values / unit * where) / jnp.maximum(jnp.sum(where), 1e-12) * unit


def cross_entropy(
  logits: jax.Array, targets: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
  """Softmax cross-entropy in nats, averaged over the rows in ``where``.

  Args:
    logits: ``[B, K]``, floating.
    targets: int ``[B]`` class indices in ``0..K-1``, or ``[B, K]`` rows of the
      probability simplex.
    where: Boolean or weights ``[B]``; rows at 0 have no influence at all.

  Returns:
    Scalar, 0 if no row counts; computed in float32, or in float64 for such logits.

  Raises:
    ValueError: If the shapes do not fit.

  Example:
    >>> print(f"{cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])):.4f}")
    1.3863
  """
  logits, targets = as_array("logits", logits), as_array("targets", targets)
  if logits.ndim != 2:
    raise ValueError(f"logits must be [B, K], got {logits.shape}.")
  if targets.shape not in (logits.shape[:1], logits.shape):
    raise ValueError(
      f"targets must be [B] or [B, K] with logits {logits.shape}, got {targets.shape}."
    )
  if where is not None:  # Before the softmax: 0 times an inf is no zero gradient.
    logits = jnp.where(where[:, None] > 0, logits, 0.0)
  log_p = jax.nn.log_softmax(logits.astype(jnp.result_type(logits, jnp.float32)))
  if targets.ndim == 1:
    nll = -jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]
  else:
    # 0 * log 0 counts as 0, also where a logit is -inf.
    nll = -jnp.sum(jnp.where(targets > 0, targets * log_p, 0.0), axis=-1)
  return masked_mean(nll, where)


def prototype_cross_entropy(
  z: jax.Array,
  label: jax.Array,
  prototypes: jax.Array,
  *,
  where: jax.Array | None = None,
) -> jax.Array:
  r"""Cross-entropy of a classifier by distance to one prototype per class (PMR).

  .. math:: L = \frac1B \sum_i -\log \mathrm{softmax}_k(-\|z_i - \mu_k\|_2)_{y_i}

  The distance is not squared.

  Args:
    z: Embeddings ``[B, D]`` of one modality.
    label: int ``[B]`` in ``[0, K)``.
    prototypes: :math:`\mu`, ``[K, D]``. They are not detached: the authors' are
      averages of earlier embeddings and constants. A class that has none may be put far
      away.
    where: bool ``[B]``, rows that count.

  Returns:
    Scalar in nats; 0 without rows.

  Raises:
    TypeError: If ``z`` or ``prototypes`` is not floating.
    ValueError: If the shapes do not fit.

  References:
    Fan et al., PMR: Prototypical modal rebalance for multimodal learning, CVPR 2023.

  Example:
    >>> z, prototypes = jnp.array([[1.0]]), jnp.array([[1.0], [3.0]])
    >>> loss = prototype_cross_entropy(z, jnp.array([0]), prototypes)
    >>> print(f"{loss:.4f}")  # log(1 + exp(-2))
    0.1269
  """
  z = _rows.rows("z", z)
  prototypes = _rows.rows("prototypes", prototypes)
  if z.shape[1] != prototypes.shape[1]:
    raise ValueError(
      f"prototypes must be [K, {z.shape[1]}] as z is {z.shape}, got {prototypes.shape}."
    )
  label = _rows.index_vector("label", label, z.shape[0])
  mask = _rows.row_mask(where, z.shape[0])
  z = _rows.keep(z, mask)
  gap = 0.5 * z[:, None, :] - 0.5 * prototypes[None, :, :]  # halves: no overflow
  own = prototypes.at[label].get(mode="clip")[:, None, :]
  own_gap = 0.5 * z[:, None, :] - 0.5 * own
  # |a| - |b| = (a - b) (a + b) / (|a| + |b|), which does not cancel far from all
  # prototypes. A softmax does not mind that the own distance is taken off.
  small = _rows.SMALL
  total = _rows.norm(gap, times=small) + _rows.norm(own_gap, times=small)  # [B, K]
  mean = (small * gap + small * own_gap) / jnp.where(total > 0, total, 1)[:, :, None]
  further = jnp.sum((own - prototypes[None, :, :]) * mean, axis=-1)
  return cross_entropy(-further, label, where=mask)
