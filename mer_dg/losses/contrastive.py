"""Contrastive losses: views of a class, or of a sample, attract each other."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mer_dg.losses import _rows
from mer_dg.losses.classification import masked_mean


def supervised_contrastive(
  projections: Mapping[str, jax.Array],
  label: jax.Array,
  *,
  temperature: jax.typing.ArrayLike,
  base_temperature: jax.typing.ArrayLike = 0.07,
  where: jax.Array | None = None,
) -> jax.Array:
  r"""Supervised contrastive loss (SupCon) whose views are the modalities.

  Every row of every modality is an anchor; its positives are all other rows of its
  class, in any modality, so with two modalities a sample's other view is always one.

  .. math::
    L = -\frac{T}{T_0} \frac1n \sum_a \frac1{|P(a)|} \sum_{b \in P(a)} \log
      \frac{\exp(\langle r_a, r_b \rangle / T)}
           {\sum_{c \ne a} \exp(\langle r_a, r_c \rangle / T)}

  Args:
    projections: ``{m: [B, P]}`` of one width, used as given; put them on the unit
      sphere first, as the paper does: of rows far from the origin the differences of
      similarities are rounding.
    label: int ``[B]``, what makes two rows a pair: class or domain.
    temperature: T > 0.
    base_temperature: :math:`T_0`, a constant factor of the authors' code.
    where: bool ``[B]``, samples that take part.

  Returns:
    Scalar in nats times ``T / T_0``. An anchor without a positive contributes 0 and is
    counted in n; 0 without anchors.

  Raises:
    TypeError: If the projections are no dict or not floating.
    ValueError: If shapes do not fit or a temperature is not positive.

  References:
    Khosla et al., Supervised contrastive learning, 2020, eq. 2 (:math:`L_{out}`); over
    modalities in Dong et al., SimMMDG, 2023. The released code divides by zero for an
    anchor without a positive; later ports clamp, as here.

  Example:
    >>> z = {"audio": jnp.eye(2), "video": jnp.eye(2)}
    >>> loss = supervised_contrastive(z, jnp.array([0, 1]), temperature=1.0)
    >>> print(f"{0.07 * loss:.4f}")  # log(e + 2) - 1
    0.5514
  """
  _rows.positive("temperature", temperature)
  _rows.positive("base_temperature", base_temperature)
  projections = _rows.by_modality("projections", projections)
  widths = {m: r.shape[1] for m, r in projections.items()}
  if len(set(widths.values())) > 1:
    raise ValueError(f"projections must have one width, got {widths}.")
  views = len(projections)
  r = jnp.concatenate(list(projections.values()))  # [n, P], n = views * B
  size = r.shape[0] // views
  label = jnp.tile(_rows.index_vector("label", label, size), views)
  valid = jnp.tile(_rows.row_mask(where, size), views)
  r = _rows.keep(r, valid)

  other = valid[:, None] & valid[None, :] & ~jnp.eye(r.shape[0], dtype=bool)
  similarity = jnp.matmul(r, r.T, precision=_rows.HIGHEST) / temperature
  log_p = similarity - _log_sum_exp(similarity, other)[:, None]
  pair = other & (label[:, None] == label[None, :])
  per_anchor = jax.vmap(masked_mean)(log_p, pair)
  loss = -masked_mean(per_anchor, valid) * temperature / base_temperature
  # Similarities that overflow have no difference; the loss is vast then.
  overflow = jnp.isnan(loss) & ~jnp.isnan(r).any()
  return jnp.where(jax.lax.stop_gradient(overflow), jnp.inf, loss)


def mean_shift_contrastive(
  first: Mapping[str, jax.Array],
  second: Mapping[str, jax.Array],
  *,
  neighbours: int = 8,
  temperature: jax.typing.ArrayLike = 0.25,
  where: jax.Array | None = None,
) -> jax.Array:
  r"""Unsupervised contrast of two views after one mean-shift step (NEL).

  In each modality, over the 2B rows of both views, a row moves half-way to the mean of
  its k nearest neighbours by cosine (itself left out) and back to the unit sphere;
  the modalities of a sample are joined and normalised again to :math:`u_i, v_i`:

  .. math::
    L = -\frac1B \sum_i \log \frac{\exp(\langle u_i, v_i \rangle / T)}
                                  {\sum_j \exp(\langle u_i, v_j \rangle / T)}

  One direction only: anchors are rows of the first view. Gradients flow through the
  neighbours, not through their choice.

  Args:
    first: ``{m: [B, P_m]}``, unit rows of one augmentation.
    second: The same samples under another augmentation.
    neighbours: k >= 1, static; with n samples at most 2n - 1 of them exist.
    temperature: T > 0.
    where: bool ``[B]``, samples that take part, as anchors and as neighbours.

  Returns:
    Scalar in nats; 0 if no sample takes part.

  Raises:
    TypeError: If the views are no dicts or not floating.
    ValueError: If the views differ in modalities or shapes, or a number is too small.

  References:
    Nonpolarized embedding learning in multimodal domain generalization,
    Neurocomputing 658, 2025, eq. 4-8. The published port drops the most similar row as
    "self", which among duplicated rows may be another one; here self is left out by
    its position.

  Example:
    >>> z = {"audio": jnp.eye(2), "video": jnp.eye(2)}
    >>> loss = mean_shift_contrastive(z, z, neighbours=1, temperature=1.0)
    >>> print(f"{loss:.4f}")  # The nearest neighbour is the other view: log(1 + 1/e)
    0.3133
  """
  _rows.positive("temperature", temperature)
  if neighbours < 1:
    raise ValueError(f"neighbours must be >= 1, got {neighbours}.")
  first = _rows.by_modality("first", first)
  second = _rows.by_modality("second", second)
  _rows.same_names("second", second, "first", first)
  for m, z in first.items():
    if second[m].shape != z.shape:
      raise ValueError(
        f"second[{m!r}] has shape {second[m].shape}, but first[{m!r}] {z.shape}."
      )
  size = next(iter(first.values())).shape[0]
  valid = _rows.row_mask(where, size)
  both = jnp.concatenate([valid, valid])
  shifted = [
    _mean_shift(jnp.concatenate([first[m], second[m]]), both, neighbours) for m in first
  ]
  joined = _rows.unit(jnp.concatenate(shifted, axis=-1))
  u, v = joined[:size], joined[size:]
  similarity = jnp.matmul(u, v.T, precision=_rows.HIGHEST) / temperature
  pairs = valid[:, None] & valid[None, :]
  return masked_mean(_log_sum_exp(similarity, pairs) - jnp.diagonal(similarity), valid)


def _mean_shift(z, valid, neighbours):
  """Half-way to the mean of the nearest valid rows, then to the unit sphere."""
  z = _rows.keep(z, valid)
  n = z.shape[0]
  direction = jax.lax.stop_gradient(_rows.unit(z))
  cosine = jnp.matmul(direction, direction.T, precision=_rows.HIGHEST)
  usable = valid[None, :] & ~jnp.eye(n, dtype=bool)
  cosine, nearest = jax.lax.top_k(
    jnp.where(usable, cosine, -jnp.inf), min(neighbours, n - 1)
  )
  found = jnp.isfinite(cosine)  # [n, k]; fewer than k where few rows are valid
  # The length does not matter: a power of two off, where a sum would overflow.
  vast = jax.lax.stop_gradient(jnp.max(jnp.abs(z))) > 1e30
  z = z * jnp.where(vast, 2.0 ** -int(neighbours + 1).bit_length(), 1).astype(z.dtype)
  total = jnp.sum(jnp.where(found[..., None], z[nearest], 0), axis=1)
  count = jnp.maximum(jnp.sum(found, axis=1, keepdims=True), 1)
  return _rows.unit(0.5 * z + 0.5 / count * total)


def _log_sum_exp(x, where):
  """Over the last axis of the entries in ``where``; some finite number without any."""
  some = jnp.any(where, axis=-1, keepdims=True)
  return jax.nn.logsumexp(jnp.where(where, x, jnp.where(some, -jnp.inf, 0)), axis=-1)
