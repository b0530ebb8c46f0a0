"""Mixed samples and their label proportions."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mer_dg.contracts import as_array
from mer_dg.mixing import _check
from mer_dg.mixing.exploration import Exploration

PROPORTIONS = ("uniform", "exploration")


class Mixed(NamedTuple):
  """A batch of modality-mixed samples. Columns follow the *sorted* modality names.

  Sorted names are the order in which JAX flattens a dict, so nothing here changes
  with the order in which a dict was written.

  Attributes:
    embeddings: ``{m: [B, ...]}``, modality ``m`` of row ``i`` from ``source[m][i]``.
    targets: Label proportions ``[B, K]``, rows sum to one; ``[B]`` for regression.
    weight: Row weights ``[B]``, 1 for a mixed row that counts, 0 otherwise.
    source: ``{m: int32 [B]}``, a permutation of the rows per modality.
    proportions: Share of each modality in the target, ``[B, M]``, rows sum to one.
    unimodal_targets: ``{m: [B, K]}`` (or ``[B]``), what modality ``m`` alone shows:
      the one-hot label of the sample that it is from.
    present: ``{m: bool [B]}``, False where the mixed row lacks the modality.
    eligible: bool ``[B]``, rows that took part in the mixing.
  """

  embeddings: dict[str, jax.Array]
  targets: jax.Array
  weight: jax.Array
  source: dict[str, jax.Array]
  proportions: jax.Array
  unimodal_targets: dict[str, jax.Array]
  present: dict[str, jax.Array]
  eligible: jax.Array


def modality_mix(
  key: jax.Array,
  embeddings: Mapping[str, jax.Array],
  labels: jax.Array,
  *,
  num_classes: int | None,
  eligible: jax.Array | None = None,
  present: Mapping[str, jax.Array] | None = None,
  proportions: str = "uniform",
  exploration: Exploration | None = None,
  eta: jax.typing.ArrayLike = 1.0,
) -> Mixed:
  r"""Builds mixed samples: each modality of a row comes from another sample.

  .. math::
    \tilde z_i^m = z_{\sigma_m(i)}^m, \qquad
    \tilde y_i = \sum_m \omega_i^m e(y_{\sigma_m(i)})

  Each :math:`\sigma_m` permutes the eligible rows that have modality m, and leaves all
  other rows in place. One modality, drawn at random, is the *anchor* and stays; the
  other modalities of the row come from distinct other samples (from at least one other
  sample if there are fewer eligible rows than modalities). Up to the order of the rows
  these are the mixed samples that one gets by shifting every modality.

  All choices made here are a reconstruction; the published abstract fixes only that
  mixed samples combine modalities of different samples and that their target is a
  probability vector.

  Args:
    key: PRNG key. The draw depends on ``key`` and on which rows are eligible, not on
      labels, values, padding behind the last eligible row, or the order of dicts.
    embeddings: ``{m: [B, ...]}``; tokens ``[B, T, D]`` or raw inputs do as well.
    labels: int ``[B]``; floating ``[B]`` for regression.
    num_classes: K, static; None for regression.
    eligible: bool ``[B]``, rows with a strong prediction (default: all). Padding rows
      must be False here.
    present: ``{m: bool [B]}``. A missing modality is never a source; a row without
      modality m stays without it, and shares are taken over what is present.
    proportions: Shares :math:`\omega`: ``"uniform"``, or ``"exploration"``,
      proportional to ``1 + eta * gap_m``. Static.
    exploration: Running scores, needed for ``"exploration"``.
    eta: Strength of the exploration shares, >= 0.

  Returns:
    The mixed rows. Rows whose sources all share one label weigh nothing, so a batch
    with a single modality has no mixed row. Fewer than two eligible rows give the
    batch itself, weight 0. Targets, shares and weights carry no gradient.

  Raises:
    ValueError: Unknown word, unequal batch sizes, labels out of range, or a missing
      argument.
    TypeError: Wrong dtype or type of an argument.

  References:
    Lu, Tan and Han, Modality-Mix learning, IEEE TNNLS 2026.

  Example:
    >>> z = {"audio": jnp.array([[0.0], [1.0]]), "video": jnp.array([[0.0], [1.0]])}
    >>> mixed = modality_mix(jax.random.key(0), z, jnp.array([0, 1]), num_classes=2)
    >>> print(mixed.targets)
    [[0.5 0.5]
     [0.5 0.5]]
    >>> bool((mixed.embeddings["audio"] == mixed.embeddings["video"]).any())
    False
  """
  b = _check.batch_size("embeddings", embeddings)
  embeddings = {m: as_array(f"embeddings[{m!r}]", z) for m, z in embeddings.items()}
  names = sorted(embeddings)
  _check.one_of("proportions", proportions, PROPORTIONS)
  _check.at_least("eta", eta, 0)
  gap = jnp.zeros(len(names))
  if exploration is not None:
    _check.same_modalities("exploration.score", exploration.score, embeddings)
  if proportions == "exploration":
    if exploration is None:
      raise ValueError("proportions='exploration' needs the argument exploration.")
    gap = jnp.stack([jnp.asarray(exploration.gap[m], jnp.float32) for m in names])
  if num_classes is None:
    labels = encoded = _check.targets(labels, b)
  else:
    labels = _check.class_labels(labels, b, num_classes)
    encoded = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  has = jnp.ones((len(names), b), bool)
  if present is not None:
    _check.same_modalities("present", present, embeddings)
    has = jnp.stack([_check.mask(f"present[{m!r}]", present[m], b) for m in names])
  eligible = jnp.ones((b,), bool) if eligible is None else eligible
  eligible = _check.mask("eligible", eligible, b) & jnp.any(has, axis=0)

  member = eligible[None, :] & has
  source = _draw_sources(key, member if present is not None else eligible, len(names))
  share = _shares(1.0 + eta * gap, has)
  mixed, shown = {}, {}
  for j, m in enumerate(names):
    # A permutation: the gradient is a scatter without collisions.
    mixed[m] = (
      embeddings[m].at[source[j]].get(unique_indices=True, mode="promise_in_bounds")
    )
    shown[m] = encoded[source[j]]
  rows = (...,) + (None,) * (encoded.ndim - 1)
  targets = sum(share[j][rows] * shown[m] for j, m in enumerate(names))

  counts = eligible & jnp.any((jnp.sum(member, axis=1) >= 2)[:, None] & has, axis=0)
  counts &= _labels_differ(labels[source], has)
  stop = jax.lax.stop_gradient
  return Mixed(
    embeddings={m: mixed[m] for m in embeddings},
    targets=stop(targets),
    weight=counts.astype(jnp.float32),
    source={m: source[names.index(m)] for m in embeddings},
    proportions=stop(share.T),
    unimodal_targets={m: stop(shown[m]) for m in embeddings},
    present={m: has[names.index(m)] for m in embeddings},
    eligible=eligible,
  )


def _draw_sources(key: jax.Array, member: jax.Array, count: int) -> jax.Array:
  r"""A permutation of the member rows for each of ``count`` modalities, ``[M, B]``.

  Members (bool ``[B]``, or ``[M, B]`` if they differ between modalities) are brought
  into a random order, the same for all modalities, and modality ``m`` takes its rows
  from :math:`s_m` places further on, cyclically. The anchor has :math:`s_m = 0`; the
  others get distinct shifts in :math:`\{1, \dots, n-1\}` as long as there are enough,
  and reuse them after that. Other rows map to themselves.

  Draws belong to rows, not to the batch size: members at the front of a longer batch
  whose rest is not a member get the sources they get in the shorter one.
  """
  key_sources, key_anchor = jax.random.split(key)
  key_order, key_shift = jax.random.split(key_sources)
  b = member.shape[-1]
  order_key = jax.random.uniform(key_order, (b,), jnp.float32)
  # 31 random bits; taken modulo n - 1 < B the bias is below B / 2^31.
  shift = jax.random.randint(key_shift, (), 0, jnp.iinfo(jnp.int32).max, jnp.int32)
  index = jnp.arange(b, dtype=jnp.int32)
  anchor = jax.random.randint(key_anchor, (), 0, count, dtype=jnp.int32)
  ranks = (jnp.arange(count, dtype=jnp.int32) - anchor) % count

  def one(member, rank):
    order = jnp.lexsort((order_key, ~member)).astype(jnp.int32)  # members first
    n = jnp.sum(member, dtype=jnp.int32)
    others = jnp.maximum(n - 1, 1)  # number of shifts that move something
    place = (index + 1 + (shift % others + rank - 1) % others) % jnp.maximum(n, 1)
    place = jnp.where((index < n) & (rank > 0), place, index)
    return jnp.zeros_like(index).at[order].set(order[place], unique_indices=True)

  # An unbatched `member` is sorted once for all modalities.
  return jax.vmap(one, in_axes=(0 if member.ndim == 2 else None, 0))(member, ranks)


def _shares(weight: jax.Array, has: jax.Array) -> jax.Array:
  """Shares of the modalities that each row has, ``[M, B]``, columns sum to one."""
  share = jnp.where(has, weight[:, None], 0.0)
  total = jnp.sum(share, axis=0, keepdims=True)
  # A row that has no modality keeps a valid target.
  return jnp.where(total > 0, share / jnp.where(total > 0, total, 1.0), 1 / len(has))


def _labels_differ(labels: jax.Array, has: jax.Array) -> jax.Array:
  """True where the labels ``[M, B]`` that a row shows are not all the same, ``[B]``."""
  first = jnp.take_along_axis(labels, jnp.argmax(has, axis=0)[None, :], axis=0)
  return jnp.any(has & (labels != first), axis=0)
