"""The linear probe against scikit-learn's logistic regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mer_dg import evaluation


@pytest.fixture(scope="module")
def digits():
  x, y = sklearn.datasets.load_digits(return_X_y=True)  # Three columns are constant.
  return x[:600].astype(np.float32), y[:600].astype(np.int32)


def probabilities(x, y, *, num_classes, l2=1.0, where=None):
  def fit(x, y, where, l2):
    probe = evaluation.fit_probe(x, y, where, num_classes=num_classes, l2=l2)
    return jax.nn.softmax(evaluation.probe_logits(probe, x))

  where = jnp.ones(len(y), bool) if where is None else where
  return np.asarray(jax.jit(fit)(jnp.asarray(x), jnp.asarray(y), where, l2))


@pytest.mark.parametrize("l2", [1.0, 10.0])
def test_probabilities_agree_with_scikit_learn(digits, l2):
  x, y = digits
  scaled = StandardScaler().fit_transform(x)
  reference = LogisticRegression(C=1 / l2, max_iter=5000, tol=1e-8).fit(scaled, y)
  expected = reference.predict_proba(scaled)
  actual = probabilities(x, y, num_classes=10, l2=l2)
  # 1e-2: what the number of iterations promises; the mean is far below.
  np.testing.assert_allclose(actual, expected, atol=1e-2)
  assert np.abs(actual - expected).mean() < 3e-4


def test_columns_of_very_different_scale_and_offset_change_nothing(digits):
  x, y = digits
  scale = np.logspace(-3, 3, x.shape[1]).astype(np.float32)
  # Powers of ten and an offset cost float32 digits, no more.
  np.testing.assert_allclose(
    probabilities(x * scale + 5 * scale, y, num_classes=10),
    probabilities(x, y, num_classes=10),
    atol=2e-3,
  )


def test_masking_equals_deleting_and_vmap_equals_a_loop(digits):
  x, y = digits
  x, y = jnp.asarray(x[:200, 20:30]), jnp.asarray(y[:200])
  masks = jnp.stack([jnp.arange(200) < 120, jnp.arange(200) >= 50])
  junk = jnp.where(masks[0][:, None], x, jnp.nan)

  @jax.jit
  def fit(x, y, where):
    return evaluation.fit_probe(x, y, where, num_classes=10, steps=50).weight

  both = jax.jit(jax.vmap(fit, in_axes=(None, None, 0)))(x, y, masks)
  deleted = fit(x[:120], y[:120], jnp.ones(120, bool))
  np.testing.assert_allclose(both[0], deleted, atol=1e-4)
  np.testing.assert_allclose(fit(junk, y, masks[0]), deleted, atol=1e-4)
  np.testing.assert_allclose(both[1], fit(x, y, masks[1]), atol=1e-4)


def test_a_class_without_training_rows_is_never_predicted():
  z = jnp.array([[-1.0], [1.0], [1.2], [0.0]])
  probe = evaluation.fit_probe(z, jnp.array([0, 2, 2, 0]), num_classes=4)
  logits = evaluation.probe_logits(probe, jnp.linspace(-5, 5, 11)[:, None])
  assert set(np.argmax(logits, axis=-1).tolist()) == {0, 2}
  assert np.isfinite(np.asarray(logits)).all()


def test_classes_without_training_rows_do_not_change_the_others(digits):
  x, y = digits
  few = y < 3
  alone = probabilities(x[few], y[few], num_classes=3)
  among = probabilities(x[few], 2 * y[few], num_classes=10)
  np.testing.assert_allclose(among[:, [0, 2, 4]], alone, atol=1e-4)


def test_linear_probe_names_sets_and_judges_each():
  z = jnp.array([[-1.0], [-2.0], [1.0], [2.0]])
  y = jnp.array([0, 0, 1, 1])
  keep = jnp.array([True, False, True, True])
  out = evaluation.linear_probe(
    z, y, {"val": (z, y, None), "target": (z, 1 - y, keep)}, num_classes=2
  )
  assert out["val/accuracy"] == 1.0
  assert out["target/accuracy"] == 0.0
  assert "target/balanced_accuracy" in out


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"z": jnp.zeros((4,))}, "z must be floating"),
    ({"label": jnp.zeros((3,), int)}, "label must have shape"),
    ({"where": jnp.ones((3,), bool)}, "where must have shape"),
    ({"num_classes": 0}, "num_classes and steps"),
  ],
)
def test_bad_arguments(change, match):
  good = {"z": jnp.zeros((4, 2)), "label": jnp.zeros((4,), int), "num_classes": 2}
  with pytest.raises(ValueError, match=match):
    evaluation.fit_probe(**(good | change))
