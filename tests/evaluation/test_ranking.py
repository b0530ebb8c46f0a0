"""Selective risk, misclassification and OOD metrics: scikit-learn and by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from mer_dg import evaluation

N = 150


def jitted(fn, *args):
  """The function compiled once: eager sorting would compile op by op."""
  return jax.jit(fn)(*args)


@pytest.fixture(scope="module")
def scored():
  """Scores with many ties, a flag that depends on them, and a mask."""
  rng = np.random.default_rng(1)
  score = np.round(rng.random(N), 1).astype(np.float32)
  flag = rng.random(N) < 0.3 + 0.5 * score
  where = rng.random(N) < 0.8
  return jnp.asarray(score), jnp.asarray(flag), jnp.asarray(where)


def kept(scored):
  score, flag, where = (np.asarray(x) for x in scored)
  return score[where], flag[where]


def test_auroc_and_average_precision_with_ties_agree_with_scikit_learn(scored):
  s, y = kept(scored)
  np.testing.assert_allclose(
    jitted(evaluation.auroc, *scored), sklearn.metrics.roc_auc_score(y, s), rtol=1e-5
  )
  np.testing.assert_allclose(
    jitted(evaluation.average_precision, *scored),
    sklearn.metrics.average_precision_score(y, s),
    rtol=1e-5,
  )


@pytest.mark.parametrize("seed", range(4))
def test_fpr95_conventions_on_all_points_of_the_roc_curve(seed):
  rng = np.random.default_rng(seed)
  y = rng.random(N) < 0.6
  s = (rng.normal(size=N) + y).astype(np.float32)
  fpr, tpr, _ = sklearn.metrics.roc_curve(y, s, drop_intermediate=False)
  nearest = fpr[np.argmin(np.abs(tpr - 0.95))]
  first = fpr[np.argmax(tpr >= 0.95)]
  score, flag = jnp.asarray(s), jnp.asarray(y)
  np.testing.assert_allclose(
    jitted(evaluation.fpr95_misd, score, flag), nearest, rtol=1e-5
  )
  np.testing.assert_allclose(
    jitted(evaluation.fpr95_ood, score, flag), first, rtol=1e-5
  )


def test_the_two_fpr95_conventions_differ():
  # 16 positives; an FPR-0 point at TPR 15/16 = .9375 is nearest to .95, the first
  # point with TPR >= .95 is TPR 1, below all 4 negatives: FPR 1.
  score = jnp.arange(20.0, 0.0, -1.0)
  flag = jnp.array([True] * 15 + [False] * 4 + [True])
  assert jitted(evaluation.fpr95_misd, score, flag) == 0.0
  assert jitted(evaluation.fpr95_ood, score, flag) == 1.0


def test_aurc_of_distinct_scores_by_hand():
  # Descending: right, wrong, right, wrong -> risks 0, 1/2, 1/3, 1/2.
  score = jnp.array([0.1, 0.9, 0.7, 0.5])
  correct = jnp.array([False, True, False, True])
  np.testing.assert_allclose(
    jitted(evaluation.aurc, score, correct), (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4, rtol=1e-6
  )


def test_aurc_of_ties_is_the_mean_over_all_orders():
  score = np.array([0.9, 0.5, 0.5, 0.5, 0.2])
  correct = np.array([True, False, True, True, False])
  areas = []
  for middle in itertools.permutations([1, 2, 3]):
    wrong = ~correct[[0, *middle, 4]]
    areas.append(np.mean(np.cumsum(wrong) / np.arange(1, 6)))
  actual = jitted(evaluation.aurc, jnp.asarray(score), jnp.asarray(correct))
  np.testing.assert_allclose(actual, np.mean(areas), rtol=1e-6)


def test_masking_aurc_equals_deleting_rows(scored):
  score, flag, where = scored
  s, y = kept(scored)
  np.testing.assert_allclose(
    jitted(evaluation.aurc, jnp.where(where, score, jnp.nan), flag, where),
    jitted(evaluation.aurc, jnp.asarray(s), jnp.asarray(y)),
    rtol=1e-6,
  )


def logits_of(confidence, correct):
  """Two-class logits whose MSP is ``confidence`` (>= 1/2); the label is 0 if right."""
  odds = np.log(confidence) - np.log1p(-confidence)
  label = np.where(correct, 0, 1)
  return jnp.stack([jnp.asarray(odds), jnp.zeros(len(odds))], 1), jnp.asarray(label)


def test_misclassification_metrics_name_their_parts():
  rng = np.random.default_rng(2)
  confidence = rng.uniform(0.5, 0.99, 60)
  correct = rng.random(60) < confidence
  logits, label = logits_of(confidence, correct)
  out = jitted(evaluation.misclassification_metrics, logits, label)
  ap = sklearn.metrics.average_precision_score
  r = 1 - correct.mean()
  wrong = ~correct[np.argsort(-confidence)]
  area = np.mean(np.cumsum(wrong) / np.arange(1, 61))
  expected = {
    "aurc": area,
    "e_aurc": area - (r + (1 - r) * np.log(1 - r)),
    "auroc_misd": sklearn.metrics.roc_auc_score(correct, confidence),
    "aupr_success": ap(correct, confidence),
    "aupr_error": ap(~correct, -confidence),
  }
  assert set(out) == {*expected, "fpr95_misd"}
  for name, value in expected.items():
    np.testing.assert_allclose(out[name], value, rtol=1e-4, err_msg=name)


def test_e_aurc_of_a_nearly_perfect_ranking_is_nearly_zero():
  correct = np.arange(1000) >= 200
  logits, label = logits_of(np.linspace(0.5, 0.99, 1000), correct)
  out = jitted(evaluation.misclassification_metrics, logits, label)
  # The formula is the limit of many samples; the sum differs by O(1/n).
  np.testing.assert_allclose(out["e_aurc"], 0.0, atol=1e-3)
  assert out["auroc_misd"] == 1.0


def test_all_right_has_no_misclassification_to_detect():
  logits, label = logits_of(np.array([0.6, 0.9]), np.array([True, True]))
  out = jitted(evaluation.misclassification_metrics, logits, label)
  assert out["aurc"] == 0.0
  assert out["e_aurc"] == 0.0
  for name in ("auroc_misd", "fpr95_misd", "aupr_error"):
    assert np.isnan(out[name]), name


def test_ood_is_the_positive_class():
  rng = np.random.default_rng(3)
  known, unknown = rng.uniform(0.6, 0.99, 50), rng.uniform(0.5, 0.9, 40)
  id_logits, _ = logits_of(known, np.ones(50, bool))
  ood_logits, _ = logits_of(unknown, np.ones(40, bool))
  keep = jnp.arange(40) < 30
  out = jitted(evaluation.ood_metrics, id_logits, ood_logits, None, keep)
  y = np.r_[np.zeros(50), np.ones(30)]
  s = -np.r_[known, unknown[:30]]
  fpr, tpr, _ = sklearn.metrics.roc_curve(y, s)
  np.testing.assert_allclose(
    out["auroc_ood"], sklearn.metrics.roc_auc_score(y, s), rtol=1e-5
  )
  np.testing.assert_allclose(out["fpr95_ood"], fpr[np.argmax(tpr >= 0.95)], rtol=1e-5)
