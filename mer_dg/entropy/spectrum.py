"""Spectral diagnostics of embeddings: effective rank, von Neumann entropy."""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.entropy import _arrays
from mer_dg.entropy.gaussian import centered_rows
from mer_dg.entropy.renyi import spectrum_entropy


def _normalized_spectrum(z, where, center, power):
  """Singular values to ``power``, scaled to sum to one (all 0 for a zero matrix)."""
  z = _arrays.drop_rows(_arrays.accumulate(z), where)
  if center:
    z, _ = centered_rows(z, where)
  peak = jnp.max(jnp.abs(z))
  z = z / lax.stop_gradient(jnp.where(peak > 0, peak, 1))
  values = jnp.linalg.svd(z, compute_uv=False) ** power
  total = jnp.sum(values)
  values = values / jnp.where(total > 0, total, 1)
  return values + lax.stop_gradient(_arrays.nan_if_nan(z))


def effective_rank(
  z: jax.Array, *, where: jax.Array | None = None, center: bool = False
) -> jax.Array:
  r"""Effective rank ``exp(H(sigma / sum sigma))`` of the embedding matrix.

  Args:
    z: Embeddings ``[..., n, d]``, floating.
    where: Boolean ``[..., n]``. Rows split over devices: ``gather_rows`` first.
    center: Subtract the mean row first (RankMe does not).

  Returns:
    ``[...]`` in [1, min(n, d)]; 1 for a zero matrix.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: For a wrong shape.

  References:
    Roy & Vetterli 2007; RankMe, Garrido et al. 2023, eq. 1.

  Example:
    >>> print(f"{effective_rank(jnp.eye(4)):.4f}")
    4.0000
  """
  z = _arrays.check_samples("z", z)
  where = _arrays.check_where(where, z)

  def one(z, where):
    return jnp.exp(spectrum_entropy(_normalized_spectrum(z, where, center, 1)))

  return _arrays.over_batch(one, z, where)


def von_neumann_entropy(
  z: jax.Array, *, where: jax.Array | None = None, center: bool = False
) -> jax.Array:
  r"""Von Neumann entropy of ``z^T z / tr(z^T z)``, in nats.

  Args:
    z: Embeddings ``[..., n, d]``, floating.
    where: Boolean ``[..., n]``. Rows split over devices: ``gather_rows`` first.
    center: Subtract the mean row first (then it is that of the covariance).

  Returns:
    ``[...]`` nats in [0, log min(n, d)]; 0 for a zero matrix.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: For a wrong shape.

  References:
    Friedman & Dieng, The Vendi Score, 2023 (exponential of this, linear kernel).

  Example:
    >>> print(f"{von_neumann_entropy(jnp.eye(4)):.4f}")  # log 4
    1.3863
  """
  z = _arrays.check_samples("z", z)
  where = _arrays.check_where(where, z)

  def one(z, where):
    return spectrum_entropy(_normalized_spectrum(z, where, center, 2))

  return _arrays.over_batch(one, z, where)
