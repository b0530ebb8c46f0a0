"""Renyi entropies: kernel resubstitution and matrix-based."""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.entropy import _arrays
from mer_dg.entropy import bandwidth as _bandwidth
from mer_dg.entropy import kde as _kde
from mer_dg.entropy.kernels import Kernel, get_kernel
from mer_dg.entropy.pairwise import log_kernel_sums

FORMS = ("kernel", "matrix")


def renyi_entropy(
  z: jax.Array,
  *,
  alpha=2.0,
  bandwidth="scott",
  where: jax.Array | None = None,
  form: str = "kernel",
  kernel: str | Kernel = "gaussian",
  leave_one_out: bool = True,
  block_size: int | None = None,
  bandwidth_gradient: bool = False,
) -> jax.Array:
  r"""Renyi entropy of order alpha, in nats.

  ``form="kernel"``, differential entropy of the density, by resubstitution:

  .. math:: \hat H_\alpha = \tfrac1{1-\alpha} \log \tfrac1n
            \sum_i \hat p(z_i)^{\alpha-1}

  For alpha = 2 this is minus the log of the *information potential*, the mean kernel
  over pairs; it tends to ``kde_entropy`` as alpha tends to 1. With ``kernel="vmf"``,
  alpha = 2 and ``bandwidth = (2 t)**-0.5`` it equals minus the uniformity loss of Wang
  & Isola with parameter t, up to the kernel's log normaliser.

  ``form="matrix"``, a discrete entropy of the rows seen through the kernel, in
  [0, log n]: :math:`\tfrac1{1-\alpha}\log \mathrm{tr}(A^\alpha)` with
  :math:`A_{ij} = K(z_i - z_j) / (n K(0))`; alpha = 1 is the von Neumann entropy of A.
  For alpha = 2 it is a mean over pairs, computed in tiles. Any other order needs the
  eigenvalues of A, hence n x n memory and n^3 time: these kernels have infinitely many
  features, so there is no smaller dual matrix (``von_neumann_entropy`` is that dual for
  the linear kernel).

  Args:
    z: Samples ``[..., n, d]``, floating.
    alpha: Order, > 0; a Python number (static: it chooses the formula).
    bandwidth: As in ``kde_entropy``.
    where: Boolean ``[..., n]``. Rows split over devices: ``gather_rows`` first.
    form: ``"kernel"`` or ``"matrix"``.
    kernel: As in ``kde_entropy``; the matrix form is defined for ``"gaussian"``,
      ``"laplace"`` and ``"vmf"`` (positive definite).
    leave_one_out: Leave pairs (i, i) out (``form="kernel"`` only).
    block_size: As in ``kde_entropy``.
    bandwidth_gradient: As in ``kde_entropy``.

  Returns:
    Nats, ``[...]``. 0 below two valid rows (left out) or no valid row.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: For a wrong shape, ``alpha <= 0``, unknown form, kernel or bandwidth.

  References:
    Principe, Information Theoretic Learning, 2010, eq. 2.13 (there with kernel width
    ``sqrt(2) h``); Sanchez Giraldo, Rao & Principe 2015, eq. 17 (there in bits).

  Example:
    >>> z = jnp.array([[0.0], [2.0]])
    >>> print(f"{renyi_entropy(z, bandwidth=1.0):.4f}")
    2.9189
  """
  z = _arrays.check_samples("z", z)
  where = _arrays.check_where(where, z)
  kernel = get_kernel(kernel)
  _arrays.check_choice("form", form, FORMS)
  if isinstance(alpha, jax.core.Tracer) or not float(alpha) > 0:
    raise ValueError(f"alpha must be a static number > 0, got {alpha}.")
  _bandwidth.check_bandwidth(bandwidth, z.shape[-1])
  _kde._check_sphere_bandwidth(kernel, bandwidth)
  _arrays.check_block_size(block_size)
  if form == "matrix":
    _arrays.check_choice("kernel", kernel.name, ("gaussian", "laplace", "vmf"))

  def one(z, where):
    z = _kde._prepare(z, where, kernel)
    v = _arrays.row_weights(z, where)
    center = _arrays.robust_center(z, where)
    h = _bandwidth.resolve_bandwidth(
      bandwidth, z, v, center=center, gradient=bandwidth_gradient
    )
    count = jnp.sum(v)
    poison = lax.stop_gradient(_arrays.nan_if_nan(z))
    if form == "matrix":
      value = _matrix(z, v, h, alpha, kernel, center, block_size)
      return jnp.where(count >= 1, value, 0) + poison
    log_p = _kde._log_density(
      z,
      z,
      v,
      h,
      kernel=kernel,
      center=center,
      self_offset=0 if leave_one_out else None,
      block_size=block_size,
    )
    enough = count >= (2 if leave_one_out else 1)
    safe_count = jnp.where(count > 0, count, 1)
    if alpha == 1:
      value = -jnp.sum(jnp.where(v > 0, log_p, 0)) / safe_count
    else:
      powered = jnp.where(v > 0, (alpha - 1) * log_p, -jnp.inf)
      powered = jnp.where(enough, powered, 0)
      value = (jax.nn.logsumexp(powered) - jnp.log(safe_count)) / (1 - alpha)
    return jnp.where(enough, value, 0) + poison

  return _arrays.over_batch(one, z, where)


def _matrix(z, v, h, alpha, kernel: Kernel, center, block_size):
  d = z.shape[1]
  scale = 1 / (h if h.ndim == 0 else h[None, :])
  u = jnp.where((v > 0)[:, None], (z - center[None, :]) * scale, 0)
  if alpha == 2:
    # tr(A^2) is a mean over pairs of the squared kernel, which is the kernel again,
    # narrower: no matrix is needed.
    u = u * (2 if kernel.name == "laplace" else 2**0.5)
    ell = log_kernel_sums(
      u, u, _arrays.safe_log(v), kernel=kernel, block_size=block_size
    )
    ell = jnp.where(v > 0, ell, -jnp.inf)
    some = jnp.any(v > 0)
    mean_log = jax.nn.logsumexp(jnp.where(some, ell, 0))
    return 2 * jnp.log(jnp.maximum(jnp.sum(v), 1)) - mean_log
  norm = jnp.sum(u**2, axis=1)
  gram = jnp.matmul(u, u.T, precision=lax.Precision.HIGHEST)
  sq = jnp.maximum(norm[:, None] + norm[None, :] - 2 * gram, 0)
  sq = jnp.where(jnp.eye(z.shape[0], dtype=bool), 0, sq)
  a = jnp.exp(kernel.log_profile(sq, d)) * v[:, None] * v[None, :]
  a = a / jnp.maximum(jnp.sum(v), 1)
  eigenvalues = jnp.linalg.eigvalsh(a)
  return spectrum_entropy(eigenvalues, alpha)


def spectrum_entropy(eigenvalues: jax.Array, alpha=1.0) -> jax.Array:
  """Renyi (Shannon for alpha = 1) entropy of eigenvalues that sum to one."""
  # nan counts as positive, so that it shows in the sum
  positive = ~(eigenvalues <= jnp.finfo(eigenvalues.dtype).eps)
  safe = jnp.where(positive, eigenvalues, 1)
  if alpha == 1:
    return -jnp.sum(jnp.where(positive, safe * jnp.log(safe), 0))
  total = jnp.sum(jnp.where(positive, safe**alpha, 0))
  return jnp.log(jnp.where(total == 0, 1, total)) / (1 - alpha)
