"""Search: default, nothing, and even draws; chosen on source validation only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np
from scipy.stats import qmc

from mer_dg.experiments.config import Config
from mer_dg.experiments.runs import Evaluation, Run
from mer_dg.methods import SETTINGS, merge_recipes, numbers_of
from mer_dg.protocol import Assignment, validation_score

# What a search finds for a method and task: overrides, and how many it tried.
Choice = tuple[tuple[tuple[str, float], ...], int]


def draws(
  space: Mapping[str, tuple[float, float]], trials: int, seed: int
) -> list[dict[str, float]]:
  """Settings that fill a space evenly: points of a scrambled Halton sequence.

  Log-uniform in each number, and in all of them together more even than independent
  draws: 16 points leave no half, and hardly a quarter, of a range out. More trials
  continue the sequence, and a number that is added at the end of the space moves no
  other.

  Args:
    space: ``{name: (low, high)}``, 0 < low <= high.
    trials: How many.
    seed: Of the scrambling.

  Example:
    >>> draws({"mer.weight": (1.0, 1.0)}, 2, seed=0)
    [{'mer.weight': 1.0}, {'mer.weight': 1.0}]
  """
  low, high = np.log(np.array(list(space.values()), float).T)
  points = qmc.Halton(len(space), rng=np.random.default_rng(seed)).random(trials)
  values = np.exp(low + points * (high - low)).tolist()
  return [dict(zip(space, row, strict=True)) for row in values]


def search_runs(config: Config, tasks: Sequence[Assignment]) -> list[Run]:
  """Runs of the search: every method, task, trial and search seed.

  The first trial is the default, the next one has weight 0 in every term whose weight
  is searched, so that the sources may do without; a method without a space, in the
  config or its own terms, has the default alone.
  """
  search, runs = config.search, []
  for method in config.methods:
    space, tried = _space(config, method), [{}]
    if space and search.trials:
      tried += [dict.fromkeys(off, 0.0)] if (off := _weights(config, method)) else []
      tried += draws(space, search.trials, search.seed)
    runs += [
      Run(method, task.target, seed, tuple(overrides.items()), sources=task.sources)
      for overrides in tried
      for task in tasks
      for seed in search.seeds
    ]
  return runs


def _weights(config: Config, method: str) -> list[str]:
  """Those of the space that may be 0."""
  recipe, found = merge_recipes(method, config.recipes), []
  for name in _space(config, method):
    term, number = name.split(".")
    if (
      number == "weight" and numbers_of(term, recipe.get(term, {}), ())[number].low == 0
    ):
      found.append(name)
  return found


def _space(config: Config, method: str) -> dict[str, Any]:
  """``{"term.number": (low, high)}``: of the config, else the ranges of its terms."""
  recipe = merge_recipes(method, config.recipes)
  if method in config.search.space:
    groups = config.search.space[method].items()
    return {
      f"{t}.{n}": bounds for t, numbers in groups for n, bounds in numbers.items()
    }
  return {
    f"{term}.{name}": number.search
    for term, fields in recipe.items()
    if term not in SETTINGS
    for name, number in numbers_of(term, fields, ()).items()
    if number.search
  }


def final_runs(
  config: Config,
  tasks: Sequence[Assignment],
  chosen: Mapping[tuple[str, Assignment], Choice],
) -> list[Run]:
  """Runs of the table.

  Args:
    config: The config.
    tasks: Who trains and who tests.
    chosen: ``{(method, task): (overrides, number of trials)}`` from a search;
      empty means the defaults.
  """
  runs = []
  for method in config.methods:
    for task in tasks:
      overrides, trials = chosen.get((method, task), ((), 1))
      runs += [
        Run(method, task.target, seed, overrides, trials, task.sources)
        for seed in config.seeds
      ]
  return runs


def choose(
  runs: Sequence[Run], evaluations: Sequence[Evaluation], metric: str, rule: str
) -> dict[tuple[str, Assignment], Choice]:
  """The trial with the best mean validation per method and task.

  Each run counts with its best evaluation (that is how it is selected in the
  table), a run without any, because it diverged, as the worst there can be. Ties
  go to lower validation NLL, then to the earlier trial.

  Args:
    runs: All runs of the search, trial by trial.
    evaluations: Their evaluations.
    metric: Headline metric.
    rule: One of `protocol.SOURCE_RULES`.

  Returns:
    ``{(method, task): (overrides, number of trials)}``.
  """
  best = dict.fromkeys(runs, (-math.inf, -math.inf))
  for e in evaluations:
    score = validation_score(e.metrics, rule, metric)
    best[e.run] = max(best[e.run], score)
  cells: dict[tuple[str, Assignment], dict[tuple, list[tuple[float, float]]]] = {}
  for run, score in best.items():
    trials = cells.setdefault((run.method, run.task), {})
    trials.setdefault(run.overrides, []).append(score)
  mean = lambda scores: tuple(sum(s) / len(s) for s in zip(*scores, strict=True))
  return {
    cell: (max(trials, key=lambda t, trials=trials: mean(trials[t])), len(trials))
    for cell, trials in cells.items()
  }
