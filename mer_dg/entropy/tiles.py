r"""Tiled log kernel sums of rows with themselves: every unordered pair visited once.

.. math:: \ell_i = \log \sum_j \exp \phi(z_i, z_j),\qquad
          P_{ij} = \exp(\phi_{ij} - \ell_i),\qquad
          W_{ij} = (g_i P_{ij} + g_j P_{ji}) \phi'_{ij}

for incoming cotangents ``g_i``; then ``dz_i = sum_j W_ij (z_j - z_i)``. Memory never
holds more than a tile, and a tile between blocks I and J serves both directions.

* Forward: ``exp(phi - c)`` with one constant ``c``, taken from a few rows, is summed
  along rows for I and along columns for J. Rows whose sum leaves the safe range of the
  dtype (far from the bulk, or with a twin much closer than usual) are then computed
  again with their own maximum, block by block; usually there are none.
* Backward: the tile is computed again, one product per pair, which is cheaper than
  storing n^2 numbers.

Value and gradient cost two products of size n x n x d in all, a straightforward
recomputation three.
"""

from __future__ import annotations

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mer_dg.entropy import _arrays
from mer_dg.entropy.kernels import Kernel

TILE = 1024  # rows of a square tile
_ROW_TILE_PAIRS = 2**20  # pairs of a tile with all n columns
_PILOT_ROWS = 16  # the constant of the forward pass is the middle of their ell


def own_log_sums(
  kernel: Kernel, leave_one_out: bool, z: jax.Array, where: jax.Array | None
) -> jax.Array:
  """As ``pairwise.log_kernel_sums``, for rows with themselves."""
  v = jnp.ones(z.shape[0], z.dtype) if where is None else where.astype(z.dtype)
  z, v = _arrays.align_varying(z, v)
  return _own_log_sums(kernel, leave_one_out, z, v)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _own_log_sums(kernel, leave_one_out, z, v):
  return _forward(kernel, leave_one_out, z, v)[0]


# --- pieces ---------------------------------------------------------------------------


def dot(a, b):
  # |a - b|^2 cancels: TF32 or bf16 products destroy it
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def blocks(n: int, size: int) -> tuple[int, int]:
  """``(count, rows)`` of equal blocks of at most about ``size`` rows covering n."""
  count = -(-n // size)
  rows = -(-n // count)
  if count > 1:
    rows = -(-rows // 16) * 16  # aligned products
    count = -(-n // rows)
  return count, rows


def pad(x, rows: int, value=0.0):
  extra = [(0, rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
  return jnp.pad(x, extra, constant_values=jnp.asarray(value, x.dtype))


def _take(x, start, rows):
  return lax.dynamic_slice_in_dim(x, start, rows)


def _columns(x, start, size):
  return lax.dynamic_slice_in_dim(x, start, size, axis=1)


def _add_to(x, update, start):
  """x[start : start + len(update)] += update, in place inside a loop."""
  old = _take(x, start, update.shape[0])
  return lax.dynamic_update_slice_in_dim(x, old + update, start, 0)


def _tile(kernel, leave_one_out, q, r, offset):
  """Log kernels between rows, and their slopes; row i of q is row i + offset of r."""
  d = q.shape[1]
  half_q, half_r = 0.5 * jnp.sum(q**2, 1), 0.5 * jnp.sum(r**2, 1)
  half = jnp.minimum(dot(q, r.T) - half_q[:, None] - half_r[None, :], 0)
  rows = lax.broadcasted_iota(jnp.int32, half.shape, 0)
  own = lax.broadcasted_iota(jnp.int32, half.shape, 1) == rows + offset
  half = jnp.where(own, 0, half)
  log_k = kernel.log_profile(half, d)
  if leave_one_out:
    log_k = jnp.where(own, -jnp.inf, log_k)
  return log_k, kernel.slope(half, d)


def _square_tiles(z):
  """Rows per block, padded row count, and the scanned (start_i, start_j, factor)."""
  count, rows = blocks(z.shape[0], TILE)
  i, j = np.triu_indices(count)
  # A diagonal tile is its own transpose and would count twice. (Applied inside the
  # tile's fusion, the factor keeps XLA's CPU backend from vectorising it: 1.8 x.)
  half = np.where(i == j, 0.5, 1.0)
  scanned = np.int32(i * rows), np.int32(j * rows), half.astype(z.dtype)
  # Tied to z: under a differentiated lax.map, JAX would compute whatever depends on the
  # positions alone (the masks of all tiles, n^2 bits) once, ahead of the loop.
  scanned, _ = lax.optimization_barrier((tuple(map(jnp.asarray, scanned)), z[:1]))
  return rows, count * rows, scanned


def _row_sums(log_k, v):
  """``log sum_j v_j exp(log_k_ij)``, with -inf for empty rows."""
  log_k = jnp.where(v[None, :] > 0, log_k, -jnp.inf)
  peak = jnp.max(log_k, axis=1)
  peak = jnp.where(jnp.isneginf(peak), 0, peak)
  return peak + jnp.log(jnp.sum(jnp.exp(log_k - peak[:, None]), axis=1))


# --- forward --------------------------------------------------------------------------


def _pilot(kernel, z, v):
  """A constant near the middle of ``ell``."""
  n = z.shape[0]
  rows = z[:: max(1, n // _PILOT_ROWS)]
  log_k, _ = _tile(kernel, False, rows, z, n)  # no row is another: n is out of reach
  at = jnp.arange(0, n, max(1, n // _PILOT_ROWS))
  own = at[:, None] == jnp.arange(n)[None, :]
  ell = _row_sums(jnp.where(own, -jnp.inf, log_k), v)
  finite = jnp.isfinite(ell)
  low = jnp.min(jnp.where(finite, ell, jnp.inf))
  high = jnp.max(jnp.where(finite, ell, -jnp.inf))
  return jnp.where(jnp.any(finite), 0.5 * (low + high), 0)


def _forward(kernel, leave_one_out, z, v):
  n = z.shape[0]
  rows, padded, scanned = _square_tiles(z)
  center = _pilot(kernel, z, v)
  z_pad, v_pad = pad(z, padded), pad(v, padded)

  def pair(sums, at):
    i, j, half = at
    log_k, _ = _tile(
      kernel, leave_one_out, _take(z_pad, i, rows), _take(z_pad, j, rows), i - j
    )
    e = jnp.exp(log_k - center)
    of_i = jnp.sum(e * _take(v_pad, j, rows)[None, :], axis=1)
    of_j = jnp.sum(e * _take(v_pad, i, rows)[:, None], axis=0)
    sums = _add_to(sums, half * of_i, i)
    return _add_to(sums, half * of_j, j), None

  init = _arrays.align_varying(jnp.zeros(padded, z.dtype), z)[0]
  sums = lax.scan(pair, init, scanned)[0][:n]
  info = jnp.finfo(z.dtype)
  # Above: what underflowed is below rounding even if it happened to all other rows.
  exact = (sums > n * info.tiny / info.eps) & (sums < info.max / 2)  # False for nan
  ell = center + jnp.log(jnp.where(exact, sums, 1))
  ell = _repair(kernel, leave_one_out, z, v, ell, exact | (v == 0))
  return ell, (z, v, ell)


def _repair(kernel, leave_one_out, z, v, ell, exact):
  """``ell`` with the blocks that hold a row that is not exact computed again."""
  n = z.shape[0]
  count, rows = blocks(n, min(n, max(TILE // 8, _ROW_TILE_PAIRS // n)))
  z_pad, ell = pad(z, count * rows), pad(ell, count * rows)
  broken = jnp.any(~pad(exact, count * rows, True).reshape(count, rows), axis=1)
  order = jnp.argsort(~broken)  # broken blocks first

  def block(state):
    done, ell = state
    i = order[done] * rows
    log_k, _ = _tile(kernel, leave_one_out, _take(z_pad, i, rows), z, i)
    return done + 1, lax.dynamic_update_slice_in_dim(ell, _row_sums(log_k, v), i, 0)

  total = jnp.sum(broken, dtype=jnp.int32)
  start = _arrays.align_varying(jnp.zeros((), jnp.int32), ell, total)[:2]
  return lax.while_loop(lambda s: s[0] < total, block, start)[1][:n]


# --- backward -------------------------------------------------------------------------


def _backward(kernel, leave_one_out, residual, g):
  z, v, ell = residual
  n, d = z.shape
  rows, padded, scanned = _square_tiles(z)
  # exp(phi - inf) = 0: no gradient from rows that see nobody, are masked, or padding.
  ell = pad(jnp.where(jnp.isneginf(ell) | (v == 0), jnp.inf, ell), padded, jnp.inf)
  g, v = pad(g, padded), pad(v, padded)
  z_pad = pad(z, padded)
  z_t = z_pad.T  # a transposed copy: products with w from the left need no transpose

  def pair(state, at):
    dz, dz_t, sums = state
    i, j, half = at
    z_i, z_j = _take(z_pad, i, rows), _take(z_pad, j, rows)
    (g_i, v_i, l_i), (g_j, v_j, l_j) = (
      tuple(_take(x, start, rows) for x in (g, v, ell)) for start in (i, j)
    )
    log_k, slope = _tile(kernel, leave_one_out, z_i, z_j, i - j)
    to_j = g_i[:, None] * v_j[None, :] * jnp.exp(log_k - l_i[:, None])  # g_i P_ij
    to_i = g_j[None, :] * v_i[:, None] * jnp.exp(log_k - l_j[None, :])  # g_j P_ji
    w = (to_j + to_i) * slope
    dz = _add_to(dz, half * dot(w, z_j), i)
    back = _columns(dz_t, j, rows) + half * dot(_columns(z_t, i, rows), w)
    dz_t = lax.dynamic_update_slice_in_dim(dz_t, back, j, 1)
    sums = _add_to(sums, half * jnp.sum(w, axis=1), i)
    return (dz, dz_t, _add_to(sums, half * jnp.sum(w, axis=0), j)), None

  zeros = functools.partial(jnp.zeros, dtype=z.dtype)
  init = (zeros((padded, d)), zeros((d, padded)), zeros(padded))
  init = _arrays.align_varying(*init, z, g)[:-2]
  (dz, dz_t, sums), _ = lax.scan(pair, init, scanned)
  return dz[:n] + dz_t[:, :n].T - sums[:n, None] * z, jnp.zeros_like(v[:n])


_own_log_sums.defvjp(_forward, _backward)
