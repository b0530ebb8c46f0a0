"""Masked classification metrics against scikit-learn and hand calculations."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from mer_dg import evaluation

N, K = 200, 5
SCALARS = ("accuracy", "balanced_accuracy", "nll", "brier", "ece", "adaptive_ece")


@pytest.fixture(scope="module")
def data():
  rng = np.random.default_rng(0)
  label = rng.integers(0, K - 1, N)  # The last class does not occur.
  logits = rng.normal(size=(N, K)) * 2 + 2 * np.eye(K)[label]
  where = rng.random(N) < 0.7
  return jnp.asarray(logits, jnp.float32), jnp.asarray(label), jnp.asarray(where)


@jax.jit
def compute(*args):
  """Every scalar metric, compiled once."""
  return {name: getattr(evaluation, name)(*args) for name in SCALARS}


@pytest.fixture(scope="module")
def computed(data):
  """Every scalar metric on the masked data."""
  return compute(*data)


def kept(data):
  """The rows that are not masked out, as numpy: the independent route."""
  logits, label, where = (np.asarray(x) for x in data)
  return np.asarray(jax.nn.softmax(logits[where])), label[where]


def test_scalars_agree_with_scikit_learn_on_the_kept_rows(data, computed):
  p, y = kept(data)
  pred = p.argmax(1)
  expected = {
    "accuracy": sklearn.metrics.accuracy_score(y, pred),
    "balanced_accuracy": sklearn.metrics.recall_score(
      y, pred, labels=np.unique(y), average="macro"
    ),
    "nll": sklearn.metrics.log_loss(y, p, labels=range(K)),
    "brier": sklearn.metrics.brier_score_loss(
      y, p, labels=range(K), scale_by_half=False
    ),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(computed[name], value, rtol=1e-5, err_msg=name)


def test_confusion_and_recall_agree_with_scikit_learn(data):
  p, y = kept(data)
  np.testing.assert_array_equal(
    evaluation.confusion(*data),
    sklearn.metrics.confusion_matrix(y, p.argmax(1), labels=range(K)),
  )
  recall = evaluation.per_class_recall(*data)
  expected = sklearn.metrics.recall_score(
    y, p.argmax(1), labels=range(K - 1), average=None
  )
  np.testing.assert_allclose(recall[:-1], expected, rtol=1e-6)
  assert np.isnan(recall[-1])  # A class that does not occur has no recall.


def test_ece_agrees_with_bins_by_hand(data, computed):
  p, y = kept(data)
  confidence, correct = p.max(1), p.argmax(1) == y
  # Guo et al. 2017, eq. 3: sum_b n_b / n |acc_b - conf_b|, bins (lo, hi].
  expected = 0.0
  for b in range(15):
    inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
    if inside.any():
      gap = abs(correct[inside].mean() - confidence[inside].mean())
      expected += inside.mean() * gap
  np.testing.assert_allclose(computed["ece"], expected, rtol=1e-5)


def test_adaptive_ece_agrees_with_slices_of_the_sorted_rows(data, computed):
  p, y = kept(data)
  order = np.argsort(p.max(1), kind="stable")
  gap = ((p.argmax(1) == y) - p.max(1))[order]
  bins = np.arange(len(gap)) * 15 // len(gap)
  assert np.ptp(np.bincount(bins)) <= 1  # Equal sizes, as far as n allows.
  expected = sum(abs(gap[bins == b].sum()) for b in range(15)) / len(gap)
  np.testing.assert_allclose(computed["adaptive_ece"], expected, rtol=1e-5)


def test_garbage_in_masked_rows_changes_nothing(data, computed):
  logits, label, where = data
  logits = jnp.where(where[:, None], logits, jnp.nan)
  for name, again in compute(logits, label, where).items():
    np.testing.assert_array_equal(again, computed[name], err_msg=name)


def test_classification_metrics_vmap_over_runs(data):
  logits, label, where = data
  runs = jnp.stack([logits, logits[:, ::-1]])
  one = jax.jit(evaluation.classification_metrics)
  out = jax.jit(jax.vmap(one, in_axes=(0, None, None)))(runs, label, where)
  assert set(out) == {"accuracy", "balanced_accuracy", "nll", "brier", "ece"}
  for i in range(2):
    for name, value in evaluation.classification_metrics(runs[i], label, where).items():
      np.testing.assert_allclose(out[name][i], value, rtol=1e-5, err_msg=name)


def test_no_rows_is_undefined_not_zero(data):
  logits, label, where = data
  out = evaluation.classification_metrics(logits, label, jnp.zeros_like(where))
  assert all(np.isnan(v) for v in out.values()), out


def test_bfloat16_logits_are_judged_in_float32():
  logits = jnp.array([[1.0, 0.0]], jnp.bfloat16)
  value = evaluation.nll(logits, jnp.array([0]))
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, np.log1p(np.exp(-1.0)), rtol=1e-6)


@pytest.mark.parametrize(
  ("args", "match"),
  [
    ((jnp.zeros((3,)), jnp.zeros((3,), int)), r"logits must be floating \[n, K\]"),
    ((jnp.zeros((3, 2), int), jnp.zeros((3,), int)), "logits must be floating"),
    ((jnp.zeros((3, 2)), jnp.zeros((2,), int)), r"label must be integer \[3\]"),
    ((jnp.zeros((3, 2)), jnp.zeros((3,))), r"label must be integer \[3\]"),
    ((jnp.zeros((3, 2)), jnp.zeros((3,), int), jnp.ones((2,))), r"where .* \[3\]"),
  ],
)
def test_bad_shapes_are_named(args, match):
  with pytest.raises(ValueError, match=match):
    evaluation.classification_metrics(*args)


def test_every_public_function_has_an_example():
  for name in evaluation.__all__:
    item = getattr(evaluation, name)
    if inspect.isfunction(item):
      assert ">>>" in inspect.getdoc(item), name


def test_reliability_bins_are_those_of_the_calibration_error(data, computed):
  p, y = kept(data)
  confidence, correct = p.max(1), p.argmax(1) == y
  actual = jax.jit(evaluation.reliability_metrics)(*data)
  rows = np.array(
    [
      [actual[f"reliability/{b:02d}/{k}"] for k in ("share", "confidence", "accuracy")]
      for b in range(evaluation.NUM_BINS)
    ]
  )
  assert len(actual) == rows.size
  for b, row in enumerate(rows):
    inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
    expected = [inside.mean(), np.nan, np.nan]
    if inside.any():
      expected[1:] = confidence[inside].mean(), correct[inside].mean()
    np.testing.assert_allclose(row, expected, rtol=1e-5)
  share, conf, acc = rows[rows[:, 0] > 0].T
  np.testing.assert_allclose(
    np.sum(share * abs(acc - conf)), computed["ece"], rtol=1e-4
  )
