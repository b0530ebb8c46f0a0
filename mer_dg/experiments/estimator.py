"""A classifier in scikit-learn's manner around `fit`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
  check_consistent_length,
  check_is_fitted,
  validate_data,
)

from mer_dg.data.dataset import make_dataset
from mer_dg.experiments.door import fit
from mer_dg.experiments.model import Model


class MultimodalClassifier(ClassifierMixin, BaseEstimator):
  """Trains on the columns of a table, some of which make up each modality.

  Args:
    modalities: ``{name: columns}``, indices or a slice; None is one modality of all
      columns.
    method: As in `fit`.
    total_steps: Length of training.
    random_state: Seed, an integer; None is 0.
    config: As in `fit`.

  Example::

    classifier = MultimodalClassifier({"arm": slice(0, 9), "leg": slice(9, 18)})
    classifier.fit(X, y, domains=person).score(X_new, y_new)
  """

  def __init__(
    self,
    modalities: Mapping[str, Any] | None = None,
    method: str = "heads+md",
    total_steps: int = 300,
    random_state: int | None = None,
    config: Mapping[str, Any] | None = None,
  ):
    self.modalities = modalities
    self.method = method
    self.total_steps = total_steps
    self.random_state = random_state
    self.config = config

  def fit(self, X, y, domains=None) -> MultimodalClassifier:
    """Trains; ``domains [n]`` names where each row comes from (None: one place)."""
    X, y = validate_data(self, X, y, dtype=np.float32)
    check_classification_targets(y)
    self.classes_, label = np.unique(y, return_inverse=True)
    if len(self.classes_) < 2:
      raise ValueError("y has one class; classifiers need two classes or more.")
    check_consistent_length(X, domains)
    place, domain = np.unique(
      np.zeros(len(X), int) if domains is None else domains, return_inverse=True
    )
    inputs = self._inputs(X)
    data = make_dataset(
      name="X", inputs=inputs, kinds=dict.fromkeys(inputs, "vector"),
      label=label, class_names=[str(k) for k in range(len(self.classes_))],
      domain=domain, domain_names=[str(d) for d in place],
    )  # fmt: skip
    self.model_: Model = fit(
      data,
      self.method,
      seed=self.random_state or 0,
      config={"total_steps": self.total_steps, **(self.config or {})},
      progress=False,
    )
    return self

  def predict_proba(self, X) -> np.ndarray:
    """Probabilities ``[n, K]`` in the order of ``classes_``."""
    check_is_fitted(self)
    X = validate_data(self, X, dtype=np.float32, reset=False)
    return self.model_.predict_proba(self._inputs(X))

  def predict(self, X) -> np.ndarray:
    """The likeliest class of each row."""
    probability = self.predict_proba(X)  # It says so where nothing was fitted.
    return self.classes_[probability.argmax(axis=1)]

  def _inputs(self, X: np.ndarray) -> dict[str, np.ndarray]:
    columns = self.modalities or {"X": slice(None)}
    return {name: X[:, which] for name, which in columns.items()}
