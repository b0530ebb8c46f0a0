"""Kernel density estimates of entropy, and bounds on the entropy of mixtures."""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp

from mer_dg.entropy import _arrays
from mer_dg.entropy import bandwidth as _bandwidth
from mer_dg.entropy.kernels import Kernel, get_kernel
from mer_dg.entropy.pairwise import log_kernel_sums


def _unit_rows(z):
  """Rows scaled to unit length; a zero row stays zero, with zero gradient."""
  sq = jnp.sum(z**2, axis=1, keepdims=True)
  return z / jnp.where(sq > 0, _arrays.safe_sqrt(sq), 1)


def _log_density(
  q, r, v, h, *, kernel: Kernel, center, self_offset=None, block_size=None
):
  """Log densities ``[nq]`` at ``q`` under the KDE of rows ``r`` with weights ``v``.

  Rows that must not count have weight 0 and finite entries. ``self_offset`` as in
  ``log_kernel_sums``; the left-out row's weight is left out of the total, too.
  """
  d = q.shape[1]
  scale = 1 / (h if h.ndim == 0 else h[None, :])
  shift = center[None, :]
  # Rows without weight go to the centre, where nothing overflows.
  q_unit = (q - shift) * scale
  if q is r:
    q_unit = jnp.where((v > 0)[:, None], q_unit, 0)
  r_unit = q_unit if q is r else (r - shift) * scale
  log_v = _arrays.safe_log(v)
  ell = log_kernel_sums(
    q_unit, r_unit, log_v, kernel=kernel, self_offset=self_offset, block_size=block_size
  )
  total = jnp.sum(v)
  if self_offset is not None:
    at = jnp.clip(jnp.arange(q.shape[0]) + self_offset, 0, r.shape[0] - 1)
    total = jnp.maximum(total - v[at], 0)
  return ell - _arrays.safe_log(total) + kernel.log_normalizer(d, h)


def _prepare(z, where, kernel: Kernel):
  z = _arrays.drop_rows(_arrays.accumulate(z), where)
  return _unit_rows(z) if kernel.on_sphere else z


def _check_sphere_bandwidth(kernel: Kernel, bandwidth) -> None:
  if not kernel.on_sphere:
    return
  if isinstance(bandwidth, str):
    raise ValueError(
      f"bandwidth={bandwidth!r}: rules are for R^d; kernel='vmf' needs a number "
      "h > 0 (concentration kappa = 1 / h**2)."
    )
  if jnp.ndim(bandwidth) != 0:
    raise ValueError(
      f"bandwidth must be a scalar for kernel='vmf', got shape {jnp.shape(bandwidth)}."
    )


def kde_entropy(
  z: jax.Array,
  *,
  bandwidth="scott",
  kernel: str | Kernel = "gaussian",
  leave_one_out: bool = True,
  where: jax.Array | None = None,
  weights: jax.Array | None = None,
  block_size: int | None = None,
  reference: jax.Array | None = None,
  reference_where: jax.Array | None = None,
  reference_offset=None,
  bandwidth_gradient: bool = False,
  axis_name: str | None = None,
) -> jax.Array:
  r"""Kernel-density (resubstitution) estimate of differential entropy, in nats.

  .. math:: \hat H = -\sum_i \bar w_i \log \frac{\sum_{j \ne i} w_j K_h(z_i - z_j)}
            {\sum_{j \ne i} w_j}

  As n grows this tends to the cross-entropy of the data with its *smoothed* density,
  so it exceeds the true entropy by an amount set by ``bandwidth``.

  Scale: with a rule, :math:`\hat H(aZ) = \hat H(Z) + d \log |a|`, and with a fixed
  bandwidth the estimate still grows without bound as points move apart. Neither has
  a maximum in the scale of ``z``; bound the scale elsewhere (normalised embeddings and
  ``kernel="vmf"``, a variance target, weight decay).

  Args:
    z: Samples, ``[..., n, d]``, floating. Half precision is computed in float32.
    bandwidth: Kernel scale ``h > 0`` in the units of ``z``: a scalar (may be traced),
      an array ``[d]``, or a rule: ``"scott"``, ``"silverman"``, ``"median"``, or for
      d = 1 ``"isj"`` (improved Sheather-Jones).
      For ``kernel="vmf"`` a scalar; the concentration is ``1 / h**2``.
    kernel: ``"gaussian"``, ``"laplace"`` (radial, ``exp(-|x|/h)``), ``"student-t"``,
      ``"epanechnikov"`` (radial), ``"vmf"`` (rows are scaled to unit length;
      entropy with respect to surface area), or a ``Kernel``.
    leave_one_out: Leave row i out of its own density. Without it the estimate is biased
      down and rewards a small bandwidth.
    where: Boolean ``[..., n]``; False rows are as if deleted (they may be nan).
    weights: Sample weights ``[..., n]``, >= 0.
    block_size: Rows per tile of the pairwise computation; None chooses. Only speed and
      memory depend on it.
    reference: Points whose density is evaluated at ``z``, ``[..., m, d]`` or ``[m, d]``
      (memory queue, second view, other shard). Default: ``z`` itself.
    reference_where: Boolean rows of ``reference``.
    reference_offset: When given, row i of ``z`` is row ``i + reference_offset`` of
      ``reference`` and is left out of its own density. May be traced.
    bandwidth_gradient: Let gradients flow through a bandwidth rule (default: the rule's
      value is a constant).
    axis_name: Mapped axis of ``shard_map`` over which rows are split; the result
      is the entropy of all rows, the same on every member.

  Returns:
    Nats, shape ``[...]``, float32 or wider; may be negative. 0 with zero gradient when
    fewer than two rows are valid and one is left out. ``inf`` where no kernel reaches a
    row (compact kernel); nan if a valid entry is nan.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: For a wrong shape, bandwidth, kernel or block size.

  References:
    Ahmad & Lin 1976 (resubstitution); Beirlant et al., Nonparametric entropy
    estimation: an overview, 1997, section 2.2 (leave-one-out). Botev, Grotowski &
    Kroese, Kernel density estimation via diffusion, 2010, section 5 (``"isj"``). Wang &
    Isola 2020, section 4.1.2: with ``kernel="vmf"`` the negative of this is the
    uniformity part of the contrastive loss at temperature ``h**2``, up to a constant.

  Example:
    >>> print(f"{kde_entropy(jnp.array([[0.0], [2.0]]), bandwidth=1.0):.4f}")
    2.9189
  """
  z = _arrays.check_samples("z", z)
  kernel = get_kernel(kernel)
  d = z.shape[-1]
  _bandwidth.check_bandwidth(bandwidth, d)
  _check_sphere_bandwidth(kernel, bandwidth)
  _arrays.check_block_size(block_size)
  where = _arrays.check_where(where, z)
  weights = _arrays.check_weights(weights, z)
  if reference is None:
    for name, value in (
      ("reference_where", reference_where),
      ("reference_offset", reference_offset),
    ):
      if value is not None:
        raise ValueError(f"{name} needs reference, got reference=None.")
  else:
    if axis_name is not None:
      raise ValueError("axis_name and reference exclude each other; gather first.")
    reference = _arrays.check_samples("reference", reference)
    if reference.shape[-1] != d:
      raise ValueError(
        f"reference must have d={d} columns like z {z.shape}, got {reference.shape}."
      )
    reference_where = _arrays.check_where(
      reference_where, reference, name="reference_where"
    )
    batch = z.shape[:-2]
    reference = jnp.broadcast_to(reference, (*batch, *reference.shape[-2:]))
    if reference_where is not None:
      reference_where = jnp.broadcast_to(reference_where, reference.shape[:-1])

  def one(z, where, weights, reference, reference_where):
    z = _prepare(z, where, kernel)
    v = _arrays.row_weights(z, where, weights)
    offset = None
    if reference is not None:
      r = _prepare(reference, reference_where, kernel).astype(z.dtype)
      v_r, offset = _arrays.row_weights(r, reference_where), reference_offset
      loo = offset is not None and leave_one_out
    elif axis_name is not None:
      gather = lambda x: lax.all_gather(x, axis_name, tiled=True)
      r, v_r = gather(z), gather(v)
      offset = lax.axis_index(axis_name) * z.shape[0]
      loo = leave_one_out
    else:
      r, v_r, offset, loo = z, v, 0, leave_one_out
    masks = (where, weights) if reference is None else (reference_where,)
    # The same rows for bandwidth and density: XLA computes one center, not two.
    counted = None if all(mask is None for mask in masks) else v_r > 0
    center = _arrays.robust_center(r, counted)
    h = _bandwidth.resolve_bandwidth(
      bandwidth, r, v_r, center=center, gradient=bandwidth_gradient
    )
    log_p = _log_density(
      z,
      r,
      v_r,
      h,
      kernel=kernel,
      center=center,
      self_offset=offset if loo else None,
      block_size=block_size,
    )
    valid = v > 0
    total, score = jnp.sum(v), jnp.sum(jnp.where(valid, v * log_p, 0))
    support = jnp.sum(v_r > 0) if axis_name is None else jnp.sum(valid)
    poison = lax.stop_gradient(_arrays.nan_if_nan(z))
    if axis_name is not None:
      total, score, support, poison = lax.psum(
        (total, score, support, poison), axis_name
      )
    enough = (support >= (2 if loo else 1)) & (total > 0)
    value = -score / jnp.where(total > 0, total, 1)
    return jnp.where(enough, value, poison)

  return _arrays.over_batch(one, z, where, weights, reference, reference_where)


def kde_log_density(
  query: jax.Array,
  z: jax.Array,
  *,
  bandwidth,
  kernel: str | Kernel = "gaussian",
  where: jax.Array | None = None,
  block_size: int | None = None,
  bandwidth_gradient: bool = False,
) -> jax.Array:
  """Log density of ``query`` under the kernel density estimate of ``z``, in nats.

  Args:
    query: Points ``[q, d]``, floating.
    z: Samples ``[n, d]``, floating.
    bandwidth: As in ``kde_entropy`` (rules are evaluated on ``z``).
    kernel: As in ``kde_entropy``.
    where: Boolean ``[n]``, rows of ``z`` that count.
    block_size: As in ``kde_entropy``.
    bandwidth_gradient: As in ``kde_entropy``.

  Returns:
    ``[q]`` nats; ``-inf`` where no kernel reaches or no row counts.

  Raises:
    TypeError: If an input is not floating.
    ValueError: For a wrong shape, bandwidth, kernel or block size.

  Example:
    >>> z = jnp.array([[0.0], [2.0]])
    >>> [f"{x:.4f}" for x in kde_log_density(z, z, bandwidth=1.0)]
    ['-1.4852', '-1.4852']
  """
  query = _arrays.check_samples("query", query, ndim=2)
  z = _arrays.check_samples("z", z, ndim=2)
  kernel = get_kernel(kernel)
  d = z.shape[1]
  if query.shape[1] != d:
    raise ValueError(f"query must have d={d} columns like z, got {query.shape}.")
  _bandwidth.check_bandwidth(bandwidth, d)
  _check_sphere_bandwidth(kernel, bandwidth)
  _arrays.check_block_size(block_size)
  where = _arrays.check_where(where, z)
  z = _prepare(z, where, kernel)
  query = _prepare(query, None, kernel)
  dtype = jnp.promote_types(z.dtype, query.dtype)
  z, query = z.astype(dtype), query.astype(dtype)
  v = _arrays.row_weights(z, where)
  center = _arrays.robust_center(z, where)
  h = _bandwidth.resolve_bandwidth(
    bandwidth, z, v, center=center, gradient=bandwidth_gradient
  )
  log_p = _log_density(
    query, z, v, h, kernel=kernel, center=center, block_size=block_size
  )
  return jnp.where(jnp.sum(v) > 0, log_p, -jnp.inf)


def mixture_entropy_bounds(
  z: jax.Array,
  *,
  bandwidth,
  where: jax.Array | None = None,
  block_size: int | None = None,
  bandwidth_gradient: bool = False,
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
    where: Boolean ``[..., n]``. Rows split over devices: ``gather_rows`` first.
    block_size: As in ``kde_entropy``.
    bandwidth_gradient: As in ``kde_entropy``.

  Returns:
    ``(lower, upper)``, nats, each ``[...]``; both 0 when no row is valid.

  Raises:
    TypeError: If ``z`` is not floating.
    ValueError: For a wrong shape, bandwidth or block size.

  References:
    Kolchinsky & Tracey, Estimating Mixture Entropy with Pairwise Distances, 2017,
    eqs. 10, 13 and section 4.

  Example:
    >>> lower, upper = mixture_entropy_bounds(jnp.array([[0.0], [99.0]]), bandwidth=1.0)
    >>> print(f"{lower:.4f} {upper:.4f}")  # far apart: H(N) + log 2
    2.1121 2.1121
  """
  z = _arrays.check_samples("z", z)
  d = z.shape[-1]
  _bandwidth.check_bandwidth(bandwidth, d)
  _arrays.check_block_size(block_size)
  where = _arrays.check_where(where, z)
  gaussian = get_kernel("gaussian")

  def one(z, where):
    z = _prepare(z, where, gaussian)
    v = _arrays.row_weights(z, where)
    center = _arrays.robust_center(z, where)
    h = _bandwidth.resolve_bandwidth(
      bandwidth, z, v, center=center, gradient=bandwidth_gradient
    )
    count = jnp.sum(v)
    safe_count = jnp.where(count > 0, count, 1)

    def bound(factor):
      # exp(-D) is a Gaussian kernel of width factor * h without its normaliser.
      wide = factor * h
      log_p = _log_density(
        z, z, v, wide, kernel=gaussian, center=center, block_size=block_size
      ) - gaussian.log_normalizer(d, wide)
      mean = jnp.sum(jnp.where(v > 0, log_p, 0)) / safe_count
      value = 0.5 * d - gaussian.log_normalizer(d, h) - mean
      return jnp.where(count > 0, value, 0)

    return bound(2.0), bound(1.0)

  return _arrays.over_batch(one, z, where)
