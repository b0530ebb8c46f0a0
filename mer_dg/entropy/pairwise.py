r"""Log kernel sums, the inner loop of the KDE family:

.. math:: \ell_i = \log \sum_j K(z_i - z_j)

Up to ``DENSE_PAIRS`` pairs this is a page that reads like its formula: n x n numbers
and automatic differentiation. Beyond that, tiles: see ``tiles``.
"""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.entropy import _arrays, tiles
from mer_dg.entropy.kernels import Kernel

# The one switch: 1,024 rows. Above, n x n numbers leave the cache, and the dense form
# takes 1.9 times as long as tiles at 4,096 rows (2 cores).
DENSE_PAIRS = 2**20


def log_kernel_sums(
  z: jax.Array,
  where: jax.Array | None,
  *,
  kernel: Kernel,
  leave_one_out: bool,
  memory: jax.Array | None = None,
  memory_where: jax.Array | None = None,
  dense: bool | None = None,
) -> jax.Array:
  """``ell [n]`` over the valid rows of ``z`` and of ``memory``.

  Args:
    z: ``[n, d]`` in units of the bandwidth.
    where: Mask ``[n]`` or None. ``ell`` of a masked row is some number.
    kernel: The kernel.
    leave_one_out: Leave the pair (i, i) out.
    memory: Further rows ``[m, d]``, constants for the gradient.
    memory_where: Mask ``[m]`` or None.
    dense: None goes by size.
  """
  n = z.shape[0]
  if dense is None:
    dense = n * n <= DENSE_PAIRS
  own = _own if dense else tiles.own_log_sums
  ell = own(kernel, leave_one_out, z, where)
  if memory is not None:
    other = _other(kernel, z, lax.stop_gradient(memory), memory_where)
    ell = jnp.logaddexp(ell, other)
  return ell


def _own(kernel, leave_one_out, z, where):
  n, d = z.shape
  diagonal = jnp.eye(n, dtype=bool)
  # -|z_i - z_j|^2 / 2; on the diagonal rounding would miss 0
  half = jnp.where(diagonal, 0, _half_squares(z))
  dropped = diagonal if leave_one_out else None
  return _log_sums(kernel.log_profile(half, d), where, dropped)


def _other(kernel, z, memory, where):
  n, d = z.shape

  def block(z):
    half = -0.5 * jnp.sum(z**2, axis=1)[:, None] - 0.5 * jnp.sum(memory**2, 1)[None, :]
    half = jnp.minimum(half + tiles.dot(z, memory.T), 0)
    return _log_sums(kernel.log_profile(half, d), where)

  rows = max(1, DENSE_PAIRS // memory.shape[0])
  if n <= rows:
    return block(z)
  count, rows = tiles.blocks(n, rows)
  blocks = tiles.pad(z, count * rows).reshape(count, rows, d)
  return lax.map(jax.checkpoint(block), blocks).reshape(-1)[:n]


def _log_sums(log_k, where, dropped=None):
  """Row-wise ``logsumexp`` of what counts; -inf with gradient 0 where nothing does."""
  if where is not None:
    masked = ~where[None, :]
    dropped = masked if dropped is None else dropped | masked
  if dropped is not None:
    log_k = jnp.where(dropped, -jnp.inf, log_k)
  peak = lax.stop_gradient(jnp.max(log_k, axis=1))
  peak = jnp.where(jnp.isneginf(peak), 0, peak)
  return peak + _arrays.safe_log(jnp.sum(jnp.exp(log_k - peak[:, None]), axis=1))


@jax.custom_vjp
def _half_squares(z):
  """``-|z_i - z_j|^2 / 2``, ``[n, n]``, rounding errors above 0 cut off."""
  half = 0.5 * jnp.sum(z**2, axis=1)
  return jnp.minimum(tiles.dot(z, z.T) - half[:, None] - half[None, :], 0)


def _half_squares_bwd(z, g):
  # Both arguments are z: one product for both, where autodiff would take two.
  w = g + g.T
  return (tiles.dot(w, z) - jnp.sum(w, axis=1)[:, None] * z,)


_half_squares.defvjp(lambda z: (_half_squares(z), z), _half_squares_bwd)
