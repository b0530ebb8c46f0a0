"""Staying close to a frozen, pre-trained network."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mer_dg.losses import _rows
from mer_dg.losses.classification import masked_mean


def miro(
  features: jax.Array,
  reference: jax.Array,
  mean: jax.Array | Callable[[jax.Array], jax.Array],
  variance: jax.Array | Callable[[jax.Array], jax.Array],
  *,
  where: jax.Array | None = None,
) -> jax.Array:
  r"""MIRO: features should keep telling what a pre-trained network's features are.

  A Gaussian with mean :math:`\mu(f)` and variance :math:`\sigma^2` predicts the frozen
  network's features :math:`f_0` from the trained ones; its negative log-likelihood, up
  to a constant, bounds the lost mutual information:

  .. math:: L = \tfrac12 \, \mathrm{mean} \left[ (\mu(f) - f_0)^2 / \sigma^2
            + \log \sigma^2 \right]

  For several layers the authors sum the losses of the layers. Nothing is detached: the
  reference is a constant if it comes from frozen parameters.

  Args:
    features: f, ``[B, ...]``, of the network in training.
    reference: :math:`f_0`, of the same shape.
    mean: The mean encoder :math:`\mu`: a function of the features; or its output, of
      exactly their shape; or, of any other shape that broadcasts, the bias of
      ``f + bias`` (``0.0``: the identity, which is the authors' choice).
    variance: :math:`\sigma^2 > 0`: a function of the features, or an array that
      broadcasts against them, such as ``[D]`` (the authors': ``softplus(b) + 1e-5``,
      one b per channel, starting at variance 0.1).
    where: bool ``[B]``, rows that count.

  Returns:
    Scalar, may be negative; 0 without rows.

  Raises:
    TypeError: If an array is not floating.
    ValueError: If shapes do not fit.

  References:
    Cha et al., Domain generalization by mutual-information regularization with
    pre-trained models, ECCV 2022, eq. 4-5. A public benchmark port has
    ``log(variance + 1)`` and lets the current network be its own reference.

  Example:
    >>> f, f0 = jnp.array([[3.0, 0.0]]), jnp.array([[1.0, 0.0]])
    >>> print(miro(f, f0, 0.0, jnp.ones(2)))  # (4 / 2) / 2
    1.0
  """
  features = _rows.floating("features", features)
  reference = _rows.floating("reference", reference)
  if features.ndim < 2 or reference.shape != features.shape:
    raise ValueError(
      f"features and reference must both be [B, ...], got {features.shape} and "
      f"{reference.shape}."
    )
  mask = _rows.row_mask(where, features.shape[0])
  features, reference = _rows.keep(features, mask), _rows.keep(reference, mask)
  is_bias = not callable(mean) and jnp.shape(mean) != features.shape
  mu = _against(features, mask, "mean", mean, fill=0)
  if is_bias:
    mu = features + mu
  variance = _against(features, mask, "variance", variance, fill=1)
  value = (mu - reference) ** 2 / variance + jnp.log(variance)
  return 0.5 * masked_mean(jnp.mean(value.reshape(value.shape[0], -1), axis=1), mask)


def _against(features, mask, name, x, *, fill):
  """``x`` in the shape of the features, ``fill`` in rows that do not count."""
  x = _rows.floating(name, x(features) if callable(x) else x)
  try:
    x = jnp.broadcast_to(x, features.shape)
  except ValueError:
    raise ValueError(
      f"{name} must broadcast against features {features.shape}, got {x.shape}."
    ) from None
  return _rows.keep(x, mask, fill=fill)
