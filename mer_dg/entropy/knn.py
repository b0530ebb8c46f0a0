"""Nearest-neighbour entropy estimate."""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mer_dg.entropy import _arrays
from mer_dg.entropy.kernels import log_unit_ball

HIGHEST = lax.Precision.HIGHEST

# Up to here squared distances are summed coordinate by coordinate: neighbours in few
# dimensions are so close that |a|^2 + |b|^2 - 2ab cannot rank them in float32.
_DIRECT_DIMENSIONS = 8


def knn_entropy(
  z: jax.Array,
  *,
  k: int = 3,
  where: jax.Array | None = None,
  block_size: int | None = None,
) -> jax.Array:
  r"""Kozachenko-Leonenko nearest-neighbour estimate of entropy, in nats.

  .. math:: \hat H = \psi(n) - \psi(k) + \log V_d + \tfrac dn \sum_i \log \epsilon_i

  with ``epsilon_i`` the Euclidean distance of row i to its k-th nearest other row. The
  neighbour is a constant for the gradient, its distance is not.

  Args:
    z: Samples ``[..., n, d]``, floating.
    k: Neighbour, >= 1. Where n valid rows are too few, ``min(k, n - 1)`` is used.
    where: Boolean ``[..., n]``. Rows split over devices: ``gather_rows`` first.
    block_size: Query rows per tile; None chooses.

  Returns:
    Nats, ``[...]``. ``-inf`` when k + 1 rows coincide (those rows get no gradient);
    0 below two valid rows.

  Raises:
    TypeError: If ``z`` is not floating or ``k`` not an int.
    ValueError: For a wrong shape, ``k < 1`` or ``block_size <= 0``.

  References:
    Kozachenko & Leonenko 1987; Kraskov, Stoegbauer & Grassberger 2004, eq. 20.

  Example:
    >>> z = jnp.array([[0.0], [1.0]])  # psi(2) - psi(1) + log 2 + log 1
    >>> print(f"{knn_entropy(z, k=1):.4f}")
    1.6931
  """
  z = _arrays.check_samples("z", z)
  where = _arrays.check_where(where, z)
  _arrays.check_block_size(block_size)
  if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
    raise TypeError(f"k must be an int, got {k!r}.")
  if k < 1:
    raise ValueError(f"k must be >= 1, got {k}.")

  def one(z, where):
    z = _arrays.drop_rows(_arrays.accumulate(z), where)
    n, d = z.shape
    if n < 2:
      return _arrays.nan_if_nan(z)
    valid = jnp.ones(n, bool) if where is None else where
    count = jnp.sum(valid)
    x = z - _arrays.robust_center(z, where)[None, :]
    k_eff = jnp.clip(count - 1, 1, min(k, n - 1))
    neighbour = _neighbours(lax.stop_gradient(x), valid, min(k, n - 1), block_size)
    neighbour = jnp.take_along_axis(
      neighbour, jnp.broadcast_to(k_eff - 1, (n, 1)), axis=1
    )[:, 0]
    sq = jnp.sum((x - x[neighbour]) ** 2, axis=1)  # exact, unlike the search distances
    log_eps = 0.5 * _arrays.safe_log(jnp.where(valid, sq, 1))
    digamma = jax.scipy.special.digamma
    mean = jnp.sum(log_eps) / jnp.maximum(count, 1)
    counts = digamma(count.astype(z.dtype)) - digamma(k_eff.astype(z.dtype))
    value = counts + log_unit_ball(d) + d * mean
    poison = lax.stop_gradient(_arrays.nan_if_nan(z))
    return jnp.where(count >= 2, value, 0) + poison

  return _arrays.over_batch(one, z, where)


def _neighbours(x, valid, k, block_size):
  """Indices ``[n, k]`` of the k nearest other valid rows, nearest first."""
  n, d = x.shape
  block = min(n, block_size or max(1, 2**22 // n))
  norm = jnp.sum(x**2, axis=1)
  far = jnp.where(valid, 0, jnp.inf)

  def sq_dist(rows):
    q = x[rows]
    if d <= _DIRECT_DIMENSIONS:
      return sum((q[:, k][:, None] - x[:, k][None, :]) ** 2 for k in range(d))
    gram = jnp.matmul(q, x.T, precision=HIGHEST)
    return norm[rows][:, None] + norm[None, :] - 2 * gram

  def search(rows):
    sq = sq_dist(rows) + far[None, :]
    sq = jnp.where(rows[:, None] == jnp.arange(n)[None, :], jnp.inf, sq)
    return lax.top_k(-sq, k)[1]

  if block >= n:
    return search(jnp.arange(n))
  starts = -(-n // block)
  rows = jnp.minimum(jnp.arange(starts * block), n - 1).reshape(starts, block)
  return lax.map(search, rows).reshape(-1, k)[:n]
