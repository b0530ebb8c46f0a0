"""Strong predictions: which samples are good enough to be mixed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.mixing import _check

RULES = ("threshold", "quantile")


class ConfidenceTable(NamedTuple):
  """Last prediction of every sample, by stable sample id; to be checkpointed.

  Attributes:
    confidence: float32 ``[N]`` in [0, 1].
    correct: bool ``[N]``.
    label: int32 ``[N]``, -1 for a sample not visited yet.
  """

  confidence: jax.Array
  correct: jax.Array
  label: jax.Array


def prediction_strength(
  logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
  r"""Probability of the true class, and whether it is the predicted one.

  Regression (floating labels): :math:`\exp(-|\mathrm{error}|)`, and always True.

  Args:
    logits: ``[B, K]``; for regression predictions ``[B]`` or ``[B, 1]``.
    labels: int ``[B]``, or floating ``[B]``.

  Returns:
    ``(confidence [B], correct bool [B])``, without gradient, at least float32.

  Raises:
    ValueError: If the shapes do not fit.

  Example:
    >>> logits, labels = jnp.log(jnp.array([[0.2, 0.8]])), jnp.array([1])
    >>> strength, ok = prediction_strength(logits, labels)
    >>> print(f"{strength[0]:.2f} {ok[0]}")
    0.80 True
  """
  labels = jnp.asarray(labels)
  logits = jax.lax.stop_gradient(_check.at_least_float32("logits", logits))
  if jnp.issubdtype(labels.dtype, jnp.floating):
    if logits.size != labels.size:
      raise ValueError(
        f"predictions {logits.shape} do not fit labels of shape {labels.shape}."
      )
    error = logits.reshape(labels.shape) - labels
    return jnp.exp(-jnp.abs(error)), jnp.ones(labels.shape, bool)
  if logits.ndim != 2 or labels.shape != logits.shape[:1]:
    raise ValueError(
      f"logits must be [B, K] and labels [B], got {logits.shape} and {labels.shape}."
    )
  q = jax.nn.softmax(logits)
  strength = jnp.take_along_axis(q, labels[:, None], axis=-1)[:, 0]
  return strength, jnp.argmax(logits, axis=-1) == labels


def select_confident(
  confidence: jax.Array,
  correct: jax.Array,
  *,
  rule: str = "threshold",
  threshold: jax.typing.ArrayLike = 0.7,
  fraction: jax.typing.ArrayLike = 0.5,
  labels: jax.Array | None = None,
  mask: jax.Array | None = None,
  rows: jax.Array | None = None,
) -> jax.Array:
  r"""Samples with a strong prediction (reconstruction).

  ``"threshold"``: correct and ``confidence >= threshold``. ``"quantile"``: correct
  and among the ``ceil(fraction * n_c)`` most confident of the ``n_c`` valid samples of
  its class, so that rare classes survive; ties go to the lower index.

  Args:
    confidence: ``[N]``; a batch, or the table of all samples.
    correct: bool ``[N]``.
    rule: ``"threshold"`` or ``"quantile"``. Static.
    threshold: For ``"threshold"``.
    fraction: For ``"quantile"``, in [0, 1].
    labels: int ``[N]``, for ``"quantile"``; None ranks all samples together
      (regression: then ``fraction`` is a quantile of the absolute error).
    mask: bool ``[N]``, False for padding rows and samples not visited yet; those are
      not selected and do not count.
    rows: int ``[B]``: which samples are asked for; None is all of them.

  Returns:
    bool ``[N]``, or ``[B]`` for ``rows``.

  Raises:
    ValueError: Unknown rule, unequal shapes, or (outside of ``jit``) a fraction
      outside [0, 1].
    TypeError: If ``correct`` or ``mask`` is not boolean.

  Example:
    >>> confidence = jnp.array([0.9, 0.8, 0.3, 0.2])
    >>> ok, labels = jnp.ones(4, bool), jnp.array([0, 0, 1, 1])
    >>> print(select_confident(confidence, ok, threshold=0.8))
    [ True  True False False]
    >>> print(select_confident(confidence, ok, rule="quantile", labels=labels))
    [ True False  True False]
  """
  _check.one_of("rule", rule, RULES)
  n = jnp.shape(confidence)[0]
  confidence = _check.vector("confidence", confidence, n)
  correct = _check.mask("correct", correct, n)
  valid = jnp.ones((n,), bool) if mask is None else _check.mask("mask", mask, n)
  wanted = slice(None) if rows is None else rows
  if rule == "threshold":
    return (correct & valid & (confidence >= threshold))[wanted]
  if _check.concrete(fraction):
    value = np.asarray(fraction)
    if (value < 0).any() or (value > 1).any():
      raise ValueError(f"fraction={fraction!r} is not in [0, 1].")
  if labels is None:
    labels = jnp.zeros((n,), jnp.int32)
  labels = _check.vector("labels", labels, n)
  rank = _ranks_by_sorting if rows is None else _ranks_by_counting
  place, members = rank(confidence, labels, valid, rows)
  # 1e-4 absorbs rounding: 0.1 * 30 must be 3 places, not 4.
  places = jnp.ceil(fraction * members - 1e-4)
  return (place < places) & (correct & valid)[wanted]


def _ranks_by_sorting(confidence, labels, valid, rows):
  """Place of every sample in its class, and size of the class, ``[N]`` each."""
  del rows
  n = confidence.shape[0]
  index = jnp.arange(n)
  order = jnp.lexsort((-confidence, labels, ~valid))  # stable: ties by index
  ordered, ordered_valid = labels[order], valid[order]
  changes = (ordered[1:] != ordered[:-1]) | (ordered_valid[1:] != ordered_valid[:-1])
  start = jax.lax.cummax(
    jnp.where(jnp.concatenate([jnp.ones((1,), bool), changes]), index, 0)
  )
  end = jax.lax.cummin(
    jnp.where(jnp.concatenate([changes, jnp.ones((1,), bool)]), index + 1, n),
    reverse=True,
  )
  back = jnp.zeros((n,), jnp.int32)
  return back.at[order].set(index - start), back.at[order].set(end - start)


def _ranks_by_counting(confidence, labels, valid, rows):
  """The same for ``rows``, ``[B]`` each: who of the class comes before them."""
  same = (labels[rows][:, None] == labels[None, :]) & valid[None, :]  # [B, N]
  mine, other = confidence[rows][:, None], confidence[None, :]
  earlier = jnp.arange(confidence.shape[0])[None, :] < rows[:, None]
  before = same & ((other > mine) | ((other == mine) & earlier))
  return jnp.sum(before, axis=-1), jnp.sum(same, axis=-1)


def init_confidence_table(num_samples: int) -> ConfidenceTable:
  """Table of ``num_samples`` samples, none visited.

  Raises:
    ValueError: If ``num_samples < 1``.

  Example:
    >>> init_confidence_table(3).label.tolist()
    [-1, -1, -1]
  """
  if num_samples < 1:
    raise ValueError(f"num_samples must be >= 1, got {num_samples}.")
  return ConfidenceTable(
    confidence=jnp.zeros((num_samples,), jnp.float32),
    correct=jnp.zeros((num_samples,), bool),
    label=jnp.full((num_samples,), -1, jnp.int32),
  )


def update_confidence_table(
  table: ConfidenceTable,
  index: jax.Array,
  logits: jax.Array,
  labels: jax.Array,
  *,
  mask: jax.Array | None = None,
) -> ConfidenceTable:
  """Writes the predictions of a batch, as of each sample's last visit.

  Args:
    table: ``[N]`` columns.
    index: Stable sample ids, int ``[B]`` in ``[0, N)``; a sample twice in one batch
      leaves either of its two entries.
    logits: ``[B, K]``, or predictions ``[B]`` for regression.
    labels: int ``[B]``; floating for regression, recorded as one class 0.
    mask: bool ``[B]``; rows that are False, and ids outside the table, write nothing.

  Returns:
    The new table. Select with ``select_confident(t.confidence, t.correct,
    rule="quantile", labels=t.label, mask=t.label >= 0, rows=index)``.

  Raises:
    ValueError: If shapes do not fit.
    TypeError: If ``index`` is not integer or ``mask`` not boolean.

  Example:
    >>> table = init_confidence_table(3)
    >>> logits, labels = jnp.zeros((1, 2)), jnp.array([0])
    >>> table = update_confidence_table(table, jnp.array([2]), logits, labels)
    >>> print(table.confidence, table.correct)
    [0.  0.  0.5] [False False  True]
  """
  strength, ok = prediction_strength(logits, labels)
  b = strength.shape[0]
  index = _check.vector("index", index, b)
  if not jnp.issubdtype(index.dtype, jnp.integer):
    raise TypeError(f"index must be integers, got {index.dtype}.")
  n = table.confidence.shape[0]
  keep = (index >= 0) & (index < n)
  if mask is not None:
    keep &= _check.mask("mask", mask, b)
  at = jnp.where(keep, index, n)  # n is out of range: dropped
  if jnp.issubdtype(jnp.asarray(labels).dtype, jnp.floating):
    labels = jnp.zeros((b,), jnp.int32)
  return ConfidenceTable(
    confidence=table.confidence.at[at].set(
      strength.astype(table.confidence.dtype), mode="drop"
    ),
    correct=table.correct.at[at].set(ok, mode="drop"),
    label=table.label.at[at].set(labels.astype(jnp.int32), mode="drop"),
  )
