r"""Log determinant of a scatter matrix, accurate for badly scaled rows and columns.

With ``A = [z, 1]``, ``det(A^T A) = n det(sum_i (z_i - mean)(z_i - mean)^T)``: no mean
is subtracted, so one row at 1e15 does not erase the others. The usual case is a
Cholesky factor of the scatter. Where rounding spoils that (collapsed features, one row
far away), ``A = P L U`` by Gaussian elimination with row pivoting, whose error is small
compared with every row and every column separately; ``L`` has entries of at most one
and an ordinary QR factorisation takes care of it.
"""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.entropy import _arrays
from mer_dg.entropy._batching import one_by_one_on_cpu

HIGHEST = lax.Precision.HIGHEST

# Cholesky is trusted when every squared pivot exceeds this many eps of its diagonal
# entry: about 1e-3 in float32, so that at least four digits of each pivot are right.
_TRUSTED_PIVOT = 2**13


def scatter_logdet(z: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
  """``log det sum_i v_i (z_i - mean)(z_i - mean)^T`` and whether it is finite.

  Args:
    z: ``[n, d]`` with n > d, centred near its bulk; rows with ``v = 0`` are zero.
    v: 0 or 1 for every row, ``[n]``; no gradient.

  Returns:
    ``(value, full_rank)``. Where the scatter is singular to working precision the value
    is 0 with zero gradient and ``full_rank`` is False.
  """
  return _scatter_logdet(*_arrays.align_varying(z, lax.stop_gradient(v)))


@jax.custom_vjp
def _scatter_logdet(z, v):
  return _forward(z, v)[0]


def _forward(z, v):
  count = jnp.sum(v)
  mean = (v @ z) / jnp.where(count > 0, count, 1)
  x = (z - mean[None, :]) * v[:, None]
  r, reliable = _upper_cholesky(x)
  pivots = jnp.where(reliable, jnp.abs(jnp.diagonal(r)), 1)
  plain = 2 * jnp.sum(jnp.log(pivots))

  # A loop of at most one turn: unlike lax.cond it also skips the branch under vmap,
  # when no member of the batch needs it.
  state = _arrays.align_varying(reliable, plain, reliable, jnp.zeros_like(z))
  careful = lambda _: (reliable | ~reliable, *_eliminate(z, v))
  _, value, full_rank, slope = lax.while_loop(lambda s: ~s[0], careful, state)
  return (value, full_rank), (x, r, reliable, slope)


def _backward(residual, g):
  x, r, reliable, slope = residual
  # d logdet(x^T x) = 2 tr((x^T x)^-1 x^T dx); centring changes nothing, the rows of
  # the slope sum to zero.
  eye = jnp.eye(r.shape[0], dtype=r.dtype)
  inverse = _inverse_upper(jnp.where(reliable, r, eye))
  half = jnp.matmul(x, inverse, precision=HIGHEST)
  plain = 2 * jnp.matmul(half, inverse.T, precision=HIGHEST)
  dz = g[0] * jnp.where(reliable, plain, slope)
  return dz, jnp.zeros_like(x[:, 0])


_scatter_logdet.defvjp(_forward, _backward)


@one_by_one_on_cpu
def _upper_cholesky(x):
  """Upper ``r`` with ``r^T r = x^T x``, and whether it is accurate (False for nan)."""
  c = jnp.matmul(x.T, x, precision=HIGHEST)
  r = lax.linalg.cholesky(c, symmetrize_input=False).T
  threshold = _TRUSTED_PIVOT * jnp.finfo(x.dtype).eps
  return r, jnp.all(jnp.diagonal(r) ** 2 > threshold * jnp.diagonal(c))


@one_by_one_on_cpu
def _inverse_upper(r):
  eye = jnp.eye(r.shape[0], dtype=r.dtype)
  return lax.linalg.triangular_solve(r, eye, left_side=True, lower=False)


@one_by_one_on_cpu
def _eliminate(z, v):
  """``(log det, full_rank, gradient)`` from ``P L U`` of ``[z, 1]``, L by QR."""
  n, d = z.shape
  a = jnp.concatenate([z, v[:, None]], axis=1)
  packed, _, order = lax.linalg.lu(a)
  lower = jnp.tril(packed, -1) + jnp.eye(n, d + 1, dtype=a.dtype)
  upper = jnp.triu(packed[: d + 1])
  pivots = jnp.abs(jnp.diagonal(upper))
  # What cancelled in a pivot: a small multiple of eps times this is rounding.
  size = jnp.sum(jnp.abs(lower[: d + 1]) * jnp.abs(upper.T), axis=1)
  noise = 16 * (d + 1) * jnp.finfo(a.dtype).eps * size
  full_rank = jnp.all(pivots > noise)  # False for nan
  upper = jnp.where(full_rank, upper, jnp.eye(d + 1, dtype=a.dtype))
  q, r = jnp.linalg.qr(lower)
  logdet = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(upper) * jnp.diagonal(r))))
  value = 2 * logdet - jnp.log(jnp.where(full_rank, jnp.sum(v), 1))
  # The gradient is twice the transposed pseudo-inverse: Q R^-T U^-T, rows reordered.
  for factor in (r, upper):
    q = lax.linalg.triangular_solve(
      factor, q, left_side=False, lower=False, transpose_a=True
    )
  slope = jnp.zeros_like(z).at[order].set(2 * q[:, :d])
  value, slope = (jnp.where(full_rank, y, jnp.zeros_like(y)) for y in (value, slope))
  return value, full_rank, slope
