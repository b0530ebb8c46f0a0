"""Co-occurrence reliance: what accuracy rests on *which* samples came together.

Modalities of a sample share its label, and often more: a scene, a recording, a
nuisance. If the modalities of different samples *of the same class* are put together,
every modality still says what it said about the label, and only the rest of the
pairing is gone. The accuracy lost by it is what the fused prediction drew from it.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from mer_dg.evaluation import _masked, metrics
from mer_dg.evaluation.missing import Fuse


def re_pair_within_class(
  label: jax.Array,
  domain: jax.Array,
  key: jax.Array,
  modalities: Sequence[str],
  where: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Rows from which to take each modality, re-paired within class, across domains.

  The first modality stays; every other one is permuted within each class on its own, so
  that every row is used once. Rows of a class are ordered by domain, at random inside a
  domain, and shifted by a random number of places so large that no row meets its own
  domain, where that is possible (no domain has more than half of the class); otherwise
  as few as possible do. A class that lives in one domain is shifted within it; no
  row of a class of two or more keeps its partner.

  Args:
    label: int ``[n]``.
    domain: int ``[n]``.
    key: Typed key.
    modalities: Names, the first of which is not moved.
    where: bool ``[n]``; the others keep their partners and are nobody's.

  Returns:
    ``{m: int32 [n]}``: row i of modality m is to be taken from that row.

  Raises:
    ValueError: If shapes do not fit or there are no modalities.

  Example:
    >>> label, domain = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1])
    >>> rows = re_pair_within_class(label, domain, jax.random.key(0), ["a", "b"])
    >>> rows["a"].tolist(), rows["b"].tolist()
    ([0, 1, 2, 3], [1, 0, 3, 2])
  """
  if label.ndim != 1 or domain.shape != label.shape:
    raise ValueError(
      f"label and domain must be [n], got {label.shape} and {domain.shape}."
    )
  if not modalities:
    raise ValueError("modalities is empty.")
  mask = _masked.full_mask(label.shape[0], where)
  identity = jnp.arange(label.shape[0], dtype=jnp.int32)
  out = {modalities[0]: identity}
  for i, m in enumerate(modalities[1:]):
    rows = _shifted(label, domain, jax.random.fold_in(key, i), mask)
    out[m] = jnp.where(mask, rows, identity)
  return out


def _shifted(
  label: jax.Array, domain: jax.Array, key: jax.Array, mask: jax.Array
) -> jax.Array:
  """Partner of every row; rows outside the mask form a class of their own."""
  n = label.shape[0]
  within, length = jax.random.split(key)
  # Last key of lexsort first: mask, label, domain, then chance.
  order = jnp.lexsort((jax.random.uniform(within, (n,)), domain, label, ~mask))
  sorted_label, sorted_domain = label[order], domain[order]
  outside = ~mask[order]
  starts = lambda *keys: jnp.concatenate(
    [jnp.ones((1,), bool), jnp.stack([a[1:] != a[:-1] for a in keys]).any(axis=0)]
  )[:n]
  new_class = starts(sorted_label, outside)
  of_class = jnp.cumsum(new_class) - 1  # [n] number of the class of each place
  of_block = jnp.cumsum(starts(sorted_label, outside, sorted_domain)) - 1
  size = jnp.bincount(of_class, length=n)[of_class]
  block = jnp.bincount(of_block, length=n)[of_block]
  largest = jax.ops.segment_max(block, of_class, num_segments=n)[of_class]
  place = jnp.arange(n)
  first = jax.ops.segment_min(place, of_class, num_segments=n)[of_class]
  # No row meets its own domain if the shift is in [largest, size - largest].
  low = jnp.where(largest == size, 1, largest)
  high = jnp.where(largest == size, size - 1, jnp.maximum(size - largest, largest))
  draw = jax.random.uniform(length, (n,))[of_class]  # One shift for each class.
  count = jnp.maximum(high - low + 1, 1)
  shift = low + jnp.minimum((draw * count).astype(jnp.int32), count - 1)
  partner = first + (place - first + shift) % size
  return jnp.zeros((n,), jnp.int32).at[order].set(order[partner].astype(jnp.int32))


def re_paired_logits(
  fuse: Fuse,
  embeddings: Mapping[str, jax.Array],
  present: Mapping[str, jax.Array],
  rows: Mapping[str, jax.Array],
) -> jax.Array:
  """Logits ``[n, K]`` of the fused prediction with each modality from another row.

  Args:
    fuse: ``(embeddings, present) -> logits [n, K]``.
    embeddings: ``{m: [n, D_m]}``.
    present: ``{m: bool [n]}``, re-paired with the embeddings.
    rows: ``{m: int [n]}`` of `re_pair_within_class`.

  Raises:
    ValueError: If the dicts do not have the same modalities.

  Example:
    >>> z = {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[10.0], [20.0]])}
    >>> here = {m: jnp.ones(2, bool) for m in z}
    >>> rows = {"a": jnp.array([0, 1]), "b": jnp.array([1, 0])}
    >>> re_paired_logits(lambda z, _: z["a"] + z["b"], z, here, rows).tolist()
    [[21.0], [12.0]]
  """
  for name, other in (("present", present), ("rows", rows)):
    if set(other) != set(embeddings):
      raise ValueError(
        f"{name} has modalities {sorted(other)}, embeddings {sorted(embeddings)}."
      )
  moved = {m: z[rows[m]] for m, z in embeddings.items()}
  return fuse(moved, {m: present[m][rows[m]] for m in embeddings})


def cooccurrence_reliance(
  fuse: Fuse,
  embeddings: Mapping[str, jax.Array],
  present: Mapping[str, jax.Array],
  label: jax.Array,
  rows: Mapping[str, jax.Array],
  where: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Accuracy of the fused prediction lost when modalities are re-paired.

  About 0: the prediction uses each modality for what it says about the label. Large on
  source data: it has learnt pairings that a new domain need not have. A sample of one
  modality, or one whose partners all look alike, loses nothing by construction.

  Args:
    fuse: ``(embeddings, present) -> logits [n, K]``.
    embeddings: ``{m: [n, D_m]}``.
    present: ``{m: bool [n]}``, re-paired with the embeddings.
    label: int ``[n]``.
    rows: ``{m: int [n]}`` of `re_pair_within_class`.
    where: bool ``[n]``, rows to judge.

  Returns:
    ``paired/accuracy``, ``re-paired/accuracy`` and their difference
    ``cooccurrence_reliance``.

  Raises:
    ValueError: If the dicts do not have the same modalities.

  Example:
    >>> z = {"a": jnp.array([[1.0], [-1.0]]), "b": jnp.array([[1.0], [-1.0]])}
    >>> present = {m: jnp.ones(2, bool) for m in z}
    >>> fuse = lambda z, _: jnp.concatenate([z["a"] * z["b"], 0 * z["a"]], axis=1)
    >>> label = jnp.zeros(2, int)  # The class whose modalities have equal signs.
    >>> rows = re_pair_within_class(label, label, jax.random.key(0), ["a", "b"])
    >>> print(cooccurrence_reliance(fuse, z, present, label, rows)
    ...       ["cooccurrence_reliance"])
    1.0
  """
  moved = re_paired_logits(fuse, embeddings, present, rows)
  paired = metrics.accuracy(fuse(embeddings, present), label, where)
  re_paired = metrics.accuracy(moved, label, where)
  return {
    "paired/accuracy": paired,
    "re-paired/accuracy": re_paired,
    "cooccurrence_reliance": paired - re_paired,
  }
