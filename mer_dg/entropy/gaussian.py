"""Entropy of the Gaussian with the samples' covariance."""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.entropy import _arrays
from mer_dg.entropy._batching import one_by_one_on_cpu
from mer_dg.entropy.scatter import scatter_logdet

HIGHEST = lax.Precision.HIGHEST


def ridge_logdet(x: jax.Array, ridge: jax.Array, *, form: str = "auto") -> jax.Array:
  r"""``log det(ridge I_d + x^T x)`` for rows ``x [n, d]``.

  Primal (d x d) or dual (n x n, by Sylvester's identity). Cholesky where it is reliable
  in the working precision; otherwise (collapsed features: eps |x|^2 near the smallest
  eigenvalue, where float32 Cholesky returns noise or nan) the triangular factor of the
  stacked matrix ``[x; sqrt(ridge) I]``, which never squares the condition number.

  Args:
    x: ``[n, d]``.
    ridge: Scalar > 0, may be traced.
    form: ``"primal"``, ``"dual"`` or ``"auto"`` (dual when n < d).

  Returns:
    The log determinant, a scalar.
  """
  n, d = x.shape
  if form == "auto":
    form = "dual" if n < d else "primal"
  a = x.T if form == "dual" else x  # [rows, k]
  value = _stacked_logdet(*_arrays.align_varying(a, ridge))
  if form == "dual":
    value = value + (d - n) * jnp.log(ridge)
  return value


@one_by_one_on_cpu
def _triangular_factor(a, ridge):
  """Upper ``r`` with ``r^T r = ridge I + a^T a``."""
  k = a.shape[1]
  eye = jnp.eye(k, dtype=a.dtype)
  c = jnp.matmul(a.T, a, precision=HIGHEST) + ridge * eye
  r = lax.linalg.cholesky(c, symmetrize_input=False).T
  # Rounding perturbs every eigenvalue by about eps |c|; pivots must stand out from it.
  noise = jnp.finfo(a.dtype).eps * jnp.sqrt(jnp.sum(c**2))
  reliable = jnp.min(jnp.diagonal(r)) ** 2 > 20 * noise  # False for nan

  def orthogonal(_):
    stacked = jnp.concatenate([a, jnp.sqrt(ridge) * eye])
    return reliable | ~reliable, jnp.linalg.qr(stacked, mode="r")

  # A loop of at most one turn: unlike lax.cond it also skips the branch under vmap,
  # when no member of the batch needs it.
  return lax.while_loop(lambda s: ~s[0], orthogonal, (reliable, r))[1]


@one_by_one_on_cpu
def _inverse_triangular(r):
  eye = jnp.eye(r.shape[0], dtype=r.dtype)
  return lax.linalg.triangular_solve(r, eye, left_side=True, lower=False)


@jax.custom_vjp
def _stacked_logdet(a, ridge):
  return _stacked_logdet_fwd(a, ridge)[0]


def _stacked_logdet_fwd(a, ridge):
  r = _triangular_factor(a, ridge)
  return 2 * jnp.sum(jnp.log(jnp.abs(jnp.diagonal(r)))), (a, r)


def _stacked_logdet_bwd(residual, g):
  # d logdet(ridge I + a^T a) = 2 tr((..)^-1 a^T da) + tr((..)^-1) dridge
  a, r = residual
  inverse_r = _inverse_triangular(r)
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
    Nats, ``[...]``. ``-inf`` with zero gradient when the covariance is singular to
    working precision (n <= d without shrinkage; identical rows; dependent columns).
    Rows and columns of very different size are not singular. 0 when fewer than two rows
    are valid.

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
  concrete = _arrays.concrete_value(shrinkage)
  if concrete is not None and (concrete.shape != () or not 0 <= concrete <= 1):
    raise ValueError(f"shrinkage must be a number in [0, 1], got {shrinkage}.")

  def one(z, where):
    d = z.shape[1]
    rho = jnp.asarray(shrinkage, z.dtype)
    if concrete is None:
      plain, shrunk = _plain_logdet(z, where), _shrunk_logdet(z, where, rho)
      pick = lambda a, b: jnp.where(rho > 0, a, b)
      half_logdet, finite = map(pick, shrunk, plain)
    elif concrete > 0:
      half_logdet, finite = _shrunk_logdet(z, where, rho)
    else:
      half_logdet, finite = _plain_logdet(z, where)
    value = 0.5 * d * math.log(2 * math.pi * math.e) + jnp.where(finite, half_logdet, 0)
    return jnp.where(finite, value, -jnp.inf)

  return _arrays.estimate(one, z, where, min_rows=2)


def _shrunk_logdet(z, where, rho):
  """Half the ``log det`` of the shrunk covariance, rho > 0 (else any number).

  And whether it is finite.
  """
  z, unit = _arrays.in_units(z, where)
  count = _arrays.row_count(z, where)
  mean = jnp.sum(z, axis=0) / jnp.maximum(count, 1)
  x = _arrays.drop_rows(z - mean[None, :], where)
  n, d = x.shape
  dof = jnp.maximum(count - 1, 1)
  trace = jnp.sum(x**2) / dof
  # In units of the mean standard deviation the ridge is rho.
  positive = trace > 0
  sigma = jnp.sqrt(jnp.where(positive, trace, 1) / d)
  x = x / (sigma * jnp.sqrt(dof))
  rho = jnp.where(rho > 0, rho, 1)
  logdet = ridge_logdet(jnp.sqrt(1 - rho) * x, rho)
  return 0.5 * logdet + d * (jnp.log(sigma) + jnp.log(unit)), positive


def _plain_logdet(z, where):
  """Half the ``log det`` of the covariance, and whether it is finite."""
  n, d = z.shape
  if n <= d:
    return jnp.zeros((), z.dtype), jnp.zeros((), bool)
  count = _arrays.row_count(z, where)
  v = jnp.ones(n, z.dtype) if where is None else where.astype(z.dtype)
  # One unit for each column: the smallest may be 1e40 times as small as the largest.
  z, unit = _arrays.in_units(z, where, per_column=True)
  value, full_rank = scatter_logdet(z, v)
  value = 0.5 * (value - d * jnp.log(jnp.maximum(count - 1, 1)))
  return value + jnp.sum(jnp.log(unit)), full_rank & (count > d)
