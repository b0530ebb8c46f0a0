"""How far each modality has been explored, and which one lags behind."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mer_dg.mixing import _check
from mer_dg.mixing.confidence import prediction_strength

SIGNALS = ("true_class", "kl_uniform", "loss_drop")


class Exploration(NamedTuple):
  """Running exploration scores; a state of M scalars, to be checkpointed.

  Attributes:
    score: ``{m: []}`` in [0, 1], the running score s_m.
    seen: ``{m: bool []}``, False until the first row with modality m.
    gap: ``{m: []}`` in [0, 1], ``1 - s_m / max_j s_j``.
    share: ``{m: []}``, ``softmax(-s / temperature)``; sums to one.
    focus: int32 ``[]``, the modality with the lowest score, as an index into the
      *sorted* modality names (the order in which JAX flattens a dict).
  """

  score: dict[str, jax.Array]
  seen: dict[str, jax.Array]
  gap: dict[str, jax.Array]
  share: dict[str, jax.Array]
  focus: jax.Array


def init_exploration(modalities: Sequence[str]) -> Exploration:
  """State before the first batch: no gaps, equal shares, focus on the first name.

  Args:
    modalities: Names, in any order.

  Returns:
    The state, float32 scalars.

  Raises:
    ValueError: If names are missing or repeated.

  Example:
    >>> print(init_exploration(("video", "audio")).share["audio"])
    0.5
  """
  if not modalities or len(set(modalities)) != len(modalities):
    raise ValueError(f"modalities must be distinct names, got {modalities!r}.")
  return _derive(
    {m: jnp.zeros(()) for m in modalities},
    {m: jnp.zeros((), bool) for m in modalities},
    1.0,
  )


def exploration_score(
  previous: Exploration,
  unimodal_logits: Mapping[str, jax.Array],
  labels: jax.Array,
  *,
  beta: jax.typing.ArrayLike = 0.9,
  temperature: jax.typing.ArrayLike = 1.0,
  mask: jax.Array | None = None,
  present: Mapping[str, jax.Array] | None = None,
  signal: str = "true_class",
  fused_logits: jax.Array | None = None,
) -> Exploration:
  r"""Updates the running score of each modality (reconstruction).

  .. math::
    s_m \leftarrow \beta s_m + (1 - \beta)\,\mathrm{mean}_i\, c_i^m, \qquad
    \mathrm{gap}_m = 1 - s_m / \max_j s_j, \qquad
    \pi = \mathrm{softmax}(-s / T)

  The first batch that has modality m sets its score instead of averaging it with
  the initial zero, and a batch without m leaves it as it is.

  Args:
    previous: State from `init_exploration` or the last update.
    unimodal_logits: ``{m: [B, K]}`` of the unimodal heads. Without such heads, fused
      logits with all other modalities removed serve the same purpose. With
      ``signal="loss_drop"``: fused logits with *m itself* removed.
    labels: int ``[B]``; floating for regression, logits are then predictions ``[B]``.
    beta: Decay in [0, 1].
    temperature: Temperature T of the shares, > 0.
    mask: bool ``[B]``, False on padding rows.
    present: ``{m: bool [B]}``; rows without m do not count for m.
    signal: Evidence c of a row: ``"true_class"``, the probability of its label
      (``exp(-|error|)`` for regression); ``"kl_uniform"``, KL(q || uniform) / log K,
      the criterion of Data Remixing; ``"loss_drop"``, the part of the fused
      probability of the label that is lost without m,
      :math:`\max(0, 1 - p_{-m}[y] / p[y])`.
    fused_logits: ``[B, K]`` with all modalities, needed by ``"loss_drop"``.

  Returns:
    The new state. No gradient flows through it.

  Raises:
    ValueError: Unknown signal, other modalities than before, unequal shapes.
    TypeError: Wrong dtype of labels or mask.

  References:
    Ma et al., Data Remixing, ICML 2025 (``"kl_uniform"``).

  Example:
    >>> logits = {"audio": jnp.log(jnp.array([[0.25, 0.75]])),
    ...           "video": jnp.log(jnp.array([[0.50, 0.50]]))}
    >>> state = init_exploration(("audio", "video"))
    >>> state = exploration_score(state, logits, jnp.array([1]))
    >>> print(f"{state.score['audio']:.2f} {state.gap['video']:.4f} {state.focus}")
    0.75 0.3333 1
  """
  _check.one_of("signal", signal, SIGNALS)
  b = _check.batch_size("unimodal_logits", unimodal_logits)
  _check.same_modalities("unimodal_logits", unimodal_logits, previous.score)
  if (fused_logits is None) == (signal == "loss_drop"):
    raise ValueError(
      f"fused_logits is needed by signal='loss_drop' and by no other, got {signal!r}."
    )
  valid = jnp.ones((b,), bool) if mask is None else _check.mask("mask", mask, b)
  if present is not None:
    _check.same_modalities("present", present, previous.score)
  score, seen = {}, {}
  for m in sorted(previous.score):
    evidence = _evidence(unimodal_logits[m], labels, signal, fused_logits)
    rows = valid
    if present is not None:
      rows &= _check.mask(f"present[{m!r}]", present[m], b)
    n = jnp.sum(rows)
    mean = jnp.sum(jnp.where(rows, evidence, 0.0)) / jnp.maximum(n, 1)
    old, was_seen = previous.score[m], previous.seen[m]
    new = jnp.where(was_seen, beta * old + (1.0 - beta) * mean, mean)
    score[m] = jnp.where(n > 0, new, old).astype(old.dtype)
    seen[m] = was_seen | (n > 0)
  return _derive(score, seen, temperature)


def _evidence(logits, labels, signal, fused_logits):
  strength, _ = prediction_strength(logits, labels)
  if signal == "true_class":
    return strength
  if logits.ndim != 2:
    raise ValueError(f"signal={signal!r} needs class logits, got shape {logits.shape}.")
  if signal == "loss_drop":
    full, _ = prediction_strength(fused_logits, labels)
    tiny = jnp.finfo(full.dtype).tiny
    return jnp.maximum(0.0, 1.0 - strength / jnp.maximum(full, tiny))
  log_q = jax.nn.log_softmax(_check.at_least_float32(logits))
  log_k = jnp.log(float(max(logits.shape[-1], 2)))  # one class: 0 / log 2 = 0
  q = jnp.exp(log_q)
  kl = jnp.sum(jnp.where(q > 0, q * log_q, 0.0), axis=-1)  # 0 log 0 = 0
  kl += jnp.log(float(logits.shape[-1]))
  return jax.lax.stop_gradient(jnp.clip(kl / log_k, 0.0, 1.0))


def _derive(score, seen, temperature) -> Exploration:
  names = sorted(score)
  s = jnp.stack([score[m] for m in names])
  known = jnp.stack([seen[m] for m in names])
  highest = jnp.max(jnp.where(known, s, 0.0))
  # A modality without data has no gap, an average share, and is never the focus.
  positive = highest > 0
  gap = (highest - s) / jnp.where(positive, highest, 1.0)
  gap = jnp.where(known & positive, gap, 0.0)
  mean = jnp.sum(jnp.where(known, s, 0.0)) / jnp.maximum(jnp.sum(known), 1)
  share = jax.nn.softmax(-jnp.where(known, s, mean) / temperature)
  focus = jnp.argmin(jnp.where(known, s, jnp.inf)).astype(jnp.int32)
  gap, share = jax.lax.stop_gradient((gap, share))
  return Exploration(
    score={m: jax.lax.stop_gradient(score[m]) for m in names},
    seen={m: seen[m] for m in names},
    gap={m: gap[j] for j, m in enumerate(names)},
    share={m: share[j] for j, m in enumerate(names)},
    focus=focus,
  )
