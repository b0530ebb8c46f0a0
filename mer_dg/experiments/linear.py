"""What linear models make of the same splits: all modalities, each alone, averaged."""

from __future__ import annotations

from collections.abc import Mapping
import json
import warnings

import numpy as np

from mer_dg.data.dataset import ArrayDataset
from mer_dg.data.evidence import spread
from mer_dg.data.splits import Split
from mer_dg.experiments.setup import Setup
from mer_dg.experiments.workdir import Workdir, WorkdirError, read_object
from mer_dg.protocol import write_atomic
from mer_dg.reporting import linear as shown
from mer_dg.reporting import pipe_table
from mer_dg.reporting.linear import ALL, LATE, ModelRow

# Rows that are fitted, numbers per row; a linear model of more takes minutes.
_ROWS, _COLUMNS = 4000, 2000
_SIDE = 8  # Of pictures, after averaging.
_PARTS = 6  # Of a long sequence.


def linear_models(setup: Setup) -> list[ModelRow]:
  """Logistic regressions (C = 0.1) on standardised inputs, from source rows alone.

  A sequence gives the mean, deviation, least and largest value and mean absolute step
  of each channel, one of 24 steps or more, without padding, also the mean and deviation
  of each sixth; a picture its averages over 8 x 8 fields, a clip these of its mean
  over time; what is missing is the mean.

  Args:
    setup: Of a set in memory.

  Returns:
    All modalities together, each alone, and the average of the probabilities of the
    single ones; without the first and last for one modality.
  """
  dataset = setup.dataset.in_memory()
  features = {m: features_of(dataset, m) for m in dataset.modalities}
  scores: dict[str, list[tuple[str, float, float]]] = {}
  for task, split in zip(setup.tasks, setup.splits, strict=True):
    for name, (val, target) in _of_task(setup, dataset, features, split).items():
      scores.setdefault(name, []).append((task.target, val, target))
  return [
    ModelRow(name, float(np.mean([v for _, v, _ in found])), _by_target(found))
    for name, found in scores.items()
  ]


def linear_first(setup: Setup, workdir: Workdir) -> str:
  """Fits the models that a table begins with, unless they are there.

  Args:
    setup: Of the table.
    workdir: Its folder; they go to `Workdir.linear`.

  Returns:
    The table of them and what it says of fusion; "" if they were there, or there are
    none.
  """
  asked = [[t.target, list(t.sources)] for t in setup.tasks]
  try:
    there = workdir.linear.exists() and read_object(workdir.linear)["tasks"] == asked
  except (WorkdirError, LookupError):
    there = False
  if there:
    return ""
  models, metric = linear_models(setup), setup.config.metric
  stored = shown.to_json(models, metric) | {"tasks": asked}
  write_atomic(workdir.linear, json.dumps(stored) + "\n")
  if not models:
    return ""
  title = f"Linear models on the same splits, {metric.replace('_', ' ')} in %:"
  said = shown.says(models)
  return "\n\n".join([title, pipe_table(*shown.grid(models, metric)), said]).rstrip()


def read_linear(workdir: Workdir, metric: str) -> list[ModelRow]:
  """The models that a table began with; none if it has no readable file of them."""
  try:
    return shown.from_json(read_object(workdir.linear), metric)
  except (OSError, WorkdirError, LookupError, TypeError, ValueError):
    return []


def _by_target(found) -> dict[str, float]:
  targets = dict.fromkeys(t for t, _, _ in found)
  return {t: float(np.mean([s for u, _, s in found if u == t])) for t in targets}


def _of_task(setup: Setup, dataset: ArrayDataset, features, split: Split):
  """``{name: (source validation, target)}``."""
  label = dataset.label
  train = np.concatenate(list(split.train.values()))
  val = np.concatenate(list(split.val.values()))
  # All of a domain lies together; an even spread keeps the shares.
  train = train[spread(len(train), _ROWS)]
  balanced = setup.config.metric == "balanced_accuracy"

  def judged(guess: np.ndarray, rows: np.ndarray) -> float:
    right = guess.argmax(axis=1) == label[rows]
    if not balanced:
      return float(right.mean()) if len(rows) else np.nan
    there = [right[label[rows] == k].mean() for k in np.unique(label[rows])]
    return float(np.mean(there)) if there else np.nan

  found, alone = {}, []
  for name, inputs in _inputs(features):
    rows = train if name == ALL else train[dataset.present[name][train]]
    if len(np.unique(label[rows])) < 2:
      continue
    guesses = _fit(inputs, label, rows, dataset.num_classes, (val, split.test))
    found[name] = (judged(guesses[0], val), judged(guesses[1], split.test))
    if name != ALL:
      here = lambda r, m=name: dataset.present[m][r, None]
      alone.append(
        [g * here(r) for g, r in zip(guesses, (val, split.test), strict=True)]
      )
  if len(alone) > 1:
    mean = [np.sum(parts, axis=0) for parts in zip(*alone, strict=True)]
    found[LATE] = (judged(mean[0], val), judged(mean[1], split.test))
  return found


def _inputs(features: Mapping[str, np.ndarray]):
  if len(features) > 1:
    yield ALL, np.concatenate(list(features.values()), axis=1)
  yield from features.items()


def _fit(x, label, train, classes: int, asked) -> list[np.ndarray]:
  """Probabilities ``[n, K]`` of each of the asked rows."""
  # They take seconds to import; whoever trains no table needs them not.
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LogisticRegression

  if x.shape[1] > _COLUMNS:
    x = x[:, spread(x.shape[1], _COLUMNS)]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # Of a column that is all missing.
    center, scale = np.nanmean(x[train], axis=0), np.nanstd(x[train], axis=0)
  # A modality that never changes leaves a constant, and with it the class shares.
  x, center, scale = (
    np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, 1)]) for a in (x, center, scale)
  )
  scale[-1] = 1.0
  moving = scale > 1e-6 * np.abs(center) + 1e-20
  z = np.nan_to_num((x[:, moving] - center[moving]) / scale[moving])
  z = np.clip(z, -10, 10)  # As `config.network.input_clip` does by default.
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    model = LogisticRegression(C=0.1, max_iter=200, tol=1e-3)
    model.fit(z[train], label[train])
  out = []
  for rows in asked:
    guess = np.zeros((len(rows), classes))
    if len(rows):
      guess[:, model.classes_] = model.predict_proba(z[rows])
    out.append(guess)
  return out


def features_of(dataset: ArrayDataset, m: str) -> np.ndarray:
  """What a linear model sees of a modality, see `linear_models`.

  Returns:
    float32 ``[N, D]``, NaN where the modality is missing.
  """
  x, kind = dataset.inputs[m], dataset.kinds[m]
  if kind == "vector":
    out = x.astype(np.float32)
  elif kind == "sequence":
    out = np.concatenate(
      [_statistics(x[i : i + 256], _lengths(dataset, m)[i : i + 256])
       for i in range(0, len(x), 256)]
    )  # fmt: skip
  else:
    out = np.concatenate([_pooled(x[i : i + 64]) for i in range(0, len(x), 64)])
  out = np.array(out, np.float32)
  out[~dataset.present[m]] = np.nan
  return out


def _lengths(dataset: ArrayDataset, m: str) -> np.ndarray:
  full = np.full(len(dataset), dataset.inputs[m].shape[1])
  return dataset.lengths.get(m, full)


def _statistics(x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """Five statistics of each channel of ``[n, T, C]`` over valid steps."""
  valid = (np.arange(x.shape[1])[None, :] < lengths[:, None])[:, :, None]
  x = np.where(valid, x, 0).astype(
    np.float32
  )  # What stands in padding may be anything.
  count = np.maximum(valid.sum(axis=1), 1)
  mean = x.sum(axis=1) / count
  centred = np.where(valid, x - mean[:, None], 0)
  deviation = np.sqrt((centred**2).sum(axis=1) / count)
  least = np.where(valid, x, np.inf).min(axis=1)
  largest = np.where(valid, x, -np.inf).max(axis=1)
  steps = np.where(valid[:, 1:], np.abs(np.diff(x, axis=1)), 0).sum(axis=1)
  step = steps / np.maximum(count - 1, 1)
  found = [mean, deviation, least, largest, step]
  if x.shape[1] >= 4 * _PARTS and valid.all():
    found += [part.mean(axis=1) for part in np.array_split(x, _PARTS, axis=1)]
    found += [part.std(axis=1) for part in np.array_split(x, _PARTS, axis=1)]
  return np.concatenate(found, axis=1)


def _pooled(x: np.ndarray) -> np.ndarray:
  """Averages of images or clips over at most 8 x 8 fields."""
  x = x.astype(np.float32)
  x = x.mean(axis=1) if x.ndim == 5 else x
  for axis in (1, 2):
    edges = np.unique(np.linspace(0, x.shape[axis], _SIDE + 1).astype(int))[:-1]
    sizes = np.diff([*edges, x.shape[axis]]).reshape(
      [-1 if a == axis else 1 for a in range(4)]
    )
    x = np.add.reduceat(x, edges, axis=axis) / sizes
  return x.reshape(len(x), -1)
