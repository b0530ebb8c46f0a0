"""Kernel density estimates of entropy, and bounds on the entropy of mixtures."""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.contracts import cut_off, square_limit
from mer_dg.entropy import _arrays
from mer_dg.entropy.bandwidth import check_bandwidth, scaled_by_rule
from mer_dg.entropy.kernels import Kernel, get_kernel
from mer_dg.entropy.pairwise import log_kernel_sums
from mer_dg.entropy.sphere import sphere_log_area, unit_sphere


def scaled_rows(
  z, where, bandwidth, kernel: Kernel, *, gradient=False, memory=None, memory_where=None
):
  """Rows around their centre in bandwidths, and the log normaliser of the kernel.

  Returns:
    ``(u [n, d], memory [m, d] or None, log_normalizer)``.
  """
  n, d = z.shape
  if memory is not None:
    # One scale and one centre for both.
    every = lambda rows, mask: jnp.ones(len(rows), bool) if mask is None else mask
    where = jnp.concatenate([every(z, where), every(memory, memory_where)])
    memory = _arrays.drop_rows(lax.stop_gradient(memory), memory_where)
    z = jnp.concatenate([z, memory.astype(z.dtype)])
  # On the sphere rounding hides what is closer than this; elsewhere squares vanish.
  smallest = 1e-6 if kernel.on_sphere else float(jnp.finfo(z.dtype).tiny) ** 0.5
  if kernel.on_sphere:
    z = unit_sphere(z)
  if isinstance(bandwidth, str):
    x, h, unit = scaled_by_rule(
      bandwidth, z, where, smallest=smallest, on_sphere=kernel.on_sphere
    )
    h = h if gradient else lax.stop_gradient(h)
  else:
    x = _arrays.drop_rows(z - _arrays.robust_center(z, where)[None, :], where)
    h, unit = jnp.asarray(bandwidth).astype(z.dtype), jnp.ones((), z.dtype)
  if kernel.on_sphere:  # nothing is far away there, and no number large
    u = x / jnp.maximum(h, smallest)
  else:
    bound = square_limit(d, z.dtype)
    # Where h is a trainable number, 0 times an infinite slope would be nan.
    near = jnp.abs(x) <= lax.stop_gradient(h) * bound
    scaled = jnp.where(near, x, 0) / h
    u = cut_off(jnp.where(near, scaled, x / lax.stop_gradient(h)), bound)
  if kernel.on_sphere:
    log_normalizer = kernel.log_normalizer(d, h * unit)
  else:  # their product might overflow
    log_normalizer = kernel.log_normalizer(d, h) - d * jnp.log(unit)
  return u[:n], None if memory is None else u[n:], log_normalizer


def kde_entropy(
  z: jax.Array,
  *,
  bandwidth="scott",
  kernel: str | Kernel = "gaussian",
  leave_one_out: bool = True,
  where: jax.Array | None = None,
  memory: jax.Array | None = None,
  memory_where: jax.Array | None = None,
  bandwidth_gradient: bool = False,
  dense: bool | None = None,
) -> jax.Array:
  r"""Kernel-density (resubstitution) estimate of differential entropy, in nats.

  .. math:: \hat H = -\frac1n \sum_i \log \frac1{n-1} \sum_{j \ne i} K_h(z_i - z_j)

  As n grows this tends to the cross-entropy of the data with its *smoothed* density,
  so it exceeds the true entropy by an amount set by ``bandwidth``.

  Scale: with a rule, :math:`\hat H(aZ) = \hat H(Z) + d \log |a|`, and with a fixed
  bandwidth the estimate still grows without bound as points move apart. Neither has
  a maximum in the scale of ``z``: put features on the sphere (``kernel="vmf"``, whose
  maximum is ``sphere_log_area(d)``) or bound the scale elsewhere.

  Args:
    z: Samples, ``[..., n, d]``, floating. Half precision is computed in float32.
    bandwidth: Kernel scale ``h > 0`` in the units of ``z`` (may be traced), or a rule:
      ``"scott"``, ``"silverman"``, ``"median"`` (median pairwise distance).
    kernel: ``"gaussian"``, ``"student-t"``, ``"vmf"`` (rows are scaled to unit length;
      concentration ``1 / h**2``; entropy with respect to surface area), or a
      ``Kernel``.
    leave_one_out: Leave row i out of its own density. Without it the estimate is biased
      down and rewards a small bandwidth.
    where: Boolean ``[..., n]``; False rows are as if deleted (they may be nan).
    memory: Further rows ``[m, d]`` that the density is estimated from (a queue of
      earlier batches), constants for the gradient.
    memory_where: Boolean ``[m]``.
    bandwidth_gradient: Let gradients flow through a bandwidth rule (default: the rule's
      value is a constant).
    dense: Keep n x n numbers (True) or tiles (False); None goes by size, tiles from
      1,025 rows on. Only speed and memory depend on it. Where the rows of ``z`` are
      split over devices, n x n numbers are, too, and tiles are not.

  Returns:
    Nats, shape ``[...]``, float32 or wider; may be negative. 0 with zero gradient when
    no valid row sees another; nan if a valid entry is nan.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: For a wrong shape, bandwidth or kernel.

  References:
    Ahmad & Lin 1976 (resubstitution); Beirlant et al., Nonparametric entropy
    estimation: an overview, 1997, section 2.2 (leave-one-out). Wang & Isola 2020,
    section 4.1.2: with ``kernel="vmf"`` the negative of this is the uniformity part of
    the contrastive loss at temperature ``h**2``, up to a constant.

  Example:
    >>> print(f"{kde_entropy(jnp.array([[0.0], [2.0]]), bandwidth=1.0):.4f}")
    2.9189
  """
  kernel = get_kernel(kernel)
  check_bandwidth(bandwidth)
  z = _arrays.check_samples("z", z)
  if memory is not None:
    memory = _arrays.check_samples("memory", memory, ndim=2)
    if memory.shape[1] != z.shape[-1]:
      raise ValueError(
        f"memory must have {z.shape[-1]} columns like z {z.shape}, got {memory.shape}."
      )
    memory_where = _arrays.check_where(memory_where, memory, name="memory_where")
  elif memory_where is not None:
    raise ValueError("memory_where needs memory, got memory=None.")

  def one(z, where):
    u, further, log_normalizer = scaled_rows(
      z,
      where,
      bandwidth,
      kernel,
      gradient=bandwidth_gradient,
      memory=memory,
      memory_where=memory_where,
    )
    ell = log_kernel_sums(
      u,
      where,
      kernel=kernel,
      leave_one_out=leave_one_out,
      memory=further,
      memory_where=memory_where,
      dense=dense,
    )
    seen = _arrays.row_count(z, where) - leave_one_out
    if memory is not None:
      seen = seen + _arrays.row_count(memory, memory_where)
    value = jnp.log(jnp.maximum(seen, 1)) - log_normalizer
    value = value - _arrays.row_mean(jnp.where(seen > 0, ell, 0), where)
    return jnp.where(seen > 0, value, 0)

  alone = leave_one_out and memory is None
  return _arrays.estimate(one, z, where, min_rows=2 if alone else 1)


def sphere_entropy(
  z: jax.Array,
  *,
  bandwidth="median",
  where: jax.Array | None = None,
  **options,
) -> dict[str, jax.Array]:
  """How far the directions of ``z`` are from uniform on the sphere, in nats.

  Args:
    z: Features ``[..., n, d]``, floating; only their directions count.
    bandwidth: As in ``kde_entropy(kernel="vmf")``.
    where: Boolean ``[..., n]``.
    **options: Further options of ``kde_entropy``.

  Returns:
    ``{"entropy", "maximum", "gap"}``, each ``[...]``: the kernel estimate, the log of
    the sphere's area, and the second minus the first. Uniform directions have a gap of
    about 0 (slightly below, as the estimate is biased upwards).

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: For a wrong shape or bandwidth.

  Example:
    >>> z = jax.random.normal(jax.random.key(0), (512, 3))
    >>> {k: f"{v:.2f}" for k, v in sphere_entropy(z).items()}
    {'entropy': '2.53', 'maximum': '2.53', 'gap': '-0.00'}
  """
  entropy = kde_entropy(z, kernel="vmf", bandwidth=bandwidth, where=where, **options)
  maximum = jnp.full_like(entropy, sphere_log_area(jnp.shape(z)[-1]))
  return {"entropy": entropy, "maximum": maximum, "gap": maximum - entropy}


def mixture_entropy_bounds(
  z: jax.Array,
  *,
  bandwidth,
  where: jax.Array | None = None,
  bandwidth_gradient: bool = False,
  dense: bool | None = None,
) -> tuple[jax.Array, jax.Array]:
  r"""Lower and upper bound on the entropy of the Gaussian mixture centred at ``z``.

  For the equal-weight mixture of :math:`N(z_i, h^2 I)`,

  .. math:: \hat H_D = \tfrac d2 \log(2\pi e h^2)
            - \tfrac1n\sum_i \log \tfrac1n \sum_j e^{-D(i, j)}

  with ``D`` the Bhattacharyya distance ``|z_i - z_j|^2 / (8 h^2)`` (lower) and the
  Kullback-Leibler divergence ``|z_i - z_j|^2 / (2 h^2)`` (upper).

  Args:
    z: Component centres ``[..., n, d]``, floating.
    bandwidth: Component standard deviation, as in ``kde_entropy``.
    where: Boolean ``[..., n]``.
    bandwidth_gradient: As in ``kde_entropy``.
    dense: As in ``kde_entropy``.

  Returns:
    ``(lower, upper)``, nats, each ``[...]``; both 0 when no row is valid.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: For a wrong shape or bandwidth.

  References:
    Kolchinsky & Tracey, Estimating Mixture Entropy with Pairwise Distances, 2017,
    eqs. 10, 13 and section 4.

  Example:
    >>> lower, upper = mixture_entropy_bounds(jnp.array([[0.0], [99.0]]), bandwidth=1.0)
    >>> print(f"{lower:.4f} {upper:.4f}")  # far apart: H(N) + log 2
    2.1121 2.1121
  """
  check_bandwidth(bandwidth)
  gaussian = get_kernel("gaussian")

  def one(z, where):
    d = z.shape[1]
    u, _, log_normalizer = scaled_rows(
      z, where, bandwidth, gaussian, gradient=bandwidth_gradient
    )

    def bound(u):  # exp(-D) is the Gaussian kernel without its normaliser
      ell = log_kernel_sums(u, where, kernel=gaussian, leave_one_out=False, dense=dense)
      log_n = jnp.log(jnp.maximum(_arrays.row_count(z, where), 1))
      return 0.5 * d - log_normalizer + log_n - _arrays.row_mean(ell, where)

    return bound(0.5 * u), bound(u)

  return _arrays.estimate(one, z, where, min_rows=1)
