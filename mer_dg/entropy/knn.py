"""Nearest-neighbour entropy estimate."""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mer_dg.entropy import _arrays
from mer_dg.entropy.bandwidth import ordinary_rows
from mer_dg.entropy.tiles import dot

# Up to here squared distances are summed coordinate by coordinate: neighbours in few
# dimensions are so close that |a|^2 + |b|^2 - 2ab cannot rank them in float32.
_DIRECT_DIMENSIONS = 8
_TILE_PAIRS = 2**22


def knn_entropy(
  z: jax.Array,
  *,
  k: int = 3,
  where: jax.Array | None = None,
) -> jax.Array:
  r"""Kozachenko-Leonenko nearest-neighbour estimate of entropy, in nats.

  .. math:: \hat H = \psi(n) - \psi(k) + \log V_d + \tfrac dn \sum_i \log \epsilon_i

  with ``epsilon_i`` the Euclidean distance of row i to its k-th nearest other row. The
  neighbour is a constant for the gradient, its distance is not.

  Args:
    z: Samples ``[..., n, d]``, floating.
    k: Neighbour, >= 1, found by squared distances: in float32 those of an ordinary
      row times 1e-15 to 1e15 are told apart. Where n valid rows are too few,
      ``min(k, n - 1)`` is used.
    where: Boolean ``[..., n]``.

  Returns:
    Nats, ``[...]``. ``-inf`` when k + 1 rows coincide (those rows get no gradient);
    0 below two valid rows.

  Raises:
    TypeError: If ``z`` is not floating or ``k`` not an int.
    ValueError: For a wrong shape or ``k < 1``.

  References:
    Kozachenko & Leonenko 1987; Kraskov, Stoegbauer & Grassberger 2004, eq. 20.

  Example:
    >>> z = jnp.array([[0.0], [1.0]])  # psi(2) - psi(1) + log 2 + log 1
    >>> print(f"{knn_entropy(z, k=1):.4f}")
    1.6931
  """
  if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
    raise TypeError(f"k must be an int, got {k!r}.")
  if k < 1:
    raise ValueError(f"k must be >= 1, got {k}.")

  def one(z, where):
    n, d = z.shape
    valid = jnp.ones(n, bool) if where is None else where
    count = jnp.sum(valid)
    k_eff = jnp.clip(count - 1, 1, min(k, n - 1))
    x = ordinary_rows(lax.stop_gradient(z), where)
    nearest = _nearest(x, valid, min(k, n - 1))
    nearest = jnp.take_along_axis(nearest, jnp.full((n, 1), k_eff - 1), axis=1)[:, 0]
    # Exact, unlike the distances of the search; halves, lest a difference overflow.
    log_eps = math.log(2) + _arrays.log_norm(0.5 * z - 0.5 * z[nearest])
    mean = jnp.sum(jnp.where(valid, log_eps, 0)) / jnp.maximum(count, 1)
    digamma = jax.scipy.special.digamma
    counts = digamma(count.astype(z.dtype)) - digamma(k_eff.astype(z.dtype))
    return counts + _log_unit_ball(d) + d * mean

  return _arrays.estimate(one, z, where, min_rows=2)


def _log_unit_ball(d: int) -> float:
  return 0.5 * d * math.log(math.pi) - math.lgamma(d / 2 + 1)


def _nearest(x, valid, k):
  """Indices ``[n, k]`` of the k nearest other valid rows, nearest first."""
  n, d = x.shape
  norm = jnp.sum(x**2, axis=1)
  far = jnp.where(valid, 0, jnp.inf)

  def search(rows):
    q = x[rows]
    if d <= _DIRECT_DIMENSIONS:
      sq = sum((q[:, j][:, None] - x[:, j][None, :]) ** 2 for j in range(d))
    else:
      sq = norm[rows][:, None] + norm[None, :] - 2 * dot(q, x.T)
    own = rows[:, None] == jnp.arange(n)[None, :]
    return lax.top_k(-jnp.where(own, jnp.inf, sq + far[None, :]), k)[1]

  block = min(n, max(1, _TILE_PAIRS // n))
  if block == n:
    return search(jnp.arange(n))
  starts = -(-n // block)
  rows = jnp.minimum(jnp.arange(starts * block), n - 1).reshape(starts, block)
  return lax.map(search, rows).reshape(-1, k)[:n]
