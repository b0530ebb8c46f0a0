"""Ranking metrics of confidence: selective risk, misclassification, OOD detection.

Pure ``jnp``, masked and vmappable as `metrics`. The two conventions of FPR95 in the
literature have two names. Sorting makes them costlier than
`classification_metrics`: O(n log n).
"""

import jax
import jax.numpy as jnp

from mer_dg.evaluation import _masked, metrics

TPR_LEVEL = 0.95


def _counts_at(score, flag, mask):
  """For every row i: kept rows with flag and score > s_i, and with score >= s_i."""
  keep = (mask & flag).astype(jnp.int32)
  order = jnp.argsort(score)
  below = jnp.concatenate([jnp.zeros((1,), jnp.int32), jnp.cumsum(keep[order])])
  ranked, total = score[order], jnp.sum(keep)
  greater = total - below[jnp.searchsorted(ranked, score, side="right")]
  at_least = total - below[jnp.searchsorted(ranked, score, side="left")]
  return greater.astype(jnp.float32), at_least.astype(jnp.float32)


def auroc(
  score: jax.Array, positive: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """Probability that a positive scores above a negative; ties count one half.

  Args:
    score: ``[n]`` floating, not NaN on kept rows.
    positive: bool ``[n]``.
    where: bool ``[n]``, rows to rank.

  Returns:
    Scalar in [0, 1]; NaN if one of the two groups is empty.

  Example:
    >>> print(auroc(jnp.array([0.1, 0.8, 0.5]), jnp.array([False, True, True])))
    1.0
  """
  mask, positive = _masked.full_mask(score.shape[0], where), positive.astype(bool)
  greater, at_least = _counts_at(score, ~positive, mask)
  num_neg = jnp.sum(mask & ~positive).astype(jnp.float32)
  won = num_neg - 0.5 * (greater + at_least)  # Negatives below, half of the ties.
  return _masked.mean_or_nan(_masked.ratio(won, num_neg), mask & positive)


def average_precision(
  score: jax.Array, positive: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """Area under the precision-recall curve as a step function (no interpolation).

  Equals ``sklearn.metrics.average_precision_score``. Args as `auroc`; NaN without
  positives.

  Example:
    >>> score, positive = jnp.array([0.9, 0.5, 0.1]), jnp.array([True, False, True])
    >>> print(f"{average_precision(score, positive):.4f}")  # (1 + 2/3) / 2
    0.8333
  """
  mask, positive = _masked.full_mask(score.shape[0], where), positive.astype(bool)
  _, tp = _counts_at(score, positive, mask)
  _, fp = _counts_at(score, ~positive, mask)
  return _masked.mean_or_nan(_masked.ratio(tp, tp + fp), mask & positive)


def _roc(score, positive, where):
  """TPR and FPR of the threshold at each row's score; NaN outside ``where``."""
  mask, positive = _masked.full_mask(score.shape[0], where), positive.astype(bool)
  rates = []
  for flag in (positive, ~positive):
    _, count = _counts_at(score, flag, mask)
    rate = _masked.ratio(count, jnp.sum(mask & flag).astype(jnp.float32))
    rates.append(jnp.where(mask, rate, jnp.nan))
  return rates


def _lowest_fpr(cost, fpr) -> jax.Array:
  """FPR at the least ``cost`` (NaN: no point); the lower FPR where costs tie."""
  cost = jnp.where(jnp.isnan(cost + fpr), jnp.inf, cost)
  best = jnp.min(cost)
  found = jnp.min(jnp.where(cost == best, fpr, jnp.inf))
  return jnp.where(jnp.isfinite(best), found, jnp.nan)


def fpr95_misd(
  score: jax.Array, positive: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """FPR at the ROC point whose TPR is *nearest* to 0.95 (misclassification).

  All distinct thresholds are points (the peers' ``roc_curve`` default drops
  collinear ones, which can move the nearest point). Of two equally near points the
  lower TPR is taken, of equal TPR the lower FPR. Args as `auroc`.

  Example:
    >>> score, correct = jnp.arange(4.0), jnp.array([False, False, True, True])
    >>> print(fpr95_misd(score, correct))
    0.0
  """
  tpr, fpr = _roc(score, positive, where)
  return _lowest_fpr(jnp.abs(tpr - TPR_LEVEL), fpr)


def fpr95_ood(
  score: jax.Array, positive: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """FPR at the *first* ROC point with TPR >= 0.95 (OOD detection). Args as `auroc`.

  Example:
    >>> score, ood = jnp.arange(4.0), jnp.array([True, False, False, True])
    >>> print(fpr95_ood(score, ood))
    1.0
  """
  tpr, fpr = _roc(score, positive, where)
  return _lowest_fpr(jnp.where(tpr >= TPR_LEVEL, tpr, jnp.nan), fpr)


def aurc(
  score: jax.Array, correct: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """Area under the risk-coverage curve, mean over k of the risk of the top k.

  Equal scores enter with their expected error (the mean over all their orders), so
  the value does not depend on the order of rows. A fraction; papers print x 1000.

  Args:
    score: Confidence ``[n]``, floating.
    correct: bool ``[n]``, whether the prediction is right.
    where: bool ``[n]``, rows to rank.

  Example:
    >>> print(f"{aurc(jnp.array([0.9, 0.1]), jnp.array([True, False])):.3f}")
    0.250
  """
  mask, correct = _masked.full_mask(score.shape[0], where), correct.astype(bool)
  order = jnp.argsort(jnp.where(mask, -score, jnp.inf))
  k = jnp.arange(1, mask.shape[0] + 1, dtype=jnp.float32)  # [n] coverage counts
  everyone = jnp.ones_like(mask)
  rows_before, rows_after = (c[order] for c in _counts_at(score, everyone, mask))
  wrong_before, wrong_after = (c[order] for c in _counts_at(score, ~correct, mask))
  share = _masked.ratio(wrong_after - wrong_before, rows_after - rows_before)
  risk = (wrong_before + (k - rows_before) * share) / k
  return _masked.mean_or_nan(risk, mask[order])


def misclassification_metrics(
  logits: jax.Array, label: jax.Array, where: jax.Array | None = None
) -> dict[str, jax.Array]:
  """How well the maximum softmax probability tells right from wrong predictions.

  Args as `confusion`.

  Returns:
    Fractions: ``aurc``; ``e_aurc`` (AURC above that of a perfect ranking with the
    same error r, ``r + (1 - r) ln(1 - r)``; Geifman et al., Bias-reduced uncertainty
    estimation, 2019); ``auroc_misd``, ``fpr95_misd``, ``aupr_success`` (correct is
    positive); ``aupr_error`` (error is positive, score -MSP). NaN if undefined, as
    when every prediction is right.

  Example:
    >>> logits = jnp.array([[4.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> m = misclassification_metrics(logits, jnp.array([0, 1, 1]))
    >>> print(f"{m['auroc_misd']:.1f} {m['aurc']:.4f}")  # Risks 0, 0, 1/3.
    1.0 0.1111
  """
  mask = _masked.check(logits, label, where)
  score, correct = metrics.msp(logits), jnp.argmax(logits, axis=-1) == label
  area, error = aurc(score, correct, mask), _masked.mean_or_nan(~correct, mask)
  ideal = error + jax.scipy.special.xlog1py(1.0 - error, -error)
  return {
    "aurc": area,
    "e_aurc": area - ideal,
    "auroc_misd": auroc(score, correct, mask),
    "fpr95_misd": fpr95_misd(score, correct, mask),
    "aupr_success": average_precision(score, correct, mask),
    "aupr_error": average_precision(-score, ~correct, mask),
  }


def ood_metrics(
  id_logits: jax.Array,
  ood_logits: jax.Array,
  id_where: jax.Array | None = None,
  ood_where: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Out-of-distribution detection by -MSP; *OOD is the positive class*.

  Args:
    id_logits: In-distribution ``[n, K]``.
    ood_logits: Out-of-distribution ``[m, K]``.
    id_where: bool ``[n]``.
    ood_where: bool ``[m]``.

  Returns:
    ``auroc_ood`` and ``fpr95_ood``, fractions.

  Example:
    >>> m = ood_metrics(jnp.array([[9.0, 0.0]]), jnp.array([[0.1, 0.0]]))
    >>> print(m["auroc_ood"], m["fpr95_ood"])
    1.0 0.0
  """
  score = -jnp.concatenate([metrics.msp(id_logits), metrics.msp(ood_logits)])
  n, m = id_logits.shape[0], ood_logits.shape[0]
  positive = jnp.concatenate([jnp.zeros((n,), bool), jnp.ones((m,), bool)])
  mask = jnp.concatenate(
    [_masked.full_mask(n, id_where), _masked.full_mask(m, ood_where)]
  )
  return {
    "auroc_ood": auroc(score, positive, mask),
    "fpr95_ood": fpr95_ood(score, positive, mask),
  }
