"""Losses that balance, translate or separate the embeddings of modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import itertools

import jax
import jax.numpy as jnp

from mer_dg.losses import _rows
from mer_dg.losses.classification import masked_mean

# A mean norm below this is that of dead features: no ratio to it means anything.
_DEAD = 1e-8


def relative_norm_alignment(
  embeddings: Mapping[str, jax.Array],
  *,
  order: Sequence[str] | None = None,
  where: jax.Array | None = None,
) -> jax.Array:
  r"""Relative norm alignment (RNA-Net): modalities should have equal mean norms.

  With :math:`n_m = \frac1B \sum_i \|z_i^m\|_2` and the modalities in order a, b, c:

  .. math::
    L = (n_a / n_b - 1)^2 \quad\text{or}\quad
    L = \tfrac13 [(n_a / n_b - 1)^2 + (n_a / n_c - 1)^2 + (n_c / n_b - 1)^2]

  The ratio is not symmetric, so the order matters. Four and more modalities (no
  published form): the mean over all pairs, the first modality on top of its ratios and
  of any other pair the later one, which gives the two forms above.

  Args:
    embeddings: ``{m: [B, D_m]}``, two or more; widths may differ.
    order: The modalities as a, b, c; None: as in the dict. JAX sorts the keys of a dict
      that is an argument of a transformed function, so give the order under ``jit``.
    where: bool ``[B]``, rows that count.

  Returns:
    Scalar >= 0. A pair contributes 0 while its denominator is below 1e-8 (dead
    features have no direction to grow in); 0 without rows.

  Raises:
    TypeError: If the embeddings are no dict or not floating.
    ValueError: If there is one modality only, shapes do not fit, or ``order`` is not
      an order of the modalities.

  References:
    Planamente et al., Domain generalization through audio-visual relative norm
    alignment in first person action recognition, WACV 2022, eq. 3; three modalities as
    in public benchmark code.

  Example:
    >>> z = {"audio": jnp.array([[3.0, 4.0]]), "video": jnp.array([[0.0, 2.0, 0.0]])}
    >>> print(f"{relative_norm_alignment(z, order=('audio', 'video')):.4f}")  # 1.5^2
    2.2500
  """
  embeddings = _rows.by_modality("embeddings", embeddings, at_least=2)
  names = tuple(embeddings if order is None else order)
  if sorted(names) != sorted(embeddings):
    raise ValueError(f"order={names} is not an order of {tuple(embeddings)}.")
  mask = _rows.row_mask(where, embeddings[names[0]].shape[0])
  mean_norm = {
    m: masked_mean(_rows.norm(_rows.keep(z, mask), times=_rows.SMALL), mask)
    for m, z in embeddings.items()
  }
  terms = []
  for i, j in itertools.combinations(range(len(names)), 2):
    top, bottom = (i, j) if i == 0 else (j, i)
    top, bottom = mean_norm[names[top]], mean_norm[names[bottom]]
    alive = bottom > _rows.SMALL * _DEAD
    ratio = top / jnp.where(alive, bottom, 1)
    terms.append(jnp.where(alive, (ratio - 1) ** 2, 0))
  return sum(terms[1:], start=terms[0]) / len(terms)


def shared_specific_distance(
  embeddings: Mapping[str, jax.Array], *, where: jax.Array | None = None
) -> jax.Array:
  r"""Minus the distance of the shared from the specific half of each embedding.

  .. math:: L = -\frac1M \sum_m \mathrm{mean}_{i,j} (z^{m,c}_{ij} - z^{m,s}_{ij})^2

  where c is the first half of the columns and s the second. It has no lower bound, so
  it needs a small weight (0.7 in the paper, against features after a ReLU).

  Args:
    embeddings: ``{m: [B, D_m]}`` with every D_m even.
    where: bool ``[B]``, rows that count.

  Returns:
    Scalar <= 0; 0 without rows.

  Raises:
    TypeError: If the embeddings are no dict or not floating.
    ValueError: If shapes do not fit or a width is odd.

  References:
    Dong et al., SimMMDG, NeurIPS 2023 (feature splitting with distance).

  Example:
    >>> z = {"audio": jnp.array([[1.0, 4.0]]), "video": jnp.array([[2.0, 1.0]])}
    >>> print(shared_specific_distance(z))  # -(9 + 1) / 2
    -5.0
  """
  embeddings = _rows.by_modality("embeddings", embeddings)
  terms = []
  for m, z in embeddings.items():
    if z.shape[1] % 2:
      raise ValueError(f"embeddings[{m!r}] has odd width {z.shape[1]}, no two halves.")
    mask = _rows.row_mask(where, z.shape[0])
    shared, specific = jnp.split(_rows.keep(z, mask), 2, axis=1)
    terms.append(masked_mean(jnp.mean((shared - specific) ** 2, axis=1), mask))
  return -sum(terms[1:], start=terms[0]) / len(terms)


def translation_distance(
  translated: Mapping[tuple[str, str], jax.Array],
  embeddings: Mapping[str, jax.Array],
  *,
  where: jax.Array | None = None,
) -> jax.Array:
  r"""Distance of embeddings translated between modalities from their targets.

  .. math::
    L = \frac1{|\mathcal P|} \sum_{(a, b) \in \mathcal P} \frac1B \sum_i \left\|
      \frac{t_i^{ab}}{\|t_i^{ab}\|} - \frac{z_i^b}{\|z_i^b\|} \right\|_2

  The norm is not squared, and the target is not detached: it too moves towards its
  translation. With projections of one width and ``translated[a, b] = projections[a]``
  this is cross-modal alignment without a translator.

  Args:
    translated: ``{(a, b): [B, D_b]}``, embedding of modality a translated to b; any
      set of pairs.
    embeddings: ``{m: [B, D_m]}``, the targets.
    where: bool ``[B]``, rows that count.

  Returns:
    Scalar in [0, 2]; 0 without rows. A zero row counts as the origin.

  Raises:
    TypeError: If an argument is no dict or not floating.
    ValueError: If there is no pair, a pair names an unknown modality or one twice, or
      shapes do not fit.

  References:
    Dong et al., SimMMDG, NeurIPS 2023 (cross-modal translation).

  Example:
    >>> z = {"audio": jnp.array([[1.0, 0.0]]), "video": jnp.array([[3.0]])}
    >>> t = {("video", "audio"): jnp.array([[0.0, 5.0]])}
    >>> print(f"{translation_distance(t, z):.4f}")  # sqrt 2
    1.4142
  """
  embeddings = _rows.by_modality("embeddings", embeddings, at_least=2)
  _rows.require_names("translated", translated, at_least=1)
  terms = []
  for pair, t in translated.items():
    if len(set(pair)) != 2 or not set(pair) <= set(embeddings):
      raise ValueError(
        f"translated has {pair!r}, not a pair of different modalities of "
        f"{tuple(embeddings)}."
      )
    target, t = embeddings[pair[1]], _rows.rows(f"translated[{pair!r}]", t)
    if t.shape != target.shape:
      raise ValueError(
        f"translated[{pair!r}] has shape {t.shape}, but embeddings[{pair[1]!r}] "
        f"{target.shape}."
      )
    mask = _rows.row_mask(where, t.shape[0])
    gap = _rows.unit(_rows.keep(t, mask)) - _rows.unit(_rows.keep(target, mask))
    terms.append(masked_mean(_rows.norm(gap), mask))
  return sum(terms[1:], start=terms[0]) / len(terms)
