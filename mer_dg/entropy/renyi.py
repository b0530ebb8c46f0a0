"""Renyi entropies: kernel resubstitution and matrix-based."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mer_dg.entropy import _arrays, tiles
from mer_dg.entropy.bandwidth import check_bandwidth
from mer_dg.entropy.kde import scaled_rows
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
  bandwidth_gradient: bool = False,
  dense: bool | None = None,
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
  For alpha = 2 it is a mean over pairs. Any other order needs the eigenvalues of A,
  hence n x n memory and n^3 time: these kernels have infinitely many features, so there
  is no smaller dual matrix (``von_neumann_entropy`` is that dual for the linear
  kernel).

  Args:
    z: Samples ``[..., n, d]``, floating.
    alpha: Order, > 0; a Python number (static: it chooses the formula).
    bandwidth: As in ``kde_entropy``.
    where: Boolean ``[..., n]``.
    form: ``"kernel"`` or ``"matrix"``.
    kernel: As in ``kde_entropy``; the matrix form is defined for ``"gaussian"`` and
      ``"vmf"``.
    leave_one_out: Leave pairs (i, i) out (``form="kernel"`` only).
    bandwidth_gradient: As in ``kde_entropy``.
    dense: As in ``kde_entropy``.

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
  kernel = get_kernel(kernel)
  _arrays.check_choice("form", form, FORMS)
  if isinstance(alpha, jax.core.Tracer) or not float(alpha) > 0:
    raise ValueError(f"alpha must be a static number > 0, got {alpha}.")
  check_bandwidth(bandwidth)
  if form == "matrix":
    _arrays.check_choice("kernel", kernel.name, ("gaussian", "vmf"))

  def one(z, where):
    u, _, log_normalizer = scaled_rows(
      z, where, bandwidth, kernel, gradient=bandwidth_gradient
    )
    if form == "matrix":
      return _matrix(u, where, alpha, kernel, dense)
    ell = log_kernel_sums(
      u, where, kernel=kernel, leave_one_out=leave_one_out, dense=dense
    )
    seen = _arrays.row_count(z, where) - leave_one_out
    ell = jnp.where(seen > 0, ell, 0)
    log_scale = log_normalizer - jnp.log(jnp.maximum(seen, 1))
    if alpha == 1:
      return -_arrays.row_mean(ell, where) - log_scale
    return _log_mean_exp((alpha - 1) * ell, where) / (1 - alpha) - log_scale

  least = 2 if leave_one_out and form == "kernel" else 1
  return _arrays.estimate(one, z, where, min_rows=least)


def _log_mean_exp(x, where):
  """Over valid entries; some finite number where there is none."""
  count = _arrays.row_count(x, where)
  if where is not None:
    x = jnp.where(where | (count == 0), x, -jnp.inf)
  return jax.nn.logsumexp(x) - jnp.log(jnp.maximum(count, 1))


def _matrix(u, where, alpha, kernel: Kernel, dense):
  if alpha == 2:
    # tr(A^2) is a mean over pairs of the squared kernel, which is the kernel again,
    # narrower: no matrix is needed.
    ell = log_kernel_sums(
      2**0.5 * u, where, kernel=kernel, leave_one_out=False, dense=dense
    )
    ell = jnp.where(_arrays.row_count(u, where) > 0, ell, 0)
    log_n = jnp.log(jnp.maximum(_arrays.row_count(u, where), 1))
    return log_n - _log_mean_exp(ell, where)
  norm = jnp.sum(u**2, axis=1)
  sq = jnp.maximum(norm[:, None] + norm[None, :] - 2 * tiles.dot(u, u.T), 0)
  sq = jnp.where(jnp.eye(len(u), dtype=bool), 0, sq)
  a = jnp.exp(-0.5 * sq) / jnp.maximum(_arrays.row_count(u, where), 1)
  if where is not None:
    a = jnp.where(where[:, None] & where[None, :], a, 0)
  return spectrum_entropy(jnp.linalg.eigvalsh(a), alpha)


def spectrum_entropy(eigenvalues: jax.Array, alpha=1.0) -> jax.Array:
  """Renyi (Shannon for alpha = 1) entropy of eigenvalues that sum to one."""
  # nan counts as positive, so that it shows in the sum
  positive = ~(eigenvalues <= jnp.finfo(eigenvalues.dtype).eps)
  safe = jnp.where(positive, eigenvalues, 1)
  if alpha == 1:
    return -jnp.sum(jnp.where(positive, safe * jnp.log(safe), 0))
  total = jnp.sum(jnp.where(positive, safe**alpha, 0))
  return jnp.log(jnp.where(total == 0, 1, total)) / (1 - alpha)
