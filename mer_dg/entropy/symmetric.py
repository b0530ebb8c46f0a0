r"""Tiled log kernel sums of rows with themselves: every unordered pair visited once.

With ``ell`` and ``P`` of ``pairwise``, a tile of log kernels ``phi`` between blocks I
and J serves both directions.

* Forward: ``exp(phi - c)`` with one constant ``c``, taken from a few rows, is summed
  along rows for I and along columns for J. Rows whose sum leaves the safe range of the
  dtype (far from the bulk, or with a twin much closer than usual) are then computed
  again with their own maximum, block by block; usually there are none.
* Backward: the tile is computed again, and ``g_i P_ij + g_j P_ji`` serves both.

Value and gradient cost two products of size n x n x d in all, a straightforward
recomputation three.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mer_dg.entropy import _arrays, tiles
from mer_dg.entropy.kernels import Kernel

_SQUARE_TILE = 1024
_PILOT_ROWS = 16  # the constant of the forward pass is the middle of their ell


class Options(NamedTuple):
  """Static arguments; ``leave_out``: drop the pairs (i, i)."""

  kernel: Kernel
  leave_out: bool
  block_size: int | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def self_tiled(options: Options, z: jax.Array, log_v: jax.Array) -> jax.Array:
  """``ell [n]`` for rows ``z [n, d]`` with log weights ``log_v [n]``.

  Rows without weight get some finite number: nobody asks for their density.
  """
  return _forward(options, z, log_v)[0]


def _pairs_of_blocks(options, z):
  """Rows per block, padded row count, and the scanned (start_i, start_j, factor)."""
  n, dtype = z.shape[0], z.dtype
  count, rows = tiles.blocks(n, options.block_size or _SQUARE_TILE)
  i, j = np.triu_indices(count)
  # A diagonal tile is its own transpose and would count twice. (Applied inside the
  # tile's fusion, the factor keeps XLA's CPU backend from vectorising it: 1.8 x.)
  half = np.where(i == j, 0.5, 1.0)
  scanned = np.int32(i * rows), np.int32(j * rows), half.astype(dtype)
  # Tied to z: under a differentiated lax.map, JAX would compute whatever depends on the
  # positions alone (the masks of all tiles, n^2 bits) once, ahead of the loop.
  scanned, _ = lax.optimization_barrier((tuple(map(jnp.asarray, scanned)), z[:1]))
  return rows, count * rows, scanned


def _gap(log_v):
  """The largest log weight (0 if none is finite), taken out of all of them."""
  top = jnp.max(log_v)
  return jnp.where(jnp.isfinite(top), top, 0)


# --- forward --------------------------------------------------------------------------


def _pilot(options, z, log_v):
  """A constant near the middle of ``ell``."""
  n = z.shape[0]
  index = np.arange(0, n, max(1, n // _PILOT_ROWS))
  own = index[:, None] == np.arange(n)[None, :]
  log_k, _ = own_log_kernel(options, z[index], z, own)
  ell = tiles.row_sums(log_k + log_v[None, :])[0]
  finite = jnp.isfinite(ell)
  low = jnp.min(jnp.where(finite, ell, jnp.inf))
  high = jnp.max(jnp.where(finite, ell, -jnp.inf))
  return jnp.where(jnp.any(finite), 0.5 * (low + high), 0)


def _forward(options, z, log_v):
  n = z.shape[0]
  rows, padded, scanned = _pairs_of_blocks(options, z)
  top = _gap(log_v)
  center = _pilot(options, z, log_v - top)
  z_pad = tiles.pad(z, padded)
  v = tiles.pad(jnp.exp(log_v - top), padded)

  def pair(sums, at):
    start_i, start_j, half = at
    log_k, _ = _tile(options, z_pad, start_i, start_j, rows)
    e = jnp.exp(log_k - center)
    of_i = jnp.sum(e * tiles.take(v, start_j, rows)[None, :], axis=1)
    of_j = jnp.sum(e * tiles.take(v, start_i, rows)[:, None], axis=0)
    sums = tiles.add_to(sums, half * of_i, start_i)
    return tiles.add_to(sums, half * of_j, start_j), None

  init = _arrays.align_varying(jnp.zeros(padded, z.dtype), z, log_v)[0]
  sums = lax.scan(pair, init, scanned)[0][:n]
  info = jnp.finfo(z.dtype)
  # Above: what underflowed is below rounding even if it happened to all other rows.
  exact = (sums > n * info.tiny / info.eps) & (sums < info.max / 2)  # False for nan
  exact = exact | jnp.isneginf(log_v)
  usable = exact & (sums > 0) & (sums < jnp.inf)
  ell = jnp.where(usable, center + jnp.log(jnp.where(usable, sums, 1)), 0)
  ell = _repair(options, z, log_v - top, ell, exact) + top
  return ell, (z, log_v, ell)


def _tile(options, z, start_i, start_j, rows):
  own = tiles.diagonal((rows, rows), start_i - start_j)
  zi, zj = tiles.take(z, start_i, rows), tiles.take(z, start_j, rows)
  return own_log_kernel(options, zi, zj, own)


def own_log_kernel(options: Options, q, r, own):
  """Log kernels and slopes where ``own`` marks the pairs of a row with itself."""
  if options.leave_out:
    return tiles.log_kernel(options.kernel, q, r, drop=own)
  return tiles.log_kernel(options.kernel, q, r, same=own)


def _repair(options, z, log_v, ell, exact):
  """``ell`` with the blocks that hold a row that is not exact computed again."""
  n = z.shape[0]
  count, rows = tiles.blocks(n, tiles.rows_per_tile(n, options.block_size))
  z_pad, ell = tiles.pad(z, count * rows), tiles.pad(ell, count * rows)
  broken = jnp.any(~tiles.pad(exact, count * rows, True).reshape(count, rows), axis=1)
  order = jnp.argsort(~broken)  # broken blocks first

  def block(state):
    done, ell = state
    start = order[done] * rows
    zi, own = tiles.take(z_pad, start, rows), tiles.diagonal((rows, n), start)
    log_k, _ = own_log_kernel(options, zi, z, own)
    new = tiles.row_sums(log_k + log_v[None, :])[0]
    return done + 1, lax.dynamic_update_slice_in_dim(ell, new, start, 0)

  total = jnp.sum(broken, dtype=jnp.int32)
  start = _arrays.align_varying(jnp.zeros((), jnp.int32), ell, total)[:2]
  return lax.while_loop(lambda s: s[0] < total, block, start)[1][:n]


# --- backward -------------------------------------------------------------------------


def _backward(options, residual, g):
  z, log_v, ell = residual
  n, d = z.shape
  rows, padded, scanned = _pairs_of_blocks(options, z)
  # No kernel there, no gradient: the shares of such a row do not sum to one (below).
  g = jnp.where(jnp.isneginf(ell), 0, g)
  ell = tiles.pad(tiles.no_empty(ell), padded, jnp.inf)
  log_v = tiles.pad(log_v, padded, -jnp.inf)
  g = tiles.pad(g, padded)
  z_pad = tiles.pad(z, padded)
  z_t = z_pad.T  # a transposed copy: products with w from the left need no transpose

  def pair(state, at):
    dz, dz_t, sums, shares = state
    start_i, start_j, half = at
    (g_i, v_i, l_i), (g_j, v_j, l_j) = (
      tuple(tiles.take(x, start, rows) for x in (g, log_v, ell))
      for start in (start_i, start_j)
    )
    log_k, slope = _tile(options, z_pad, start_i, start_j, rows)
    to_j = g_i[:, None] * jnp.exp(log_k + v_j[None, :] - l_i[:, None])  # g_i P_ij
    to_i = g_j[None, :] * jnp.exp(log_k + v_i[:, None] - l_j[None, :])  # g_j P_ji
    w = tiles.weighted(to_j + to_i, slope)
    dz = tiles.add_to(
      dz, half * tiles.dot(w, tiles.take(z_pad, start_j, rows)), start_i
    )
    back = half * tiles.dot(tiles.columns(z_t, start_i, rows), w)
    back = tiles.columns(dz_t, start_j, rows) + back
    dz_t = lax.dynamic_update_slice_in_dim(dz_t, back, start_j, 1)
    sums = tiles.add_to(sums, half * jnp.sum(w, axis=1), start_i)
    sums = tiles.add_to(sums, half * jnp.sum(w, axis=0), start_j)
    if slope is not None:
      shares = tiles.add_to(shares, half * jnp.sum(to_i, axis=1), start_i)
      shares = tiles.add_to(shares, half * jnp.sum(to_j, axis=0), start_j)
    return (dz, dz_t, sums, shares), None

  zeros = functools.partial(jnp.zeros, dtype=z.dtype)
  init = (zeros((padded, d)), zeros((d, padded)), zeros(padded), zeros(padded))
  init = _arrays.align_varying(*init, z, g)[:-2]
  (dz, dz_t, sums, shares), _ = lax.scan(pair, init, scanned)
  dz = dz[:n] + dz_t[:, :n].T - sums[:n, None] * z
  if options.kernel.has_unit_slope:
    # Then W_ij is g_i P_ij + g_j P_ji, and the shares of a row sum to one.
    return dz, (sums - g)[:n]
  return dz, shares[:n]


self_tiled.defvjp(_forward, _backward)
