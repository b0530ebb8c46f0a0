"""Spectral diagnostics of embeddings: effective rank, von Neumann entropy."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mer_dg.entropy import _arrays
from mer_dg.entropy.renyi import spectrum_entropy


def _normalized_spectrum(z, where, center, power):
  """Singular values to ``power``, scaled to sum to one (all 0 for a zero matrix)."""
  if center:
    z = _arrays.center_rows(z, where)[0]
  z = z / _arrays.power_of_two(jnp.max(jnp.abs(z)))
  values = jnp.linalg.svd(z, compute_uv=False) ** power
  total = jnp.sum(values)
  return values / jnp.where(total > 0, total, 1)


def effective_rank(
  z: jax.Array, *, where: jax.Array | None = None, center: bool = False
) -> jax.Array:
  r"""Effective rank ``exp(H(sigma / sum sigma))`` of the embedding matrix.

  Args:
    z: Embeddings ``[..., n, d]``, floating.
    where: Boolean ``[..., n]``.
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

  def one(z, where):
    return jnp.exp(spectrum_entropy(_normalized_spectrum(z, where, center, 1)))

  return _arrays.estimate(one, z, where, min_rows=0)


def von_neumann_entropy(
  z: jax.Array, *, where: jax.Array | None = None, center: bool = False
) -> jax.Array:
  r"""Von Neumann entropy of ``z^T z / tr(z^T z)``, in nats.

  Args:
    z: Embeddings ``[..., n, d]``, floating.
    where: Boolean ``[..., n]``.
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

  def one(z, where):
    return spectrum_entropy(_normalized_spectrum(z, where, center, 2))

  return _arrays.estimate(one, z, where, min_rows=0)
