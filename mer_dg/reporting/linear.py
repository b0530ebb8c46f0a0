"""All modalities beside each one alone: linear models, and networks; grid and words.

No network is worth its name that does not beat a linear model, and where all modalities
together do worse on held-out domains than one alone, fusion overfits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mer_dg.reporting import frame, names
from mer_dg.reporting.tables import Grid

ALL, LATE = "all modalities", "average of the single ones"
LINEAR, NETWORK = "logistic regression on", "network on"


class ModelRow(NamedTuple):
  """A model of all modalities or one: means over tasks, and the score of each target.

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


def to_json(models: Sequence[ModelRow], metric: str) -> dict[str, Any]:
  """What `from_json` reads."""
  return {"metric": metric, "models": [list(model) for model in models]}


def from_json(stored: Mapping[str, Any], metric: str) -> list[ModelRow]:
  """The models of a file; none if it is of another metric.

  Example:
    >>> stored = to_json([ModelRow("a", 0.5, {"d": 0.25})], "accuracy")
    >>> from_json(stored, "accuracy")[0].mean
    0.25
  """
  if stored.get("metric") != metric:
    return []
  return [ModelRow(name, val, target) for name, val, target in stored["models"]]


# The method whose encoders never meet: a network on each modality, and their average.
SEPARATE = "uniform"


def networks(
  rows: pd.DataFrame, metric: str, reference: str, modalities: Sequence[str]
) -> list[ModelRow]:
  """Plain fusion, a network on each modality alone, and the average of these.

  Args:
    rows: The chosen evaluations of a table, see `frame.to_frame`.
    metric: Name without split.
    reference: Plain fusion.
    modalities: In the order to show them.

  Returns:
    The rows; none without the method `SEPARATE`, or of records of before it was judged
    on one modality at a time.
  """
  asked = [(ALL, reference, ""), *((m, SEPARATE, f"only_{m}") for m in modalities)]
  found = []
  for name, method, condition in [*asked, (LATE, SEPARATE, "")]:
    own = rows[rows["method"] == method]
    target = frame.pick(own, metric, "target", condition)
    if target.empty:
      return []
    by_target = target.groupby("target", sort=False)["value"].mean()
    val = frame.pick(own, metric, "val", condition)["value"].mean()
    found.append(ModelRow(name, float(val), by_target.to_dict()))
  return found


def grid(models: Sequence[ModelRow], metric: str, head: str = LINEAR) -> Grid:
  """A line per model: mean over targets, source validation, each target."""
  targets = list(models[0].target)
  shown = lambda x: names.number(x, metric) if np.isfinite(x) else names.DASH
  header = [head, "mean", "source val.", *targets]
  body = [
    [m.name, shown(m.mean), shown(m.val), *(shown(m.target[t]) for t in targets)]
    for m in models
  ]
  return header, body


def says(models: Sequence[ModelRow]) -> str:
  """Whether all modalities together do worse than the one that sources choose.

  Example:
    >>> models = [ModelRow(ALL, 0.9, {"d": 0.5}), ModelRow("a", 0.8, {"d": 0.7})]
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


def behind(models: Sequence[ModelRow], network: float | None, metric: str) -> str:
  """Whether a network is worse than the linear model of the same modalities.

  Args:
    models: The linear models.
    network: Mean target score of the network over the same targets, if it has one.
    metric: Name without split.

  Example:
    >>> behind([ModelRow(ALL, 0.9, {"d": 0.5})], 0.4, "accuracy")
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
