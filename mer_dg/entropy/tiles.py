"""Pieces of pairwise computations: one tile, cutting rows into blocks, writing back."""

from __future__ import annotations

from jax import lax
import jax.numpy as jnp

from mer_dg.entropy.kernels import Kernel

HIGHEST = lax.Precision.HIGHEST  # |a - b|^2 cancels: TF32 or bf16 products destroy it

# Pairs per tile where whole rows of references are taken; a tile and its exponentials
# should stay in cache.
_ROW_TILE_PAIRS = 2**20
_MIN_ROWS = 128


def dot(a, b):
  return jnp.matmul(a, b, precision=HIGHEST)


def log_kernel(kernel: Kernel, q, r, drop=None, same=None):
  """Log profile and slope (None: 1) for a tile.

  ``drop``: where pairs are left out; ``same``: where both are one row (distance 0,
  which rounding would miss).
  """
  d = q.shape[1]
  half_q, half_r = 0.5 * jnp.sum(q**2, 1), 0.5 * jnp.sum(r**2, 1)
  # minus half the squared distance; rounding must not make it positive
  half = jnp.minimum(dot(q, r.T) - half_q[:, None] - half_r[None, :], 0)
  if same is not None:
    half = jnp.where(same & ~jnp.isnan(half_q)[:, None], 0, half)  # nan stays nan
  if kernel.has_unit_slope:
    log_k, slope = half, None
  else:
    log_k, slope = kernel.log_profile(-2 * half, d), kernel.slope(-2 * half, d)
  if drop is not None:
    log_k = jnp.where(drop, -jnp.inf, log_k)
  return log_k, slope


def diagonal(shape, offset):
  """True where column = row + offset."""
  rows = lax.broadcasted_iota(jnp.int32, shape, 0)
  return lax.broadcasted_iota(jnp.int32, shape, 1) == rows + offset


def row_sums(log_k):
  """``(ell, exp(log_k - peak), total)``, with ell = -inf for empty rows."""
  peak = jnp.max(log_k, axis=1)
  peak = jnp.where(jnp.isneginf(peak), 0, peak)
  e = jnp.exp(log_k - peak[:, None])
  total = jnp.sum(e, axis=1)
  empty = total == 0
  ell = jnp.where(empty, -jnp.inf, peak + jnp.log(jnp.where(empty, 1, total)))
  return ell, e, jnp.where(empty, 1, total)


def no_empty(ell):
  """Rows without any kernel get share exp(. - inf) = 0, hence no gradient."""
  return jnp.where(jnp.isneginf(ell), jnp.inf, ell)


def weighted(share, slope):
  return share if slope is None else share * slope


def blocks(n: int, size: int) -> tuple[int, int]:
  """``(count, rows)`` of equal blocks of at most about ``size`` rows covering n."""
  count = -(-n // size)
  rows = -(-n // count)
  if count > 1:
    rows = -(-rows // 16) * 16  # aligned products
    count = -(-n // rows)
  return count, rows


def pad(x, rows: int, value=0.0):
  extra = rows - x.shape[0]
  if extra == 0:
    return x
  return jnp.pad(
    x,
    [(0, extra)] + [(0, 0)] * (x.ndim - 1),
    constant_values=jnp.asarray(value, x.dtype),
  )


def rows_per_tile(nr: int, block_size: int | None) -> int:
  return block_size or max(_MIN_ROWS, _ROW_TILE_PAIRS // nr)


def take(x, start, rows):
  return lax.dynamic_slice_in_dim(x, start, rows)


def columns(x, start, size):
  return lax.dynamic_slice_in_dim(x, start, size, axis=1)


def add_to(x, update, start):
  """x[start : start + len(update)] += update, in place inside a loop."""
  old = take(x, start, update.shape[0])
  return lax.dynamic_update_slice_in_dim(x, old + update, start, 0)


def tiled_forward(kernel, q, r, log_v, offset, block_size):
  """``ell [nq]``; ``offset`` None or an integer (array)."""
  nq, nr = q.shape[0], r.shape[0]
  count, rows = blocks(nq, rows_per_tile(nr, block_size))
  q = pad(q, count * rows)

  def tile(start):
    drop = None if offset is None else diagonal((rows, nr), start + offset)
    log_k, _ = log_kernel(kernel, take(q, start, rows), r, drop)
    return row_sums(log_k + log_v[None, :])[0]

  starts = jnp.arange(count, dtype=jnp.int32) * rows
  return lax.map(tile, starts).reshape(-1)[:nq]
