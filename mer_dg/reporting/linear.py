"""Linear models beside the networks of a table: what they scored, in a grid and words.

No network is worth its name that does not beat them, and where all modalities together
do worse on held-out domains than one alone, fusion overfits already there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mer_dg.reporting import names
from mer_dg.reporting.tables import Grid

ALL, LATE = "all modalities", "average of the single ones"


class LinearModel(NamedTuple):
  """A linear model: means over tasks, and the target score of each.

  Attributes:
    name: `ALL`, `LATE` or a modality.
    val: Mean source validation, 0 to 1; NaN without such rows.
    target: ``{target: score}``.
  """

  name: str
  val: float
  target: Mapping[str, float]

  @property
  def mean(self) -> float:
    """Over targets."""
    return float(np.mean(list(self.target.values())))


def to_json(models: Sequence[LinearModel], metric: str) -> dict[str, Any]:
  """What `from_json` reads."""
  return {"metric": metric, "models": [list(model) for model in models]}


def from_json(stored: Mapping[str, Any], metric: str) -> list[LinearModel]:
  """The models of a file; none if it is of another metric.

  Example:
    >>> stored = to_json([LinearModel("a", 0.5, {"d": 0.25})], "accuracy")
    >>> from_json(stored, "accuracy")[0].mean
    0.25
  """
  if stored.get("metric") != metric:
    return []
  return [LinearModel(name, val, target) for name, val, target in stored["models"]]


def grid(models: Sequence[LinearModel], metric: str) -> Grid:
  """A line per model: mean over targets, source validation, each target."""
  targets = list(models[0].target)
  shown = lambda x: names.number(x, metric) if np.isfinite(x) else names.DASH
  header = ["logistic regression on", "mean", "source val.", *targets]
  body = [
    [m.name, shown(m.mean), shown(m.val), *(shown(m.target[t]) for t in targets)]
    for m in models
  ]
  return header, body


def says(models: Sequence[LinearModel]) -> str:
  """Whether all modalities together do worse than the one that sources choose.

  Example:
    >>> models = [LinearModel(ALL, 0.9, {"d": 0.5}), LinearModel("a", 0.8, {"d": 0.7})]
    >>> says(models)
    "Fusion overfits: against 'a', the best single one on source validation, all
    modalities are 10.0 points ahead there and 20.0 points behind on held-out domains."
  """
  named = {model.name: model for model in models}
  single = [m for m in models if m.name not in (ALL, LATE)]
  if ALL not in named or not single:
    return ""
  best = max(single, key=lambda m: m.val)
  inside = 100 * (named[ALL].val - best.val)
  outside = 100 * (named[ALL].mean - best.mean)
  side = lambda gap: f"{abs(gap):.1f} points {'ahead' if gap > 0 else 'behind'}"
  facts = (
    f"against {best.name!r}, the best single one on source validation, all "
    f"modalities are {side(inside)} there and {side(outside)} on held-out domains."
  )
  if outside < -1 and inside > outside:
    return f"Fusion overfits: {facts}"
  return f"{facts[0].upper()}{facts[1:]}"


def behind(models: Sequence[LinearModel], network: float | None, metric: str) -> str:
  """Whether a network is worse than the linear model of the same modalities.

  Args:
    models: The linear models.
    network: Mean target score of the network over the same targets, if it has one.
    metric: Name without split.

  Example:
    >>> behind([LinearModel(ALL, 0.9, {"d": 0.5})], 0.4, "accuracy")
    'It is 10.0 points behind a logistic regression on all modalities: let the sources
    choose the encoder (--config.search.encoders=auto,mlp), or train longer.'
  """
  named = {model.name: model for model in models}
  linear = named[ALL] if ALL in named else models[0]
  if network is None or not network < linear.mean - 0.005:
    return ""
  gap = names.number(linear.mean - network, metric)
  return (
    f"It is {gap}{names.change_unit(metric)} behind a logistic regression on "
    f"{linear.name}: let the sources choose the encoder "
    "(--config.search.encoders=auto,mlp), or train longer."
  )
