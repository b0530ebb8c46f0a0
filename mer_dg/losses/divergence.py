"""Distances between the distributions of features in different domains."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.contracts import cut_off, square_limit
from mer_dg.losses import _rows
from mer_dg.losses.classification import masked_mean


def coral(
  z: jax.Array,
  domain: jax.Array,
  *,
  num_domains: int,
  where: jax.Array | None = None,
) -> jax.Array:
  r"""CORAL: domains should agree in the mean and covariance of their features.

  .. math::
    L = \mathrm{mean}_{s < t} \; \left[ \tfrac1D \|\mu_s - \mu_t\|^2
      + \tfrac1{D^2} \|\Sigma_s - \Sigma_t\|_F^2 \right]

  over pairs of domains, with the unbiased covariance (divisor n - 1).

  Args:
    z: Features ``[B, D]``: fused, or of one modality.
    domain: int ``[B]`` in ``[0, num_domains)``; rows of other numbers do not count.
    num_domains: Number of source domains S >= 2, static.
    where: bool ``[B]``, rows that count.

  Returns:
    Scalar, >= 0 up to rounding. The mean is over pairs of domains with two rows or
    more each; 0 if there is no such pair.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: If shapes do not fit or there are fewer than two domains.

  References:
    Sun & Saenko, Deep CORAL, 2016, in the form of DomainBed (Gulrajani & Lopez-Paz,
    2021), which adds the means and divides by D and D^2 instead of 4 D^2.

  Example:
    >>> z = jnp.array([[0.0], [2.0], [1.0], [3.0]])
    >>> print(coral(z, jnp.array([0, 0, 1, 1]), num_domains=2))  # Variances agree.
    1.0
  """
  z, member = _members(z, domain, num_domains, where)
  # In units of the largest number, a power of two, fourth powers do not overflow.
  unit = _rows.power_of_two(jnp.max(jnp.abs(z)))
  z = z / unit
  count = jnp.sum(member, axis=1, keepdims=True)  # [S, 1]
  mean = _matmul(member, z) / jnp.maximum(count, 1)  # [S, D]
  centred = _rows.keep(z - _matmul(member.T, mean), jnp.any(member > 0, axis=0))
  # sum_i s_i c_i c_i' with s = 1 / (n - 1) on one domain and minus that on the other is
  # the difference of covariances; its squared norm needs [B, B] only, never [D, D].
  first, second = _pairs(num_domains)
  weight = member / jnp.maximum(count - 1, 1)
  sign = weight[first] - weight[second]  # [pairs, B]
  width = z.shape[1]
  covariance = _quadratic(sign, _matmul(centred, centred.T) ** 2) / width**2
  location = jnp.mean((mean[first] - mean[second]) ** 2, axis=1)
  enough = jnp.minimum(count[first, 0], count[second, 0]) >= 2
  # Factor by factor: 0 times what overflows would be nan.
  location = location * unit * unit
  return masked_mean(location + covariance * unit * unit * unit * unit, enough)


def mmd(
  z: jax.Array,
  domain: jax.Array,
  *,
  num_domains: int,
  gammas: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3),
  where: jax.Array | None = None,
) -> jax.Array:
  r"""Squared maximum mean discrepancy between domains, sum of Gaussian kernels.

  .. math::
    L = \mathrm{mean}_{s < t} \; [\mathbb E k(x, x') + \mathbb E k(y, y')
      - 2 \mathbb E k(x, y)], \qquad
    k(x, y) = \sum_\gamma \exp(-\gamma \|x - y\|^2)

  over pairs of domains, with all pairs of rows in the means, a row with itself included
  (the biased estimate, which is never negative).

  Args:
    z: Features ``[B, D]``: fused, or of one modality. Kernel widths are absolute, so
      the scale of the features decides which of them matter. In float32 a distance
      below a thousandth of that from the median row is rounding.
    domain: int ``[B]`` in ``[0, num_domains)``; rows of other numbers do not count.
    num_domains: Number of source domains S >= 2, static.
    gammas: Inverse squared widths, each > 0. Static.
    where: bool ``[B]``, rows that count.

  Returns:
    Scalar, >= 0 up to rounding. The mean is over pairs of domains with a row or more
    each; 0 if there is no such pair.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: If shapes do not fit, there are fewer than two domains, or a gamma is
      not positive.

  References:
    Gretton et al., A kernel two-sample test, 2012, eq. 5; kernels as in DomainBed
    (Gulrajani & Lopez-Paz, 2021).

  Example:
    >>> z = jnp.array([[0.0], [1.0]])
    >>> loss = mmd(z, jnp.array([0, 1]), num_domains=2, gammas=(1.0,))
    >>> print(f"{loss:.4f}")  # 2 - 2 / e
    1.2642
  """
  if not gammas:
    raise ValueError("gammas must hold at least one number, got none.")
  for gamma in gammas:
    _rows.positive("gammas", gamma)
  z, member = _members(z, domain, num_domains, where)
  square = _squared_distances(z, jnp.any(member > 0, axis=0))
  kernel = sum((jnp.exp(-g * square) for g in gammas), start=jnp.zeros_like(square))
  count = jnp.sum(member, axis=1, keepdims=True)
  weight = member / jnp.maximum(count, 1)
  first, second = _pairs(num_domains)
  enough = jnp.minimum(count[first, 0], count[second, 0]) >= 1
  return masked_mean(_quadratic(weight[first] - weight[second], kernel), enough)


def _members(z, domain, num_domains, where):
  """Rows that count (others 0), and who belongs to which domain, 0/1 ``[S, B]``."""
  z = _rows.rows("z", z)
  if num_domains < 2:
    raise ValueError(
      f"num_domains={num_domains}: a distance between domains needs at least 2."
    )
  size = z.shape[0]
  domain = _rows.index_vector("domain", domain, size)
  mask = _rows.row_mask(where, size)
  member = (domain[None, :] == jnp.arange(num_domains)[:, None]) & mask[None, :]
  return _rows.keep(z, mask), member.astype(z.dtype)


def _squared_distances(z, mask):
  """``[B, B]`` from inner products: 70 times faster at 48 x 4864 on a CPU."""
  # Rows near the origin keep what rounding does to the narrow kernels small. The row of
  # median length, as a mean would be dragged away by one far row.
  length = _rows.norm(jax.lax.stop_gradient(_rows.keep(z, mask)))
  order = jnp.argsort(jnp.where(mask, length, jnp.inf))
  center = jax.lax.stop_gradient(z[order[jnp.maximum(jnp.sum(mask) - 1, 0) // 2]])
  z = _rows.keep(z - center[None, :], mask)
  z = cut_off(z, square_limit(z.shape[1], z.dtype))
  inner = _matmul(z, z.T)
  square = jnp.diagonal(inner)
  distance = jnp.maximum(square[:, None] + square[None, :] - 2 * inner, 0)
  return jnp.where(jnp.eye(z.shape[0], dtype=bool), 0, distance)


def _pairs(num_domains):
  """Both domains of every pair, two ``[S (S - 1) / 2]``."""
  return np.triu_indices(num_domains, k=1)


def _matmul(a, b):
  return jnp.matmul(a, b, precision=_rows.HIGHEST)


def _quadratic(v, matrix):
  """``v_p' matrix v_p`` for every row p of ``v``."""
  return jnp.sum(_matmul(v, matrix) * v, axis=1)
