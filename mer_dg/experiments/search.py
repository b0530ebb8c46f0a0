"""Search: default, nothing, and even draws, and the encoder; chosen by sources only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import math
from typing import Any

import numpy as np
from scipy.stats import qmc

from mer_dg.experiments.config import Config, recipe_of
from mer_dg.experiments.runs import Evaluation, Run, run_id
from mer_dg.experiments.setup import SINGLE, Setup, chooses_encoder
from mer_dg.methods import SETTINGS, hyperparameters_of
from mer_dg.networks.encoders import resolve
from mer_dg.protocol import (
  Assignment,
  Record,
  leave_one_source_out,
  metric_value,
  setting,
  validation_score,
)

# What a search finds for a method and task: overrides, and how many it tried.
Choice = tuple[tuple[tuple[str, float], ...], int]
# The encoder of each task; "" is that of the config.
Encoders = Mapping[Assignment, str]
# How much better than the first one an encoder must be to be chosen. Means over three
# to five left-out domains differ by one or two points by chance, and tasks that share
# an encoder share programs.
_WORTH = 0.03


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


def runs_before(setup: Setup, encoders: Encoders | None = None) -> list[Run]:
  """Runs of the search: every method, task, trial and search seed.

  With the rule ``leave_one_source_out`` the tasks of `Setup.inner` stand for a task.

  Args:
    setup: The setup.
    encoders: Those that were chosen.
  """
  search = setup.config.search
  if not search.trials:
    return []
  by_sources = search.rule == "leave_one_source_out"
  judging = setup.inner if by_sources else lambda task: (task,)
  return search_runs(setup.config, setup.tasks, judging, encoders)


def search_runs(
  config: Config,
  tasks: Sequence[Assignment],
  judging: Callable[[Assignment], Iterable[Assignment]] = lambda task: (task,),
  encoders: Encoders | None = None,
) -> list[Run]:
  """Runs of the search on the tasks that judge for each task.

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
      Run(
        method, judge.target, seed, tuple(overrides.items()), sources=judge.sources,
        encoder=_encoder(config, method, (encoders or {}).get(task, "")),
      )
      for overrides in tried
      for task in tasks
      for judge in judging(task)
      for seed in search.seeds
    ]  # fmt: skip
  return list(dict.fromkeys(runs))  # Two targets are each a source of the other.


def encoder_runs(setup: Setup) -> list[Run]:
  """Runs that choose encoders: the first method with each, every source left out."""
  config, method = setup.config, setup.config.methods[0]
  if not offered_encoders(setup):
    return []
  inner = dict.fromkeys(t for task in setup.tasks for t in setup.judges(task))
  many = setup.dataset.num_domains > SINGLE  # Enough scores from one seed.
  return [
    Run(
      method, task.target, seed, sources=task.sources,
      encoder=_encoder(config, method, encoder),
    )
    for encoder in config.search.encoders
    for task in inner
    for seed in config.search.seeds[: 1 if many else None]
  ]  # fmt: skip


def offered_encoders(setup: Setup) -> tuple[str, ...]:
  """Those to choose from; none where the config names one, or all are the same."""
  config, kinds = setup.config, [s.kind for s in setup.dataset.specs.values()]
  different = {tuple(resolve(e, k) for k in kinds) for e in config.search.encoders}
  names = config.search.encoders
  differ = len(names) == 1 or len(different) > 1
  return names if chooses_encoder(config) and differ else ()


def _encoder(config: Config, method: str, chosen: str) -> str:
  """What a run says: nothing where it is the config's, or the method has its own."""
  own = own_encoder(config, method)
  return "" if own or chosen == config.network.encoder else chosen


def own_encoder(config: Config, method: str) -> str:
  """The encoder that a method brings or that is named with it (``a@mlp``), or ""."""
  return recipe_of(config, method).get("network", {}).get("encoder", "")


def choose_encoders(
  setup: Setup, records: Sequence[Record]
) -> dict[Assignment, dict[str, float]]:
  """What each encoder scores on the left-out sources of each task, best first.

  Args:
    setup: The setup.
    records: Of `encoder_runs`.

  Returns:
    ``{task: {encoder: score}}``, the chosen one first; no entry for a task with fewer
    than two sources. What is less than three points better than the encoder that the
    config names first is behind it.
  """
  found, names = {}, offered_encoders(setup)
  for task in setup.tasks if names else ():
    if not setup.judges(task):
      continue
    scores = {}
    for encoder in names:
      own = [r for r in records if r["tags"]["network.encoder"] == encoder]
      scores[encoder] = _judged(setup, task, own)
    worth = lambda e, s=scores: s[e] + (_WORTH if e == names[0] else 0.0)
    found[task] = {e: scores[e] for e in sorted(names, key=worth, reverse=True)}
  return found


def _judged(setup: Setup, task: Assignment, records: Sequence[Record]) -> float:
  """Mean over the sources that judge, at the step where it is best."""
  judges = {(t.target, setup.folds[t].sources) for t in setup.judges(task)}
  found: dict[int, dict[Any, list[float]]] = {}
  for r in records:
    if (judge := (r["target"], tuple(r["sources"]))) in judges:
      score = metric_value(r, f"target/{setup.config.metric}")
      found.setdefault(r["step"], {}).setdefault(judge, []).append(score)
  mean = lambda at: float(np.mean([np.mean(scores) for scores in at.values()]))
  # Where a source is not there, its run diverged.
  return max((mean(at) for at in found.values() if len(at) == len(judges)),
             default=-math.inf)  # fmt: skip


def choose_by_sources(
  setup: Setup, runs: Sequence[Run], records: Sequence[Record]
) -> dict[tuple[str, Assignment], Choice]:
  """The trial that does best on sources left out in turn, per method and task.

  A method all of whose trials lack a source keeps its defaults.

  Args:
    setup: The setup.
    runs: Those of the search.
    records: Of these.

  Returns:
    ``{(method, task): (overrides, number of trials)}``.
  """
  by_id, chosen = {run_id(setup, run): run for run in runs}, {}
  own = [r for r in records if r["run_id"] in by_id]
  for method in setup.config.methods:
    mine = [r for r in own if r["method"] == method]
    for task in setup.tasks:
      try:
        choice = leave_one_source_out(
          mine, setup.folds[task].sources, metric=setup.config.metric
        )
      except ValueError:
        continue
      best = setting(vars(choice))
      run = next(by_id[r["run_id"]] for r in mine if setting(r) == best)
      chosen[method, task] = run.overrides, choice.trials
  return chosen


def _weights(config: Config, method: str) -> list[str]:
  """Those of the space that may be 0."""
  recipe, found = recipe_of(config, method), []
  for name in _space(config, method):
    term, number = name.split(".")
    if (
      number == "weight"
      and hyperparameters_of(term, recipe.get(term, {}), ())[number].low == 0
    ):
      found.append(name)
  return found


def _space(config: Config, method: str) -> dict[str, Any]:
  """``{"term.number": (low, high)}``: of the config, else the ranges of its terms."""
  recipe = recipe_of(config, method)
  if method in config.search.space:
    groups = config.search.space[method].items()
    return {
      f"{t}.{n}": bounds for t, numbers in groups for n, bounds in numbers.items()
    }
  return {
    f"{term}.{name}": number.search
    for term, fields in recipe.items()
    if term not in SETTINGS
    for name, number in hyperparameters_of(term, fields, ()).items()
    if number.search
  }


def final_runs(
  config: Config,
  tasks: Sequence[Assignment],
  chosen: Mapping[tuple[str, Assignment], Choice],
  encoders: Encoders | None = None,
) -> list[Run]:
  """Runs of the table.

  Args:
    config: The config.
    tasks: Who trains and who tests.
    chosen: ``{(method, task): (overrides, number of trials)}`` from a search;
      empty means the defaults.
    encoders: Those that were chosen.
  """
  runs = []
  for method in config.methods:
    for task in tasks:
      overrides, trials = chosen.get((method, task), ((), 1))
      encoder = ""
      if encoders and task in encoders:
        trials += len(config.search.encoders) - 1
        encoder = _encoder(config, method, encoders[task])
      runs += [
        Run(method, task.target, seed, overrides, trials, task.sources, encoder)
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
