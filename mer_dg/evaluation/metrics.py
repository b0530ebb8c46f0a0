"""Metrics of a classifier: pure ``jnp`` functions, masked, vmappable over runs.

Every function takes ``where`` (bool ``[n]``, ``None`` means all rows) and equals
the same function on the kept rows alone. A metric that is undefined (no rows, no
errors to rank, …) is NaN, never a made-up number.
"""

import jax
import jax.numpy as jnp

from mer_dg.evaluation import _masked
from mer_dg.losses import cross_entropy

NUM_BINS = 15  # Bins of the calibration errors.


def confusion(
  logits: jax.Array, label: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """Counts of (true class, predicted class); the prediction is the first arg max.

  Args:
    logits: ``[n, K]`` floating.
    label: int ``[n]`` in ``[0, K)``.
    where: bool ``[n]``, rows to count.

  Returns:
    float32 ``[K, K]``, rows = true class; exact up to 2^24 samples.

  Example:
    >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> confusion(logits, jnp.array([0, 1, 1])).tolist()
    [[1.0, 0.0], [1.0, 1.0]]
  """
  mask = _masked.check(logits, label, where)
  k = logits.shape[1]
  true = jax.nn.one_hot(label, k, dtype=jnp.float32) * mask[:, None]
  pred = jax.nn.one_hot(jnp.argmax(logits, axis=-1), k, dtype=jnp.float32)
  return true.T @ pred  # 0/1 entries: exact at any matmul precision.


def accuracy(
  logits: jax.Array, label: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """Share of rows whose largest logit is the label, in [0, 1]; NaN without rows.

  Args and shapes as `confusion`.

  Example:
    >>> print(accuracy(jnp.array([[2.0, 0.0], [1.0, 0.0]]), jnp.array([0, 1])))
    0.5
  """
  mask = _masked.check(logits, label, where)
  return _masked.mean_or_nan(jnp.argmax(logits, axis=-1) == label, mask)


def per_class_recall(
  logits: jax.Array, label: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """Recall of each class, ``[K]``; NaN for a class that does not occur.

  Args and shapes as `confusion`.

  Example:
    >>> logits = jnp.array([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    >>> per_class_recall(logits, jnp.array([0, 1])).tolist()
    [1.0, 0.0, nan]
  """
  counts = confusion(logits, label, where)
  return _masked.ratio(jnp.diagonal(counts), jnp.sum(counts, axis=1))


def balanced_accuracy(
  logits: jax.Array, label: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """Mean recall over the classes that occur (macro accuracy), in [0, 1].

  Equals ``sklearn.metrics.balanced_accuracy_score``. Args as `confusion`.

  Example:
    >>> logits = jnp.array([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    >>> print(balanced_accuracy(logits, jnp.array([0, 0, 1])))
    0.5
  """
  recall = per_class_recall(logits, label, where)
  return _masked.mean_or_nan(recall, ~jnp.isnan(recall))


def nll(
  logits: jax.Array, label: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """Mean negative log-likelihood of the label, in nats. Args as `confusion`.

  Example:
    >>> print(f"{nll(jnp.zeros((1, 2)), jnp.array([0])):.4f}")
    0.6931
  """
  mask = _masked.check(logits, label, where)
  return jnp.where(jnp.any(mask), cross_entropy(logits, label, where=mask), jnp.nan)


def margin(
  logits: jax.Array, label: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """Mean of the label's logit minus the largest other one. Args as `confusion`.

  It goes on where accuracy is at its top: a prediction that is still right, but less
  surely, loses margin.

  Example:
    >>> print(margin(jnp.array([[3.0, 1.0, 0.0]]), jnp.array([0])))
    2.0
  """
  mask = _masked.check(logits, label, where)
  logits = logits.astype(jnp.float32)
  own = jnp.arange(logits.shape[-1])[None, :] == label[:, None]
  true = jnp.sum(jnp.where(own, logits, 0), axis=-1)
  other = jnp.max(jnp.where(own, -jnp.inf, logits), axis=-1)
  return _masked.mean_or_nan(true - other, mask)


def brier(
  logits: jax.Array, label: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """Multi-class Brier score: mean squared distance to the one-hot label, in [0, 2].

  Args as `confusion`. Source: Brier, Verification of forecasts, 1950, eq. 2.

  Example:
    >>> print(brier(jnp.zeros((1, 2)), jnp.array([0])))
    0.5
  """
  mask = _masked.check(logits, label, where)
  p = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
  onehot = jax.nn.one_hot(label, logits.shape[1], dtype=jnp.float32)
  return _masked.mean_or_nan(jnp.sum((p - onehot) ** 2, axis=-1), mask)


def msp(logits: jax.Array) -> jax.Array:
  """Maximum softmax probability, the confidence ``[n]`` of ``[n, K]`` logits.

  Example:
    >>> msp(jnp.zeros((1, 4))).tolist()
    [0.25]
  """
  return jnp.max(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), axis=-1)


def _calibration_error(bins, confidence, correct, mask) -> jax.Array:
  """``sum_b |sum_{i in b} (correct_i - confidence_i)| / n`` for bins ``[n]``."""
  member = jax.nn.one_hot(bins, NUM_BINS, dtype=jnp.float32) * mask[:, None]
  gap = jnp.where(mask, correct.astype(jnp.float32) - confidence, 0.0)
  # Highest precision: the gaps are not exact in bfloat16 or tf32.
  sums = jnp.matmul(gap, member, precision=jax.lax.Precision.HIGHEST)
  return _masked.ratio(jnp.sum(jnp.abs(sums)), jnp.sum(mask).astype(jnp.float32))


def ece(
  logits: jax.Array, label: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """Expected calibration error, 15 bins ``(i/15, (i+1)/15]``, in [0, 1].

  Args as `confusion`. Source: Guo et al., On calibration of modern neural
  networks, 2017, eq. 3.

  Example:
    >>> print(ece(jnp.zeros((2, 2)), jnp.array([0, 0])))  # Says 0.5, is right.
    0.5
  """
  mask = _masked.check(logits, label, where)
  confidence = msp(logits)
  correct = jnp.argmax(logits, axis=-1) == label
  return _calibration_error(_equal_width_bins(confidence), confidence, correct, mask)


def _equal_width_bins(confidence: jax.Array) -> jax.Array:
  """Bin ``i`` of each confidence in ``(i/15, (i+1)/15]``."""
  edges = jnp.linspace(0.0, 1.0, NUM_BINS + 1)[1:-1]
  return jnp.searchsorted(edges, confidence, side="left", method="compare_all")


def reliability_metrics(
  logits: jax.Array, label: jax.Array, where: jax.Array | None = None
) -> dict[str, jax.Array]:
  """What a reliability diagram needs, for the 15 bins of `ece`, as flat scalars.

  Args as `confusion`.

  Returns:
    For each bin b, ``00`` to ``14``: ``reliability/<b>/share`` of all rows, in [0, 1];
    ``reliability/<b>/confidence`` and ``reliability/<b>/accuracy``, means of the rows
    in the bin, NaN if it is empty. ``ece`` is the sum of share times their distance.

  Example:
    >>> m = reliability_metrics(jnp.zeros((2, 2)), jnp.array([0, 0]))
    >>> [float(m[f"reliability/07/{k}"]) for k in ("share", "confidence", "accuracy")]
    [1.0, 0.5, 1.0]
  """
  mask = _masked.check(logits, label, where)
  confidence = msp(logits)
  correct = (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)
  bins = _equal_width_bins(confidence)
  total = jnp.sum(mask).astype(jnp.float32)
  out = {}
  for b in range(NUM_BINS):
    inside = mask & (bins == b)
    count = jnp.sum(inside).astype(jnp.float32)
    out[f"reliability/{b:02d}/share"] = _masked.ratio(count, total)
    out[f"reliability/{b:02d}/confidence"] = _masked.mean_or_nan(confidence, inside)
    out[f"reliability/{b:02d}/accuracy"] = _masked.mean_or_nan(correct, inside)
  return out


def adaptive_ece(
  logits: jax.Array, label: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """Calibration error over 15 bins of equal size by rank of confidence, in [0, 1].

  The i-th of n rows (ascending confidence) falls into bin ``floor(15 i / n)``;
  equal confidences are ordered by row. Args as `confusion`. Source: Nixon et al.,
  Measuring calibration in deep learning, 2019 (top-label, adaptive bins).

  Example:
    >>> print(adaptive_ece(jnp.zeros((2, 2)), jnp.array([0, 0])))
    0.5
  """
  mask = _masked.check(logits, label, where)
  confidence = msp(logits)
  order = jnp.argsort(jnp.where(mask, confidence, jnp.inf), stable=True)
  n = mask.shape[0]
  rank = jnp.zeros((n,), jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32))
  bins = jnp.minimum(rank * NUM_BINS // jnp.maximum(jnp.sum(mask), 1), NUM_BINS - 1)
  correct = jnp.argmax(logits, axis=-1) == label
  return _calibration_error(bins, confidence, correct, mask)


def classification_metrics(
  logits: jax.Array, label: jax.Array, where: jax.Array | None = None
) -> dict[str, jax.Array]:
  """The scalars every evaluation records; cheap enough for a compiled loop.

  Args:
    logits: ``[n, K]`` floating.
    label: int ``[n]`` in ``[0, K)``.
    where: bool ``[n]``, rows to judge.

  Returns:
    ``accuracy``, ``balanced_accuracy``, ``nll`` (nats), ``brier``, ``ece``: float32
    scalars, NaN when no row is kept.

  Raises:
    ValueError: If shapes or types do not fit.

  Example:
    >>> m = classification_metrics(jnp.zeros((2, 2)), jnp.array([0, 0]))
    >>> {name: round(float(value), 3) for name, value in m.items()}
    {'accuracy': 1.0, 'balanced_accuracy': 1.0, 'nll': 0.693, 'brier': 0.5, 'ece': 0.5}
  """
  fns = (accuracy, balanced_accuracy, nll, brier, ece)
  return {fn.__name__: fn(logits, label, where) for fn in fns}
