r"""Log kernel sums with a hand-derived gradient: the inner loop of the KDE family.

.. math:: \ell_i = \log \sum_j v_j \exp \phi(|q_i - r_j|^2),\qquad
          P_{ij} = v_j \exp(\phi_{ij} - \ell_i),\qquad W_{ij} = -2 g_i P_{ij} \phi'_{ij}

for incoming cotangents ``g_i``; then ``dq_i = sum_j W_ij (r_j - q_i)`` and ``dr_j =
sum_i W_ij (q_i - r_j)``. Small problems are one tile, and P is kept for the backward
pass. Large ones never hold more than a tile: the forward pass goes over blocks of
queries, and the backward pass computes the kernel again (one product of length d per
pair, cheaper than storing n^2 numbers). When queries and references are the same rows,
the backward pass visits each unordered pair of blocks once. Value and gradient then
cost 2.5 products of size n x n x d instead of the 3 of a straightforward recomputation.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mer_dg.entropy import _arrays
from mer_dg.entropy.kernels import Kernel

HIGHEST = lax.Precision.HIGHEST  # |a - b|^2 cancels: TF32 or bf16 products destroy it

# Pairs up to which one tile is used and kept: 4 MiB in float32.
DENSE_PAIRS = 2**20
# Pairs per tile beyond that; a tile and its exponentials should stay in cache.
_ROW_TILE_PAIRS = 2**20
_MIN_ROWS = 128
_SQUARE_TILE = 1024


def log_kernel_sums(
  q: jax.Array,
  r: jax.Array,
  log_v: jax.Array,
  *,
  kernel: Kernel,
  self_offset=None,
  block_size: int | None = None,
) -> jax.Array:
  """``ell [nq]`` for queries ``q``, references ``r`` with log weights ``log_v [nr]``.

  Args:
    q: ``[nq, d]``, in units of the bandwidth.
    r: ``[nr, d]``. Passing the same object as ``q`` halves the backward pass.
    log_v: ``[nr]``, ``-inf`` for references that do not count.
    kernel: The kernel (static).
    self_offset: Query i and reference ``i + self_offset`` are one point and left out
      (integer, may be traced); None leaves nothing out.
    block_size: Rows per tile; None chooses, static.
  """
  nq, nr = q.shape[0], r.shape[0]
  if block_size is None:
    dense = nq * nr <= DENSE_PAIRS
  else:
    dense = block_size >= max(nq, nr)
  same = q is r and (self_offset is None or isinstance(self_offset, int))
  if same:
    q, log_v = _arrays.align_varying(q, log_v)
    options = _Options(kernel, self_offset, block_size)
    return (_self_dense if dense else _self_tiled)(options, q, log_v)
  options = _Options(kernel, None, block_size)
  if self_offset is None:
    self_offset = nr + nq  # matches no column
  self_offset = jnp.asarray(self_offset, jnp.int32)
  q, r, log_v, self_offset = _arrays.align_varying(q, r, log_v, self_offset)
  return (_cross_dense if dense else _cross_tiled)(options, q, r, log_v, self_offset)


class _Options(NamedTuple):
  """Static arguments of the differentiated functions."""

  kernel: Kernel
  self_offset: int | None
  block_size: int | None


# --- one tile -------------------------------------------------------------------------


def _dot(a, b):
  return jnp.matmul(a, b, precision=HIGHEST)


def _log_kernel(kernel: Kernel, q, r, drop=None):
  """Log profile and slope (None: 1) for a tile; ``drop``: where pairs are left out."""
  d = q.shape[1]
  half_q, half_r = 0.5 * jnp.sum(q**2, 1), 0.5 * jnp.sum(r**2, 1)
  # minus half the squared distance; rounding must not make it positive
  half = jnp.minimum(_dot(q, r.T) - half_q[:, None] - half_r[None, :], 0)
  if kernel.has_unit_slope:
    log_k, slope = half, None
  else:
    log_k, slope = kernel.log_profile(-2 * half, d), kernel.slope(-2 * half, d)
  if drop is not None:
    log_k = jnp.where(drop, -jnp.inf, log_k)
  return log_k, slope


def _diagonal(shape, offset):
  """True where column = row + offset."""
  rows = lax.broadcasted_iota(jnp.int32, shape, 0)
  return lax.broadcasted_iota(jnp.int32, shape, 1) == rows + offset


def _row_sums(log_k):
  """``(ell, exp(log_k - peak), total)``, with ell = -inf for empty rows."""
  peak = jnp.max(log_k, axis=1)
  peak = jnp.where(jnp.isneginf(peak), 0, peak)
  e = jnp.exp(log_k - peak[:, None])
  total = jnp.sum(e, axis=1)
  empty = total == 0
  ell = jnp.where(empty, -jnp.inf, peak + jnp.log(jnp.where(empty, 1, total)))
  return ell, e, jnp.where(empty, 1, total)


def _no_empty(ell):
  """Rows without any kernel get share exp(. - inf) = 0, hence no gradient."""
  return jnp.where(jnp.isneginf(ell), jnp.inf, ell)


def _weighted(share, slope):
  return share if slope is None else share * slope


# --- queries are the references, dense ------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _self_dense(options, z, log_v):
  return _self_dense_fwd(options, z, log_v)[0]


def _self_dense_fwd(options, z, log_v):
  n = z.shape[0]
  drop = None
  if options.self_offset is not None:
    drop = _diagonal((n, n), options.self_offset)
  log_k, slope = _log_kernel(options.kernel, z, z, drop)
  ell, e, total = _row_sums(log_k + log_v[None, :])
  share = e / total[:, None]
  return ell, (z, share, slope)


def _self_dense_bwd(options, residual, g):
  del options
  z, share, slope = residual
  share = g[:, None] * share
  w = _weighted(share, slope)
  w = w + w.T
  dz = _dot(w, z) - jnp.sum(w, axis=1)[:, None] * z
  return dz, jnp.sum(share, axis=0)


_self_dense.defvjp(_self_dense_fwd, _self_dense_bwd)


# --- queries and references differ, dense ---------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_dense(options, q, r, log_v, offset):
  return _cross_dense_fwd(options, q, r, log_v, offset)[0]


def _cross_dense_fwd(options, q, r, log_v, offset):
  drop = _diagonal((q.shape[0], r.shape[0]), offset)
  log_k, slope = _log_kernel(options.kernel, q, r, drop)
  ell, e, total = _row_sums(log_k + log_v[None, :])
  return ell, (q, r, e / total[:, None], slope)


def _cross_dense_bwd(options, residual, g):
  del options
  q, r, share, slope = residual
  share = g[:, None] * share
  w = _weighted(share, slope)
  dq = _dot(w, r) - jnp.sum(w, axis=1)[:, None] * q
  dr = _dot(w.T, q) - jnp.sum(w, axis=0)[:, None] * r
  return dq, dr, jnp.sum(share, axis=0), None


_cross_dense.defvjp(_cross_dense_fwd, _cross_dense_bwd)


# --- tiles ----------------------------------------------------------------------------


def _blocks(n: int, size: int) -> tuple[int, int]:
  """``(count, rows)`` of equal blocks of at most about ``size`` rows covering n."""
  count = -(-n // size)
  rows = -(-n // count)
  if count > 1:
    rows = -(-rows // 16) * 16  # aligned products
    count = -(-n // rows)
  return count, rows


def _pad(x, rows: int, value=0.0):
  extra = rows - x.shape[0]
  if extra == 0:
    return x
  return jnp.pad(
    x,
    [(0, extra)] + [(0, 0)] * (x.ndim - 1),
    constant_values=jnp.asarray(value, x.dtype),
  )


def _rows_per_tile(nr: int, block_size: int | None) -> int:
  return block_size or max(_MIN_ROWS, _ROW_TILE_PAIRS // nr)


def _slice(x, start, rows):
  return lax.dynamic_slice_in_dim(x, start, rows)


def _columns(x, start, size):
  return lax.dynamic_slice_in_dim(x, start, size, axis=1)


def _add(x, update, start):
  """x[start : start + len(update)] += update, in place inside a loop."""
  old = _slice(x, start, update.shape[0])
  return lax.dynamic_update_slice_in_dim(x, old + update, start, 0)


def _tiled_forward(kernel, q, r, log_v, offset, block_size):
  """``ell [nq]``; ``offset`` None or an integer (array)."""
  nq, nr = q.shape[0], r.shape[0]
  count, rows = _blocks(nq, _rows_per_tile(nr, block_size))
  q = _pad(q, count * rows)

  def tile(start):
    drop = None if offset is None else _diagonal((rows, nr), start + offset)
    log_k, _ = _log_kernel(kernel, _slice(q, start, rows), r, drop)
    return _row_sums(log_k + log_v[None, :])[0]

  starts = jnp.arange(count, dtype=jnp.int32) * rows
  return lax.map(tile, starts).reshape(-1)[:nq]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _self_tiled(options, z, log_v):
  return _self_tiled_fwd(options, z, log_v)[0]


def _self_tiled_fwd(options, z, log_v):
  kernel, offset, block_size = options
  ell = _tiled_forward(kernel, z, z, log_v, offset, block_size)
  return ell, (z, log_v, ell)


def _self_tiled_bwd(options, residual, g):
  """Each unordered pair of blocks once: tile (i, j) serves (j, i) transposed."""
  kernel, offset, block_size = options
  z, log_v, ell = residual
  n, d = z.shape
  count, rows = _blocks(n, block_size or _SQUARE_TILE)
  z_pad = _pad(z, count * rows)
  log_v = _pad(log_v, count * rows, -jnp.inf)
  ell = _pad(_no_empty(ell), count * rows, jnp.inf)
  g = _pad(g, count * rows)
  i_block, j_block = np.triu_indices(count)
  z_t = z_pad.T  # a transposed copy: products with w from the left need no transpose

  def pair(state, at):
    dz, dz_t, sums, shares = state
    i, j, half = at
    start_i, start_j = i * rows, j * rows
    zi, zj = _slice(z_pad, start_i, rows), _slice(z_pad, start_j, rows)
    zi_t = _columns(z_t, start_i, rows)
    vi, vj = _slice(log_v, start_i, rows), _slice(log_v, start_j, rows)
    li, lj = _slice(ell, start_i, rows), _slice(ell, start_j, rows)
    gi, gj = _slice(g, start_i, rows), _slice(g, start_j, rows)
    drop = None
    if offset is not None:
      drop = _diagonal((rows, rows), start_i - start_j + offset)
    log_k, slope = _log_kernel(kernel, zi, zj, drop)
    to_j = gi[:, None] * jnp.exp(log_k + vj[None, :] - li[:, None])  # g_i P_ij
    to_i = gj[None, :] * jnp.exp(log_k + vi[:, None] - lj[None, :])  # g_j P_ji
    w = _weighted(to_j + to_i, slope)
    # A diagonal tile is its own transpose and would count twice. (Applied to w itself,
    # the factor keeps XLA's CPU backend from vectorising the tile: 1.8 x the time.)
    dz = _add(dz, half * _dot(w, zj), start_i)
    dz_t = lax.dynamic_update_slice_in_dim(
      dz_t, _columns(dz_t, start_j, rows) + half * _dot(zi_t, w), start_j, 1
    )
    sums = _add(sums, half * jnp.sum(w, axis=1), start_i)
    sums = _add(sums, half * jnp.sum(w, axis=0), start_j)
    if slope is not None:
      shares = _add(shares, half * jnp.sum(to_i, axis=1), start_i)
      shares = _add(shares, half * jnp.sum(to_j, axis=0), start_j)
    return (dz, dz_t, sums, shares), None

  row_zeros = jnp.zeros(count * rows, z.dtype)
  init = (
    jnp.zeros((count * rows, d), z.dtype),
    jnp.zeros((d, count * rows), z.dtype),
    row_zeros,
    row_zeros,
  )
  half = jnp.where(i_block == j_block, 0.5, 1.0).astype(z.dtype)
  pairs = (jnp.asarray(i_block, jnp.int32), jnp.asarray(j_block, jnp.int32), half)
  init = _arrays.align_varying(*init, z)[:-1]
  (dz, dz_t, sums, shares), _ = lax.scan(pair, init, pairs)
  dz = dz[:n] + dz_t[:, :n].T - sums[:n, None] * z
  if kernel.has_unit_slope:
    # Then W_ij is g_i P_ij + g_j P_ji, and the shares of a row sum to one.
    return dz, (sums - jnp.where(jnp.isposinf(ell), 0, g))[:n]
  return dz, shares[:n]


_self_tiled.defvjp(_self_tiled_fwd, _self_tiled_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_tiled(options, q, r, log_v, offset):
  return _cross_tiled_fwd(options, q, r, log_v, offset)[0]


def _cross_tiled_fwd(options, q, r, log_v, offset):
  kernel, _, block_size = options
  ell = _tiled_forward(kernel, q, r, log_v, offset, block_size)
  return ell, (q, r, log_v, offset, ell)


def _cross_tiled_bwd(options, residual, g):
  kernel, _, block_size = options
  q, r, log_v, offset, ell = residual
  nq, nr = q.shape[0], r.shape[0]
  count, rows = _blocks(nq, _rows_per_tile(nr, block_size))
  q_pad = _pad(q, count * rows)
  ell = _pad(_no_empty(ell), count * rows, jnp.inf)
  g = _pad(g, count * rows)

  def tile(state, start):
    dr_t, sums, dlog_v = state
    qi, gi = _slice(q_pad, start, rows), _slice(g, start, rows)
    li = _slice(ell, start, rows)
    drop = _diagonal((rows, nr), start + offset)
    log_k, slope = _log_kernel(kernel, qi, r, drop)
    share = gi[:, None] * jnp.exp(log_k + log_v[None, :] - li[:, None])
    w = _weighted(share, slope)
    dq = _dot(w, r) - jnp.sum(w, axis=1)[:, None] * qi
    dr_t = dr_t + _dot(qi.T, w)
    sums = sums + jnp.sum(w, axis=0)
    return (dr_t, sums, dlog_v + jnp.sum(share, axis=0)), dq

  init = (jnp.zeros_like(r.T), jnp.zeros_like(log_v), jnp.zeros_like(log_v))
  init = _arrays.align_varying(*init, r)[:-1]
  starts = jnp.arange(count, dtype=jnp.int32) * rows
  (dr_t, sums, dlog_v), dq = lax.scan(tile, init, starts)
  dr = dr_t.T - sums[:, None] * r
  return dq.reshape(-1, q.shape[1])[:nq], dr, dlog_v, None


_cross_tiled.defvjp(_cross_tiled_fwd, _cross_tiled_bwd)
