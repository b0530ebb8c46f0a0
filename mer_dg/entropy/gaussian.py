"""Entropy of the Gaussian with the samples' covariance."""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.entropy import _arrays

HIGHEST = lax.Precision.HIGHEST


def centered_rows(z: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """Rows minus their mean (masked rows 0) and the number of valid rows."""
  v = _arrays.row_weights(z, where)
  count = jnp.sum(v)
  center = _arrays.robust_center(z, where)
  z = _arrays.drop_rows(z - center[None, :], where)  # first: exact for large offsets
  mean = jnp.sum(z, axis=0) / jnp.where(count > 0, count, 1)
  return _arrays.drop_rows(z - mean[None, :], where), count


def ridge_logdet(x: jax.Array, ridge: jax.Array, *, form: str = "auto") -> jax.Array:
  r"""``log det(ridge I_d + x^T x)`` for rows ``x [n, d]`` and ``ridge > 0``.

  Computed from the triangular factor of the stacked matrix ``[x; sqrt(ridge) I]``
  (primal, d x d) or ``[x^T; sqrt(ridge) I]`` (dual, n x n, Sylvester's identity):
  forming ``x^T x`` first would square the condition number, and a Cholesky factor
  in float32 then fails on collapsed features (eps * |x|^2 > ridge).
  """
  n, d = x.shape
  if form == "auto":
    form = "dual" if n < d else "primal"
  a = x.T if form == "dual" else x  # [rows, k]
  k = a.shape[1]
  return _stacked_logdet(a, ridge) + (d - k) * jnp.log(ridge)


@jax.custom_vjp
def _stacked_logdet(a, ridge):
  return _stacked_logdet_fwd(a, ridge)[0]


def _stacked_logdet_fwd(a, ridge):
  k = a.shape[1]
  stacked = jnp.concatenate([a, jnp.sqrt(ridge) * jnp.eye(k, dtype=a.dtype)])
  r = jnp.linalg.qr(stacked, mode="r")
  value = 2 * jnp.sum(jnp.log(jnp.abs(jnp.diagonal(r))))
  return value, (a, r)


def _stacked_logdet_bwd(residual, g):
  # d logdet(ridge I + a^T a) = 2 tr((..)^-1 a^T da) + tr((..)^-1) dridge
  a, r = residual
  inverse_r = lax.linalg.triangular_solve(
    r, jnp.eye(r.shape[0], dtype=r.dtype), left_side=True, lower=False
  )
  half = jnp.matmul(a, inverse_r, precision=HIGHEST)
  da = 2 * g * jnp.matmul(half, inverse_r.T, precision=HIGHEST)
  return da, g * jnp.sum(inverse_r**2)


_stacked_logdet.defvjp(_stacked_logdet_fwd, _stacked_logdet_bwd)


def gaussian_entropy(
  z: jax.Array, *, shrinkage=0.0, where: jax.Array | None = None
) -> jax.Array:
  r"""Entropy of the Gaussian with the covariance of ``z``, in nats.

  .. math:: H = \tfrac12 \log\det(2\pi e\,\Sigma_\rho),\quad
            \Sigma_\rho = (1-\rho)\Sigma + \rho\,\tfrac{\mathrm{tr}\Sigma}{d} I

  with the unbiased covariance (n - 1). It is an upper bound on the entropy of any
  density with that covariance. Uses the n x n dual when n < d.

  Args:
    z: Samples ``[..., n, d]``, floating.
    shrinkage: ``rho`` in [0, 1], towards the isotropic covariance of the same trace.
      May be traced.
    where: Boolean ``[..., n]``.

  Returns:
    Nats, ``[...]``. ``-inf`` with zero gradient when the covariance is singular (n <= d
    without shrinkage, or identical rows). 0 when fewer than two rows are valid.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: For a wrong shape or a shrinkage outside [0, 1].

  References:
    Cover & Thomas, Elements of Information Theory, theorem 8.4.1; the shrinkage target
    of Ledoit & Wolf 2004.

  Example:
    >>> z = jnp.array([[-1.0], [0.0], [1.0]])  # variance 1
    >>> print(f"{gaussian_entropy(z):.4f}")
    1.4189
  """
  z = _arrays.check_samples("z", z)
  where = _arrays.check_where(where, z)
  concrete = _arrays.concrete_value(shrinkage)
  if concrete is not None:
    if concrete.shape != () or not 0 <= concrete <= 1:
      raise ValueError(f"shrinkage must be a number in [0, 1], got {shrinkage}.")

  def one(z, where):
    z = _arrays.drop_rows(_arrays.accumulate(z), where)
    x, count = centered_rows(z, where)
    return _entropy_of_centered(x, count, jnp.asarray(shrinkage, z.dtype))

  return _arrays.over_batch(one, z, where)


def _entropy_of_centered(x, count, shrinkage):
  n, d = x.shape
  enough = count >= 2
  dof = jnp.where(enough, count - 1, 1)
  trace = jnp.sum(x**2) / dof
  # In units of the mean standard deviation: ridge = rho, no overflow for any scale.
  positive = trace > 0
  sigma = jnp.sqrt(jnp.where(positive, trace, 1) / d)
  x = x / (sigma * jnp.sqrt(dof))
  # Without shrinkage a singular covariance shows as an eigenvalue at rounding level.
  rounding = jnp.finfo(x.dtype).eps * max(n, d)
  ridge = jnp.maximum(shrinkage, jnp.finfo(x.dtype).tiny ** 0.5)
  logdet = ridge_logdet(jnp.sqrt(1 - shrinkage) * x, ridge)
  full_rank = (shrinkage > 0) | ((count > d) & (_smallest(x) > rounding))
  value = 0.5 * (d * math.log(2 * math.pi * math.e) + logdet) + d * jnp.log(sigma)
  value = jnp.where(positive & full_rank, value, -jnp.inf)
  poison = _arrays.nan_if_nan(x) + _arrays.nan_if_nan(trace)
  return jnp.where(enough, value, 0) + lax.stop_gradient(poison)


def _smallest(x):
  """Smallest diagonal of the triangular factor of x: 0 if x has not full rank."""
  n, d = x.shape
  if n < d:
    return jnp.zeros((), x.dtype)
  r = jnp.linalg.qr(lax.stop_gradient(x), mode="r")
  return jnp.min(jnp.abs(jnp.diagonal(r)))
