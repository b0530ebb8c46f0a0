"""How far each modality has been explored, which one lags behind, and who learns."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mer_dg.mixing import _check
from mer_dg.mixing.confidence import prediction_strength


class Exploration(NamedTuple):
  """Running exploration scores; a state of M scalars, to be checkpointed.

  Attributes:
    score: ``{m: []}`` in [0, 1], the running score s_m.
    seen: ``{m: bool []}``, False until the first row with modality m.
    gap: ``{m: []}`` in [0, 1], ``1 - s_m / max_j s_j``.
    focus: int32 ``[]``, the modality with the lowest score, as an index into the
      *sorted* modality names (the order in which JAX flattens a dict).
  """

  score: dict[str, jax.Array]
  seen: dict[str, jax.Array]
  gap: dict[str, jax.Array]
  focus: jax.Array


def init_exploration(modalities: Sequence[str]) -> Exploration:
  """State before the first batch: no gaps, focus on the first name.

  Args:
    modalities: Names, in any order.

  Returns:
    The state, float32 scalars.

  Raises:
    ValueError: If names are missing or repeated.

  Example:
    >>> print(init_exploration(("video", "audio")).gap["audio"])
    0.0
  """
  if not modalities or len(set(modalities)) != len(modalities):
    raise ValueError(f"modalities must be distinct names, got {modalities!r}.")
  return _derive(
    {m: jnp.zeros(()) for m in modalities},
    {m: jnp.zeros((), bool) for m in modalities},
  )


def exploration_score(
  previous: Exploration,
  unimodal_logits: Mapping[str, jax.Array],
  labels: jax.Array,
  *,
  beta: jax.typing.ArrayLike = 0.9,
  mask: jax.Array | None = None,
  present: Mapping[str, jax.Array] | None = None,
) -> Exploration:
  r"""Updates the running score of each modality (reconstruction).

  .. math::
    s_m \leftarrow \beta s_m + (1 - \beta)\,\mathrm{mean}_i\, q_i^m[y_i], \qquad
    \mathrm{gap}_m = 1 - s_m / \max_j s_j

  with q[y] the probability of the label (``exp(-|error|)`` for regression).

  The first batch that has modality m sets its score instead of averaging it with
  the initial zero, and a batch without m leaves it as it is.

  Args:
    previous: State from `init_exploration` or the last update.
    unimodal_logits: ``{m: [B, K]}`` of the unimodal heads. Without such heads, fused
      logits with all other modalities removed serve the same purpose.
    labels: int ``[B]``; floating for regression, logits are then predictions ``[B]``.
    beta: Decay in [0, 1].
    mask: bool ``[B]``, False on padding rows.
    present: ``{m: bool [B]}``; rows without m do not count for m.

  Returns:
    The new state. No gradient flows through it.

  Raises:
    ValueError: Other modalities than before, unequal shapes.
    TypeError: Wrong dtype of labels or mask.

  Example:
    >>> logits = {"audio": jnp.log(jnp.array([[0.25, 0.75]])),
    ...           "video": jnp.log(jnp.array([[0.50, 0.50]]))}
    >>> state = init_exploration(("audio", "video"))
    >>> state = exploration_score(state, logits, jnp.array([1]))
    >>> print(f"{state.score['audio']:.2f} {state.gap['video']:.4f} {state.focus}")
    0.75 0.3333 1
  """
  b = _check.batch_size("unimodal_logits", unimodal_logits)
  _check.same_modalities("unimodal_logits", unimodal_logits, previous.score)
  valid = jnp.ones((b,), bool) if mask is None else _check.mask("mask", mask, b)
  if present is not None:
    _check.same_modalities("present", present, previous.score)
  score, seen = {}, {}
  for m in sorted(previous.score):
    evidence, _ = prediction_strength(unimodal_logits[m], labels)
    rows = valid
    if present is not None:
      rows &= _check.mask(f"present[{m!r}]", present[m], b)
    n = jnp.sum(rows)
    mean = jnp.sum(jnp.where(rows, evidence, 0.0)) / jnp.maximum(n, 1)
    old, was_seen = previous.score[m], previous.seen[m]
    new = jnp.where(was_seen, beta * old + (1.0 - beta) * mean, mean)
    score[m] = jnp.where(n > 0, new, old).astype(old.dtype)
    seen[m] = was_seen | (n > 0)
  return _derive(score, seen)


def route_gradients(
  embeddings: Mapping[str, jax.Array], exploration: Exploration
) -> dict[str, jax.Array]:
  """The same values; only the encoder of the under-explored modality learns.

  Apply it to the mixed embeddings, before fusion and heads; these keep learning.
  Reconstruction.

  Args:
    embeddings: ``{m: [B, ...]}``, floating.
    exploration: Running scores; may be traced.

  Returns:
    ``{m: [B, ...]}``, equal to ``embeddings`` in value.

  Raises:
    ValueError: If ``exploration`` is of other modalities.

  Example:
    >>> state = init_exploration(("audio", "video"))  # focus 0 is audio
    >>> z = {"audio": jnp.ones(2), "video": jnp.ones(2)}
    >>> total = lambda z: sum(x.sum() for x in route_gradients(z, state).values())
    >>> {m: g.tolist() for m, g in jax.grad(total)(z).items()}
    {'audio': [1.0, 1.0], 'video': [0.0, 0.0]}
  """
  _check.same_modalities("exploration.score", exploration.score, embeddings)
  # A choice, not a product with 0: an infinite cotangent is stopped as well.
  return {
    m: jnp.where(
      exploration.focus == j, embeddings[m], jax.lax.stop_gradient(embeddings[m])
    )
    for j, m in enumerate(sorted(embeddings))
  }


def _derive(score, seen) -> Exploration:
  names = sorted(score)
  s = jnp.stack([score[m] for m in names])
  known = jnp.stack([seen[m] for m in names])
  highest = jnp.max(jnp.where(known, s, 0.0))
  # A modality without data has no gap and is never the focus.
  positive = highest > 0
  gap = (highest - s) / jnp.where(positive, highest, 1.0)
  gap = jnp.where(known & positive, gap, 0.0)
  focus = jnp.argmin(jnp.where(known, s, jnp.inf)).astype(jnp.int32)
  gap = jax.lax.stop_gradient(gap)
  return Exploration(
    score={m: jax.lax.stop_gradient(score[m]) for m in names},
    seen={m: seen[m] for m in names},
    gap={m: gap[j] for j, m in enumerate(names)},
    focus=focus,
  )
