"""`MultimodalClassifier` by scikit-learn's own checks, none of which is excused."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import (
  estimator_checks_generator,
  parametrize_with_checks,
)

import mer_dg

SHORT = {
  "eval_every": 15, "log_every": 15, "network.hidden_dim": 16, "optimizer.lr": 1e-2,
  "network.embedding_dim": 8, "network.classifier_dim": 16,
  "network.projector_dim": 8, "network.projection_dim": 8,
}  # fmt: skip
CLASSIFIER = mer_dg.MultimodalClassifier(method="erm", total_steps=30, config=SHORT)
# Those that train nothing; the others take minutes.
UNTRAINED = {
  "check_classifiers_one_label",
  "check_classifiers_regression_target",
  "check_complex_data",
  "check_estimator_cloneable",
  "check_estimator_repr",
  "check_estimator_sparse_array",
  "check_estimators_empty_data_messages",
  "check_estimators_unfitted",
  "check_fit1d",
  "check_fit2d_1sample",
  "check_get_params_invariance",
  "check_no_attributes_set_in_init",
  "check_parameters_default_constructible",
  "check_requires_y_none",
  "check_set_params",
  "check_supervised_y_no_nan",
}


def test_checks_that_train_nothing():
  done = set()
  for estimator, check in estimator_checks_generator(CLASSIFIER):
    name = getattr(check, "func", check).__name__
    if name in UNTRAINED:
      check(estimator)
      done.add(name)
  assert done == UNTRAINED


@pytest.mark.slow
@parametrize_with_checks([CLASSIFIER])
def test_every_check(estimator, check):
  check(estimator)


@pytest.mark.parametrize("domains", [None, np.resize(["lab", "home", "bus"], 90)])
def test_columns_are_modalities(domains):
  rng = np.random.default_rng(0)
  y = np.array(["no", "yes"])[np.arange(90) % 2]
  X = rng.normal(size=(90, 4)) + (y == "yes")[:, None]
  made = clone(CLASSIFIER).set_params(modalities={"a": slice(0, 2), "b": [2, 3]})
  classifier = made.fit(X, y, domains=domains)
  assert classifier.score(X, y) > 0.7
  assert classifier.model_.modalities == ("a", "b")
  probability = classifier.predict_proba(X)
  assert probability.shape == (90, 2)
  copy = pickle.loads(pickle.dumps(classifier))
  np.testing.assert_array_equal(copy.predict_proba(X), probability)
  with pytest.raises(ValueError, match="features"):
    classifier.predict(X[:, :3])
  if domains is not None:
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
      made.fit(X, y, domains=domains[:5])
