"""Numbers that hold back, or bring forward, a modality: weights, rates, directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mer_dg.losses import _rows

# Scores are (sums of) probabilities; one below this is that of a modality without rows.
_NO_SCORE = 1e-8

GAINS = ("absolute", "positive")


def ogm_coefficients(
  scores: Mapping[str, jax.Array], *, alpha: jax.typing.ArrayLike
) -> dict[str, jax.Array]:
  r"""Factors on the encoders' gradients that hold back the stronger modality (OGM-GE).

  .. math:: k_m = 1 - \tanh(\alpha \rho_m) \;\text{ if } \rho_m = s_m / \min_j s_j > 1,
            \quad\text{else } 1

  Two modalities: exactly the paper's ratio to the other one. More (the paper has two):
  every modality that is ahead of the weakest is held back by its lead over that one.

  Args:
    scores: ``{m: s_m}``, two or more scalars >= 0: the sum or mean over the batch of
      the probability that modality m alone gives to the label.
    alpha: Degree of modulation, >= 0.

  Returns:
    ``{m: k_m}`` in [0, 1]; nothing is detached.

  Raises:
    TypeError: If the scores are no dict or not floating.
    ValueError: If there is one modality only or a score is no scalar.

  References:
    Peng et al., Balanced multimodal learning via on-the-fly gradient modulation, CVPR
    2022, eq. 8-10. At exactly equal scores the released code holds one of the two
    back; the paper, and this, neither.

  Example:
    >>> k = ogm_coefficients({"audio": 0.8, "video": 0.4}, alpha=0.5)
    >>> {m: f"{v:.4f}" for m, v in k.items()}  # 1 - tanh(0.5 * 2)
    {'audio': '0.2384', 'video': '1.0000'}
  """
  scores = _rows.scalars("scores", scores, at_least=2)
  lowest = jnp.min(jnp.stack(list(scores.values())))
  ratio = {m: s / jnp.maximum(lowest, _NO_SCORE) for m, s in scores.items()}
  return {m: jnp.where(r > 1, 1 - jnp.tanh(alpha * r), 1) for m, r in ratio.items()}


def modality_dropout_probabilities(
  scores: Mapping[str, jax.Array], *, base: jax.typing.ArrayLike = 0.0
) -> dict[str, jax.Array]:
  r"""Probabilities of dropping each modality, from how far it is ahead (MBCD).

  .. math:: P_m = b + (1 - b) \tanh(r_m - 1) \;\text{ if }
            r_m = \mathrm{mean}_{j \ne m} s_m / s_j > 1, \quad\text{else } 0

  With two modalities only the stronger one is ever dropped; with more, several are.

  Args:
    scores: ``{m: s_m}``, two or more scalars >= 0: the sum or mean over the batch of
      the largest probability of modality m alone (its confidence, not the label's).
    base: b in [0, 1], the least probability of a modality that is ahead.

  Returns:
    ``{m: P_m}`` in [0, 1]; nothing is detached. Drop per sample and modality,
    independently, without rescaling what is kept.

  Raises:
    TypeError: If the scores are no dict or not floating.
    ValueError: If there is one modality only or a score is no scalar.

  References:
    MBCD, AAAI 2026 (adaptive modality dropout).

  Example:
    >>> p = modality_dropout_probabilities({"audio": 0.9, "video": 0.6})
    >>> {m: f"{v:.4f}" for m, v in p.items()}  # tanh(0.9 / 0.6 - 1)
    {'audio': '0.4621', 'video': '0.0000'}
  """
  scores = _rows.scalars("scores", scores, at_least=2)
  out = {}
  for m, s in scores.items():
    others = [s / jnp.maximum(v, _NO_SCORE) for n, v in scores.items() if n != m]
    lead = jnp.mean(jnp.stack(others))
    out[m] = jnp.where(lead > 1, base + (1 - base) * jnp.tanh(lead - 1), 0)
  return out


def gradient_blending_weights(
  train: Mapping[str, jax.Array],
  val: Mapping[str, jax.Array],
  previous_train: Mapping[str, jax.Array],
  previous_val: Mapping[str, jax.Array],
  *,
  eps: jax.typing.ArrayLike,
  gain: str = "absolute",
) -> dict[str, jax.Array]:
  r"""Weights of the heads' losses, from generalisation against overfitting (G-Blend).

  .. math::
    \Delta G = L^{val}_{prev} - L^{val}, \qquad
    \Delta O = (L^{val} - L^{train}) - (L^{val}_{prev} - L^{train}_{prev}), \qquad
    w_m \propto \frac{|\Delta G_m|}{\Delta O_m^2 + \epsilon}

  normalised to sum to one. A head with :math:`\Delta O` exactly 0 (nothing was measured
  in between) gets 0; if all get 0, the weights are equal.

  Args:
    train: ``{head: scalar}``, mean training loss now; heads are modalities and the
      fused classifier, in any order.
    val: Mean validation loss now, of rows that are neither trained on nor used to
      select. Means, not sums over batches: the gap compares the two.
    previous_train: Training loss at the start of the window.
    previous_val: Validation loss at the start of the window.
    eps: Added to the squared overfitting, in squared nats; 1e-6 in public code. Bounds
      the weight of a head that hardly overfits.
    gain: ``"absolute"``, the published meaning (the paper's ratio is
      :math:`|\Delta O / \Delta G|`, and both public implementations take the absolute
      value), which also rewards a validation loss that *rises*. ``"positive"``:
      :math:`\max(\Delta G, 0)` instead, so that such a head gets weight 0. Static.

  Returns:
    ``{head: weight}`` in [0, 1], sum 1; nothing is detached.

  Raises:
    TypeError: If an argument is no dict or a loss not floating.
    ValueError: If the heads differ, a loss is no scalar, or ``gain`` is unknown.

  References:
    Wang et al., What makes training multi-modal classification networks hard?, CVPR
    2020, proposition 1 and algorithm 1.

  Example:
    >>> w = gradient_blending_weights(
    ...   {"audio": 0.5, "fused": 0.5}, {"audio": 1.0, "fused": 0.75},
    ...   {"audio": 1.0, "fused": 1.0}, {"audio": 1.25, "fused": 1.0}, eps=0.0)
    >>> {m: f"{v:.2f}" for m, v in w.items()}  # Equal gains, gaps of 1/4 both
    {'audio': '0.50', 'fused': '0.50'}
  """
  if gain not in GAINS:
    raise ValueError(f"gain={gain!r} is not one of {GAINS}.")
  losses = {
    name: _rows.scalars(name, value)
    for name, value in (
      ("train", train),
      ("val", val),
      ("previous_train", previous_train),
      ("previous_val", previous_val),
    )
  }
  for name, value in losses.items():
    _rows.same_names(name, value, "train", losses["train"])
  heads = list(losses["train"])
  now_train, now_val, old_train, old_val = (
    jnp.stack([value[head] for head in heads]) for value in losses.values()
  )
  gained = old_val - now_val
  gained = jnp.abs(gained) if gain == "absolute" else jnp.maximum(gained, 0)
  overfit = (now_val - now_train) - (old_val - old_train)
  measured = overfit != 0
  # gained / (overfit^2 + eps) relative to the largest of both: no square overflows.
  gap = jnp.hypot(jnp.where(measured, overfit, 1), jnp.sqrt(eps))
  least = jnp.min(gap, where=measured, initial=jnp.inf)
  most = jnp.max(gained, where=measured, initial=0)
  least, most = map(jax.lax.stop_gradient, (least, jnp.where(most > 0, most, 1)))
  raw = jnp.where(measured, gained / most * (least / gap) ** 2, 0)
  total = jnp.sum(raw)
  weights = jnp.where(total > 0, raw / jnp.where(total > 0, total, 1), 1 / len(heads))
  return {head: weights[i] for i, head in enumerate(heads)}


def mmpareto_direction(
  fused_gradient: Any, unimodal_gradient: Any, *, gamma: jax.typing.ArrayLike = 1.5
) -> Any:
  r"""One gradient for an encoder from those of the fused and its own loss (MMPareto).

  .. math:: g = \gamma \, \max\!\left(1, \frac{\|g_f + g_u\|}{\|g'\|}\right) g',
            \qquad g' = 2 w_f g_f + 2 w_u g_u

  If the two agree (positive inner product) both weights are 1/2, which gives
  :math:`\gamma (g_f + g_u)`; otherwise :math:`w_f + w_u = 1` makes the combination
  as short as possible, so that it ascends neither loss, and its length is restored.

  Agreement and weights are those of the whole encoder, all tensors together; the length
  is restored per tensor, as the authors do.

  Args:
    fused_gradient: Pytree of arrays, gradient of the fused loss in one encoder's
      parameters; a single array is an encoder of one tensor.
    unimodal_gradient: The same of the encoder's own loss.
    gamma: Factor on the result.

  Returns:
    Pytree like the arguments. A tensor whose combination is exactly 0 (opposite
    gradients of equal length) stays 0.

  Raises:
    TypeError: If a leaf is not floating.
    ValueError: If the pytrees or shapes differ, or there is no leaf.

  References:
    Wei & Hu, MMPareto, ICML 2024, eq. 9-11 and the released code, min-norm weights
    included (.999 and .001 where a gradient is zero).

  Example:
    >>> print(mmpareto_direction(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))
    [1.5 1.5]
  """
  if jax.tree.structure(fused_gradient) != jax.tree.structure(unimodal_gradient):
    raise ValueError(
      "fused_gradient and unimodal_gradient have different structures: "
      f"{jax.tree.structure(fused_gradient)} and "
      f"{jax.tree.structure(unimodal_gradient)}."
    )
  fused = [_rows.floating("fused_gradient", x) for x in jax.tree.leaves(fused_gradient)]
  own = [
    _rows.floating("unimodal_gradient", x) for x in jax.tree.leaves(unimodal_gradient)
  ]
  if not fused or any(f.shape != u.shape for f, u in zip(fused, own, strict=True)):
    raise ValueError(
      "fused_gradient and unimodal_gradient need tensors of equal shapes, got "
      f"{[f.shape for f in fused]} and {[u.shape for u in own]}."
    )
  peak = jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in (*fused, *own)])
  unit = _rows.power_of_two(jnp.max(peak))  # in which squares do not overflow
  f, u = ([x / unit for x in tree] for tree in (fused, own))
  ours, theirs = _weights(_dot(f, f), _dot(f, u), _dot(u, u))

  def direction(f, u):
    combined = 2 * ours * f + 2 * theirs * u
    length, wanted = _rows.norm(combined.ravel()), _rows.norm((f + u).ravel())
    shorter = (length < wanted) & (length > 0)
    return (
      gamma * jnp.where(shorter, wanted / jnp.where(shorter, length, 1), 1) * combined
    )

  directions = [direction(f, u) for f, u in zip(fused, own, strict=True)]
  leaves, structure = jax.tree.flatten(fused_gradient)
  return jax.tree.unflatten(
    structure,
    [d.astype(jnp.result_type(x)) for d, x in zip(directions, leaves, strict=True)],
  )


def _weights(ff, fu, uu):
  """Weights of the fused gradient and of the other, from their inner products.

  Each from its own numerator: 1 minus the first cancels beside a long gradient.
  """
  apart = ff + uu - 2 * fu  # |f - u|^2 > 0 where they disagree
  apart = jnp.where(apart > 0, apart, 1)
  ours = jnp.where(fu >= ff, 0.999, jnp.where(fu >= uu, 0.001, (uu - fu) / apart))
  theirs = jnp.where(fu >= ff, 0.001, jnp.where(fu >= uu, 0.999, (ff - fu) / apart))
  return jnp.where(fu > 0, 0.5, ours), jnp.where(fu > 0, 0.5, theirs)


def _dot(a, b):
  terms = [jnp.sum(x * y) for x, y in zip(a, b, strict=True)]
  return sum(terms[1:], start=terms[0])


def entropy_weights(
  logits_by_head: Mapping[str, jax.Array],
  *,
  temperature: jax.typing.ArrayLike,
  where: jax.Array | None = None,
) -> jax.Array:
  r"""Weights of the heads of each sample: the surer a head, the more it counts (MOOSA).

  .. math:: w_{ij} = \mathrm{softmax}_j(-H_{ij} / T), \qquad
            H_{ij} = -\sum_k p_{ijk} \log p_{ijk}

  The gradient flows through the weights, as in the authors' code, whose loss is
  :math:`\mathrm{mean}_i \sum_j w_{ij} \mathrm{CE}_{ij}`.

  Args:
    logits_by_head: ``{head: [B, K]}``: modalities and the fused classifier.
    temperature: T > 0, in nats.
    where: bool ``[B]``, rows that count; the others get equal weights.

  Returns:
    ``[B, heads]``, rows sum to one. Columns are in the order of the dict at the call;
    JAX sorts the keys of a dict that is an argument of a transformed function.

  Raises:
    TypeError: If the logits are no dict or not floating.
    ValueError: If shapes do not fit or the temperature is not positive.

  References:
    Dong et al., MOOSA, ECCV 2024 (entropy weighting).

  Example:
    >>> logits = {"audio": jnp.array([[0.0, 0.0]]), "fused": jnp.array([[0.0, 99.0]])}
    >>> print(entropy_weights(logits, temperature=1.0).round(4))  # H = log 2 and 0
    [[0.3333 0.6667]]
  """
  _rows.positive("temperature", temperature)
  logits_by_head = _rows.by_modality("logits_by_head", logits_by_head)
  entropy = []
  for logits in logits_by_head.values():
    mask = _rows.row_mask(where, logits.shape[0])
    log_p = jax.nn.log_softmax(_rows.keep(logits, mask))
    log_p = jnp.where(jnp.isneginf(log_p), 0, log_p)  # 0 log 0 = 0
    entropy.append(-jnp.sum(jnp.exp(log_p) * log_p, axis=-1))
  return jax.nn.softmax(-jnp.stack(entropy, axis=1) / temperature, axis=1)
