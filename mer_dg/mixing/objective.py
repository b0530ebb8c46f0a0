"""The modality-mix objective."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mer_dg.mixing import _check
from mer_dg.mixing.mix import Mixed


def modality_mix_loss(
  mixed: Mixed,
  logits: jax.Array,
  *,
  unimodal_logits: Mapping[str, jax.Array] | None = None,
  unimodal_weight: jax.typing.ArrayLike = 0.5,
  modality_weights: Mapping[str, jax.typing.ArrayLike] | None = None,
  mask: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  r"""Loss of the mixed rows, in nats: fused plus modality-specific objective.

  .. math::
    L = \frac{\sum_i w_i \ell(l_i, \tilde y_i)}{\max(1, \sum_i w_i)} + \lambda_u
      \sum_m \kappa_m \frac{\sum_i w_i \ell(u_i^m, \tilde y_i^m)}{\max(1, \sum_i w_i)}

  where :math:`\tilde y^m` is the label that modality m of the row shows, and
  :math:`\ell` the softmax cross-entropy against the proportions, or the absolute error
  where targets are ``[B]`` (regression). For modality m, sums run over
  rows that have it. Value and gradient are finite for every weight, whatever the logits
  of rows with weight 0 are, and exactly 0 if all weights are 0.

  Args:
    mixed: From `modality_mix`.
    logits: Fused logits ``[B, K]`` of ``mixed.embeddings``; regression: predictions
      ``[B]`` or ``[B, 1]``.
    unimodal_logits: ``{m: [B, K]}`` of the unimodal heads on ``mixed.embeddings``, or
      None to leave the second sum out.
    unimodal_weight: :math:`\lambda_u`.
    modality_weights: :math:`\kappa_m`, default 1.
    mask: bool ``[B]``, False on padding rows; only for ``eligible_share``.

  Returns:
    ``(loss, aux)``, float32 scalars (float64 for float64 logits). ``aux`` holds, free
    of gradient, ``fused`` and ``unimodal`` (the two sums), ``n_eligible``,
    ``eligible_share`` (of the valid rows), ``n_mixed`` (rows with weight) and, but for
    regression, ``kl``: the mean KL(target || softmax of the logits) of these rows.

  Raises:
    ValueError: Logits of another shape than the targets.

  Example:
    >>> from mer_dg.mixing import modality_mix
    >>> z = {"a": jnp.array([[0.0], [1.0]]), "b": jnp.array([[0.0], [1.0]])}
    >>> mixed = modality_mix(jax.random.key(0), z, jnp.array([0, 1]), num_classes=2)
    >>> loss, aux = modality_mix_loss(mixed, jnp.zeros((2, 2)))
    >>> print(f"{loss:.4f} {aux['kl']:.4f} {aux['n_mixed']:.0f}")  # log 2, KL 0
    0.6931 0.0000 2
  """
  weight = mixed.weight
  b = weight.shape[0]
  logits = _clean(logits, mixed.targets, weight, "logits")
  fused = _mean(_row_loss(logits, mixed.targets), weight)

  unimodal = jnp.zeros((), fused.dtype)
  if unimodal_logits is not None:
    _check.same_modalities("unimodal_logits", unimodal_logits, mixed.source)
    if modality_weights is not None:
      _check.same_modalities("modality_weights", modality_weights, mixed.source)
    for m in sorted(unimodal_logits):
      target = mixed.unimodal_targets[m]
      w = weight * mixed.present[m]
      u = _clean(unimodal_logits[m], target, w, f"unimodal_logits[{m!r}]")
      factor = 1.0 if modality_weights is None else modality_weights[m]
      unimodal += factor * _mean(_row_loss(u, target), w)
  loss = fused + unimodal_weight * unimodal

  valid = jnp.ones((b,), bool) if mask is None else _check.mask("mask", mask, b)
  n_eligible = jnp.sum(mixed.eligible, dtype=jnp.float32)
  aux = {
    "fused": fused,
    "unimodal": unimodal,
    "n_eligible": n_eligible,
    "eligible_share": n_eligible / jnp.maximum(jnp.sum(valid), 1),
    "n_mixed": jnp.sum(weight),
  }
  if mixed.targets.ndim == 2:
    aux["kl"] = _mean(target_kl(mixed.targets, logits), weight)
  return loss, jax.lax.stop_gradient(aux)


def target_kl(targets: jax.Array, logits: jax.Array) -> jax.Array:
  """KL(target || softmax(logits)) per row, in nats: what the network gets wrong.

  Unlike the soft cross-entropy it is 0 for a perfect prediction of the proportions.

  Args:
    targets: Rows of probabilities, ``[B, K]``.
    logits: ``[B, K]``.

  Returns:
    ``[B]``, >= 0 up to rounding.

  Raises:
    ValueError: If the shapes differ.

  Example:
    >>> print(target_kl(jnp.array([[0.5, 0.5]]), jnp.log(jnp.array([[0.5, 0.5]]))))
    [0.]
  """
  if targets.shape != logits.shape:
    raise ValueError(f"targets {targets.shape} and logits {logits.shape} differ.")
  log_p = jax.nn.log_softmax(_check.at_least_float32("logits", logits))
  log_t = jnp.log(jnp.where(targets > 0, targets, 1.0))  # 0 log 0 = 0
  return jnp.sum(jnp.where(targets > 0, targets * (log_t - log_p), 0), axis=-1)


def _clean(logits, target, weight, name):
  """Logits in float32, with rows that do not count replaced by zeros."""
  if target.ndim == 1 and logits.shape == (*target.shape, 1):
    logits = logits[:, 0]
  if logits.shape != target.shape:
    raise ValueError(f"{name} has shape {logits.shape}, expected {target.shape}.")
  rows = (weight > 0).reshape(weight.shape + (1,) * (logits.ndim - 1))
  return jnp.where(rows, _check.at_least_float32(name, logits), 0.0)


def _row_loss(logits, target):
  if target.ndim == 1:
    return jnp.abs(logits - target)
  # 0 log 0 = 0, also where a vast logit leaves no probability to the others
  log_p = jax.nn.log_softmax(logits)
  return -jnp.sum(jnp.where(target > 0, target * log_p, 0), axis=-1)


def _mean(rows, weight):
  return jnp.sum(weight * rows) / jnp.maximum(1.0, jnp.sum(weight))
