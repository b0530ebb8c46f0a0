"""Mixed samples and their label proportions."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.mixing import _check
from mer_dg.mixing.exploration import Exploration
from mer_dg.mixing.sources import draw_sources

PROPORTIONS = ("uniform", "exploration", "dirichlet")
SWAPS = ("all", "focus_only")
POOLS = ("any", "same_domain", "other_domain")


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
    unimodal_labels: ``{m: [B]}``, label of the sample that modality ``m`` is from.
    unimodal_targets: ``{m: [B, K]}`` (or ``[B]``), what modality ``m`` alone shows:
      one-hot ``unimodal_labels`` unless the swap is soft.
    present: ``{m: bool [B]}``, False where the mixed row lacks the modality.
    eligible: bool ``[B]``, rows that took part in the mixing.
  """

  embeddings: dict[str, jax.Array]
  targets: jax.Array
  weight: jax.Array
  source: dict[str, jax.Array]
  proportions: jax.Array
  unimodal_labels: dict[str, jax.Array]
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
  domains: jax.Array | None = None,
  num_domains: int | None = None,
  proportions: str | Mapping[str, jax.typing.ArrayLike] = "uniform",
  swap: str = "all",
  pool: str = "any",
  soft: jax.typing.ArrayLike | None = None,
  shared: bool = False,
  exploration: Exploration | None = None,
  eta: jax.typing.ArrayLike = 1.0,
  concentration: jax.typing.ArrayLike = 1.0,
  require_distinct: bool = True,
) -> Mixed:
  r"""Builds mixed samples: each modality of a row comes from another sample.

  .. math::
    \tilde z_i^m = a_i^m z_{\sigma_m(i)}^m + (1 - a_i^m) z_i^m, \qquad
    \tilde y_i = \sum_m \omega_i^m
      \left[a_i^m e(y_{\sigma_m(i)}) + (1 - a_i^m) e(y_i)\right]

  with a = 1 for the hard swap (default). Each :math:`\sigma_m` permutes the eligible
  rows that have modality m, and leaves all other rows in place. Under the hard swap
  one modality, drawn at random, is the *anchor* and stays; the other modalities of
  the row come from distinct other samples (from at least one other sample if there
  are fewer eligible rows than modalities). Up to the order of the rows these are the
  mixed samples that one gets by shifting every modality.

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
    domains: int ``[B]``, needed for a ``pool`` other than ``"any"``.
    num_domains: Static number of domains, only used to reject an impossible pool.
    proportions: Shares :math:`\omega`. ``"uniform"``; ``"exploration"``, proportional
      to ``1 + eta * gap_m``; ``"dirichlet"``, random, with :math:`\tilde z^m` scaled
      by :math:`M \omega^m` so that the target stays visible in the input; or
      ``{m: [] or [B]}``, which must sum to one.
    swap: ``"all"``, or ``"focus_only"``: the row keeps its own modalities except
      for the under-explored one.
    pool: Where sources come from: ``"any"`` eligible row; ``"same_domain"`` as the
      row; ``"other_domain"``, every modality that does not stay comes from a domain
      other than that of row i. A row for which this cannot be had weighs nothing.
    soft: None for the hard swap, or :math:`\alpha > 0` for
      :math:`a_i^m \sim \mathrm{Beta}(\alpha, \alpha)`; no modality stays then.
    shared: With ``soft``: the same source and the same ``a`` for all modalities of a
      row, which is feature-level Mixup. Static.
    exploration: Running scores, needed for ``"exploration"`` and ``"focus_only"``.
    eta: Strength of the exploration shares, >= 0.
    concentration: Parameter of the symmetric Dirichlet, > 0.
    require_distinct: Rows whose sources all share one label weigh nothing. Static.
      A batch with a single modality therefore has no mixed row; without it, and
      under the hard swap, it returns the eligible rows themselves.

  Returns:
    The mixed rows. Fewer than two eligible rows give the batch itself, weight 0.
    Targets, shares and weights carry no gradient.

  Raises:
    ValueError: Unknown word, unequal batch sizes, labels out of range, shares that
      do not sum to one, a missing argument, or a pool that static information (or,
      outside of ``jit``, the data) shows to be impossible.
    TypeError: Wrong dtype or type of an argument.

  References:
    Lu, Tan and Han, Modality-Mix learning, IEEE TNNLS 2026.
    Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018 (``shared``).

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
  embeddings = {m: jnp.asarray(z) for m, z in embeddings.items()}
  names = sorted(embeddings)
  _check_options(embeddings, proportions, swap, pool, soft, shared, exploration)
  _check.at_least("eta", eta, 0)
  _check.at_least("concentration", concentration, 0, strict=True)
  if num_classes is None:
    labels = _check.targets(labels, b)
    encoded = labels
  else:
    labels = _check.class_labels(labels, b, num_classes)
    encoded = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  domains = _check_pool(pool, domains, num_domains, b)
  has = _presence(names, present, b)  # [M, B]
  eligible = jnp.ones((b,), bool) if eligible is None else eligible
  eligible = _check.mask("eligible", eligible, b) & jnp.any(has, axis=0)

  key_order, key_anchor, key_share, key_amount = jax.random.split(key, 4)
  member = eligible if present is None else eligible[None, :] & has
  ranks = _ranks(key_anchor, len(names), swap, soft, shared, exploration)
  source, pool_size = draw_sources(
    key_order, member, ranks, group=domains, other_group=pool == "other_domain"
  )  # [M, B] each
  share = _shares(key_share, names, has, proportions, exploration, eta, concentration)
  amount = None if soft is None else _amounts(key_amount, source, soft, shared)

  scale = None
  if isinstance(proportions, str) and proportions == "dirichlet":
    count = jnp.maximum(jnp.sum(has, axis=0), 1)  # modalities of the row, [B]
    scale = jnp.where(eligible[None, :], share * count[None, :], 1.0)

  mixed, source_labels, shown = {}, {}, {}
  for j, m in enumerate(names):
    a = None if amount is None else amount[j]
    mixed[m] = _take(embeddings[m], source[j], a)
    if scale is not None:
      mixed[m] *= _over(scale[j].astype(mixed[m].dtype), mixed[m])
    source_labels[m] = labels[source[j]]
    shown[m] = jax.lax.stop_gradient(_take(encoded, source[j], a))
  targets = sum(_over(share[j], shown[m]) * shown[m] for j, m in enumerate(names))

  counts = eligible & jnp.any((pool_size >= 2) & has, axis=0)
  if pool == "other_domain":
    leaves = domains[source] != domains[None, :]
    counts &= jnp.all(leaves | ~has | (ranks == 0)[:, None], axis=0)
  if require_distinct:
    counts &= _labels_differ(labels, source, has, own=soft is not None)

  return Mixed(
    embeddings={m: mixed[m] for m in embeddings},
    targets=jax.lax.stop_gradient(targets),
    weight=counts.astype(jnp.float32),
    source={m: source[names.index(m)] for m in embeddings},
    proportions=jax.lax.stop_gradient(share.T),
    unimodal_labels={m: source_labels[m] for m in embeddings},
    unimodal_targets={m: shown[m] for m in embeddings},
    present={m: has[names.index(m)] for m in embeddings},
    eligible=eligible,
  )


def _check_options(embeddings, proportions, swap, pool, soft, shared, exploration):
  _check.one_of("swap", swap, SWAPS)
  _check.one_of("pool", pool, POOLS)
  if isinstance(proportions, str):
    _check.one_of("proportions", proportions, PROPORTIONS)
  else:
    _check.same_modalities("proportions", proportions, embeddings)
  if exploration is None:
    for name, value, word in (
      ("proportions", proportions, "exploration"),
      ("swap", swap, "focus_only"),
    ):
      if isinstance(value, str) and value == word:
        raise ValueError(f"{name}={word!r} needs the argument exploration.")
  else:
    _check.same_modalities("exploration.score", exploration.score, embeddings)
  _check.at_least("soft", soft, 0, strict=True)  # None is the hard swap
  if shared and soft is None:
    raise ValueError(
      "shared=True needs soft: with a hard swap it would return whole samples."
    )
  if shared and swap == "focus_only":
    raise ValueError("shared=True moves every modality, swap must be 'all'.")
  if soft is not None or proportions == "dirichlet":
    for m, z in embeddings.items():
      if not jnp.issubdtype(z.dtype, jnp.floating):
        raise TypeError(
          f"embeddings[{m!r}] must be floating to be scaled, got {z.dtype}."
        )


def _check_pool(pool, domains, num_domains, size):
  """Domains as ``[B]``, or None for the pool of all rows."""
  if pool == "any":
    return None
  if domains is None:
    raise ValueError(f"pool={pool!r} needs the argument domains.")
  values = np.asarray(domains) if _check.concrete(domains) else None
  domains = _check.vector("domains", domains, size)
  if not jnp.issubdtype(domains.dtype, jnp.integer):
    raise TypeError(f"domains must be integers, got {domains.dtype}.")
  if pool == "other_domain":
    if num_domains is not None and num_domains < 2:
      raise ValueError(
        f"pool='other_domain' needs at least two domains, num_domains={num_domains}."
      )
    if values is not None and np.unique(values).size < 2:
      raise ValueError(
        "pool='other_domain' needs at least two domains in the batch, domains holds "
        f"only {np.unique(values).tolist()}."
      )
  return domains


def _presence(names, present, size):
  """Which rows have which modality, bool ``[M, B]``."""
  if present is None:
    return jnp.ones((len(names), size), bool)
  _check.same_modalities("present", present, dict.fromkeys(names))
  return jnp.stack([_check.mask(f"present[{m!r}]", present[m], size) for m in names])


def _ranks(key, count, swap, soft, shared, exploration):
  """Shift ranks ``[M]`` for `draw_sources`: 0 stays, equal ranks stay together."""
  index = jnp.arange(count, dtype=jnp.int32)
  if swap == "focus_only":
    return (index == exploration.focus).astype(jnp.int32)
  if shared:
    return jnp.ones((count,), jnp.int32)
  if soft is not None:
    return index + 1
  anchor = jax.random.randint(key, (), 0, count, dtype=jnp.int32)
  return (index - anchor) % count


def _shares(key, names, has, proportions, exploration, eta, concentration):
  """Shares over the modalities of each row, ``[M, B]``, columns sum to one."""
  count, size = has.shape
  if not isinstance(proportions, str):
    for m, x in proportions.items():
      if jnp.shape(x) not in ((), (size,)):
        raise ValueError(
          f"proportions[{m!r}] must have shape () or ({size},), got {jnp.shape(x)}."
        )
    if all(_check.concrete(x) for x in proportions.values()):
      _check_shares({m: np.asarray(x) for m, x in proportions.items()})
    share = [jnp.asarray(proportions[m], jnp.float32) for m in names]
    share = jnp.stack([jnp.broadcast_to(x, (size,)) for x in share])
  elif proportions == "exploration":
    gap = jnp.stack([jnp.asarray(exploration.gap[m], jnp.float32) for m in names])
    share = jnp.broadcast_to((1.0 + eta * gap)[:, None], (count, size))
  elif proportions == "dirichlet":
    alpha = jnp.full((count,), concentration, jnp.float32)
    share = _per_row(key, size, lambda k: jax.random.dirichlet(k, alpha)).T
  else:
    share = jnp.ones((count, size), jnp.float32)
  share = jnp.where(has, share, 0.0)
  total = jnp.sum(share, axis=0)
  # A row that has none of the modalities with mass keeps a valid target.
  some = (total > 0)[None, :]
  share = jnp.where(some, share / jnp.where(some, total[None, :], 1.0), 1.0 / count)
  return jax.lax.stop_gradient(share)


def _check_shares(share):
  total = sum(share.values())
  if any((x < 0).any() for x in share.values()):
    raise ValueError(f"proportions must be >= 0, got {share}.")
  if np.abs(total - 1.0).max(initial=0.0) > 1e-4:
    raise ValueError(f"proportions must sum to one, got {share} with sum {total}.")


def _amounts(key, source, soft, shared):
  """Mixing amounts a, ``[M, B]``."""
  count, size = source.shape
  alpha = jnp.asarray(soft, jnp.float32)
  drawn = 1 if shared else count
  a = _per_row(key, size, lambda k: jax.random.beta(k, alpha, alpha, (drawn,))).T
  return jax.lax.stop_gradient(jnp.broadcast_to(a, (count, size)))


def _per_row(key, size, draw):
  """One draw per row from a key of its own, so that padding changes no row."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(size))
  return jax.vmap(draw)(keys)


def _take(x, source, a):
  """Rows ``x[source]``, or the blend of them with ``x`` if ``a`` is given."""
  # Sources are a permutation: the gradient is a scatter without collisions.
  moved = x.at[source].get(unique_indices=True, mode="promise_in_bounds")
  if a is None:
    return moved
  return x + _over(a.astype(x.dtype), x) * (moved - x)  # exactly x where moved == x


def _over(row, x):
  """Reshapes ``[B]`` to broadcast over the trailing axes of ``x``."""
  return row.reshape(row.shape + (1,) * (x.ndim - 1))


def _labels_differ(labels, source, has, *, own):
  """True where the sources of a row do not all share one label, ``[B]``."""
  of_source = labels[source]  # [M, B]
  if own:  # a blend also shows the row's own sample
    of_source = jnp.concatenate([of_source, labels[None, :]])
    has = jnp.concatenate([has, jnp.any(has, axis=0)[None, :]])
  first = jnp.take_along_axis(of_source, jnp.argmax(has, axis=0)[None, :], axis=0)
  return jnp.any(has & (of_source != first), axis=0)
