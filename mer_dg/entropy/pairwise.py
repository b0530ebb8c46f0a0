r"""Log kernel sums with a hand-derived gradient: the inner loop of the KDE family.

.. math:: \ell_i = \log \sum_j v_j \exp \phi(|q_i - r_j|^2),\qquad
          P_{ij} = v_j \exp(\phi_{ij} - \ell_i),\qquad W_{ij} = -2 g_i P_{ij} \phi'_{ij}

for incoming cotangents ``g_i``; then ``dq_i = sum_j W_ij (r_j - q_i)`` and ``dr_j =
sum_i W_ij (q_i - r_j)``. Small problems are one tile, and P is kept for the backward
pass. Large ones never hold more than a tile: the forward pass goes over blocks of
queries, and the backward pass computes the kernel again (one product of length d per
pair, cheaper than storing n^2 numbers). When queries and references are the same rows,
both passes visit each unordered pair of blocks once (``symmetric``).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.entropy import _arrays, symmetric, tiles
from mer_dg.entropy.kernels import Kernel

# Pairs up to which one tile is used and kept: 4 MiB in float32.
DENSE_PAIRS = 2**20


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
    log_v: ``[nr]``, ``-inf`` for references that do not count. Where q is r, such rows
      are no queries either: their ``ell`` is unspecified.
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
  if q is r and (self_offset is None or _is_zero(self_offset)):
    q, log_v = _arrays.align_varying(q, log_v)
    options = symmetric.Options(kernel, self_offset is not None, block_size)
    return (_self_dense if dense else symmetric.self_tiled)(options, q, log_v)
  options = _Options(kernel, block_size)
  if self_offset is None:
    self_offset = nr + nq  # matches no column
  self_offset = jnp.asarray(self_offset, jnp.int32)
  q, r, log_v, self_offset = _arrays.align_varying(q, r, log_v, self_offset)
  return (_cross_dense if dense else _cross_tiled)(options, q, r, log_v, self_offset)


class _Options(NamedTuple):
  """Static arguments of the differentiated functions."""

  kernel: Kernel
  block_size: int | None


def _is_zero(offset) -> bool:
  return isinstance(offset, int) and offset == 0


# --- one tile -------------------------------------------------------------------------


# --- queries are the references, dense ------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _self_dense(options, z, log_v):
  return _self_dense_fwd(options, z, log_v)[0]


def _self_dense_fwd(options, z, log_v):
  n = z.shape[0]
  log_k, slope = symmetric.own_log_kernel(options, z, z, tiles.diagonal((n, n), 0))
  ell, e, total = tiles.row_sums(log_k + log_v[None, :])
  share = e / total[:, None]
  return ell, (z, share, slope)


def _self_dense_bwd(options, residual, g):
  del options
  z, share, slope = residual
  share = g[:, None] * share
  w = tiles.weighted(share, slope)
  w = w + w.T
  dz = tiles.dot(w, z) - jnp.sum(w, axis=1)[:, None] * z
  return dz, jnp.sum(share, axis=0)


_self_dense.defvjp(_self_dense_fwd, _self_dense_bwd)


# --- queries and references differ, dense ---------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_dense(options, q, r, log_v, offset):
  return _cross_dense_fwd(options, q, r, log_v, offset)[0]


def _cross_dense_fwd(options, q, r, log_v, offset):
  drop = tiles.diagonal((q.shape[0], r.shape[0]), offset)
  log_k, slope = tiles.log_kernel(options.kernel, q, r, drop)
  ell, e, total = tiles.row_sums(log_k + log_v[None, :])
  return ell, (q, r, e / total[:, None], slope)


def _cross_dense_bwd(options, residual, g):
  del options
  q, r, share, slope = residual
  share = g[:, None] * share
  w = tiles.weighted(share, slope)
  dq = tiles.dot(w, r) - jnp.sum(w, axis=1)[:, None] * q
  dr = tiles.dot(w.T, q) - jnp.sum(w, axis=0)[:, None] * r
  return dq, dr, jnp.sum(share, axis=0), None


_cross_dense.defvjp(_cross_dense_fwd, _cross_dense_bwd)


# --- queries and references differ, tiles ---------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_tiled(options, q, r, log_v, offset):
  return _cross_tiled_fwd(options, q, r, log_v, offset)[0]


def _cross_tiled_fwd(options, q, r, log_v, offset):
  kernel, block_size = options
  ell = tiles.tiled_forward(kernel, q, r, log_v, offset, block_size)
  return ell, (q, r, log_v, offset, ell)


def _cross_tiled_bwd(options, residual, g):
  kernel, block_size = options
  q, r, log_v, offset, ell = residual
  nq, nr = q.shape[0], r.shape[0]
  count, rows = tiles.blocks(nq, tiles.rows_per_tile(nr, block_size))
  q_pad = tiles.pad(q, count * rows)
  ell = tiles.pad(tiles.no_empty(ell), count * rows, jnp.inf)
  g = tiles.pad(g, count * rows)

  def tile(state, start):
    dr_t, sums, dlog_v = state
    qi, gi = tiles.take(q_pad, start, rows), tiles.take(g, start, rows)
    li = tiles.take(ell, start, rows)
    drop = tiles.diagonal((rows, nr), start + offset)
    log_k, slope = tiles.log_kernel(kernel, qi, r, drop)
    share = gi[:, None] * jnp.exp(log_k + log_v[None, :] - li[:, None])
    w = tiles.weighted(share, slope)
    dq = tiles.dot(w, r) - jnp.sum(w, axis=1)[:, None] * qi
    dr_t = dr_t + tiles.dot(qi.T, w)
    sums = sums + jnp.sum(w, axis=0)
    return (dr_t, sums, dlog_v + jnp.sum(share, axis=0)), dq

  init = (jnp.zeros_like(r.T), jnp.zeros_like(log_v), jnp.zeros_like(log_v))
  init = _arrays.align_varying(*init, r)[:-1]
  starts = jnp.arange(count, dtype=jnp.int32) * rows
  (dr_t, sums, dlog_v), dq = lax.scan(tile, init, starts)
  dr = dr_t.T - sums[:, None] * r
  return dq.reshape(-1, q.shape[1])[:nq], dr, dlog_v, None


_cross_tiled.defvjp(_cross_tiled_fwd, _cross_tiled_bwd)
