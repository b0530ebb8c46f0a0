"""Trained networks under stress: target rows with one modality corrupted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from mer_dg.contracts import Network
from mer_dg.data.arrays import EVAL_BLOCK, put, to_arrays
from mer_dg.data.logmel import HOP_S
from mer_dg.evaluation import CORRUPTIONS, SEVERITIES, corrupt
from mer_dg.evaluation.evaluators import HEADLINE, Evaluator, make_evaluate
from mer_dg.experiments.setup import Setup
from mer_dg.protocol import Assignment


def corruption_kind(setup: Setup, modality: str) -> str | None:
  """The key of `CORRUPTIONS` that fits a modality; None if there is none.

  Nothing fits an image or clip of numbers outside [0, 1]: their scale is unknown.
  """
  dataset, data = setup.dataset.in_memory(), setup.config.data
  x, kind = dataset.inputs[modality], dataset.kinds[modality]
  if data.name == "av_digits" and kind == "sequence":
    return "waveform" if data.audio == "waveform" else "logmel"
  if kind not in ("image", "clip"):
    return kind
  if x.dtype != np.uint8:
    here = x[dataset.present[modality]]
    known = np.issubdtype(x.dtype, np.floating) and here.size
    if not (known and here.min() >= 0 and here.max() <= 1):
      return None
  return "flow" if kind == "clip" and x.shape[-1] == 2 else kind


def corrupted_inputs(
  setup: Setup, task: Assignment, modality: str, kind: str, name: str
) -> Iterator[np.ndarray]:
  """One modality of the target rows as the network takes it, severity by severity.

  Vectors and sequences are corrupted in units of the spread of the source training
  rows. Rows that lack the modality stay empty.
  """
  test = setup.folds[task].test
  dataset = setup.dataset.in_memory().take(test).select_modalities((modality,))
  x, here = dataset.inputs[modality], dataset.present[modality]
  options: dict[str, Any] = {}
  if modality in dataset.lengths:
    options["lengths"] = dataset.lengths[modality][here]
  shape = x.shape
  if kind in ("vector", "sequence"):
    x, units = x.astype(np.float32), _units(setup, task, modality)
    options |= units
  elif kind == "waveform":  # Adjoining frames are one signal.
    options["sample_rate"] = shape[2] / HOP_S
    options["lengths"] = options["lengths"] * shape[2]
    x = x.reshape(len(x), -1)
  for severity in SEVERITIES:
    out = x.copy()
    out[here] = corrupt(
      *(x[here], dataset.index[here]), kind=kind, name=name, severity=severity,
      **options,
    )  # fmt: skip
    changed = dataclasses.replace(dataset, inputs={modality: out.reshape(shape)})
    yield to_arrays(changed).inputs[modality]


def _units(setup: Setup, task: Assignment, modality: str) -> dict[str, np.ndarray]:
  train = np.concatenate(list(setup.folds[task].train.values()))
  fitted = setup.dataset.select_modalities((modality,)).scaling(train)[modality]
  inverse = fitted["inv_scale"]
  scale = np.divide(1.0, inverse, out=np.zeros_like(inverse), where=inverse > 0)
  return {"center": fitted["center"], "scale": scale}


class Stress:
  """Scores of networks on corrupted inputs; one compiled program per network.

  Args:
    setup: The setup.
  """

  def __init__(self, setup: Setup):
    self._setup, self._programs = setup, {}
    most = max(len(split.test) for split in setup.splits)
    self._size = -(-most // EVAL_BLOCK) * EVAL_BLOCK

  def scores(
    self, task: Assignment, network: Network, variables: Sequence[Any]
  ) -> list[dict[str, float]]:
    """The headline metric under every corruption, on all rows of the target.

    Args:
      task: Who trained and who tests.
      network: The network.
      variables: Of several trainings of it; they are shown the same inputs.

    Returns:
      ``{"corrupted/<m>/<corruption>/<severity>": score}`` of each.
    """
    dataset = self._setup.dataset.in_memory().take(self._setup.folds[task].test)
    clean = jax.tree.map(self._padded, to_arrays(dataset))
    rows = np.arange(self._size).reshape(-1, EVAL_BLOCK)
    places = rows, np.full_like(rows, -1), rows < len(dataset)
    score, found = self._score(network), [{} for _ in variables]
    for m in dataset.modalities:
      kind = corruption_kind(self._setup, m)
      if kind is None:
        continue
      for name in CORRUPTIONS[kind]:
        changed = corrupted_inputs(self._setup, task, m, kind, name)
        for severity, x in zip(SEVERITIES, changed, strict=True):
          inputs = clean.inputs | {m: self._padded(x)}
          shown = put(clean._replace(inputs=inputs))
          for own, of in zip(found, variables, strict=True):
            value = score(shown, *places, of)["score"]
            own[f"corrupted/{m}/{name}/{severity}"] = float(value)
    return found

  def _score(self, network: Network):
    headline = HEADLINE[self._setup.config.metric]
    fn = lambda seen, _: {"score": headline(seen.logits, seen.label, seen.target)}
    if id(network) not in self._programs:
      asked = (Evaluator("corrupted", "checkpoint", fn),)
      self._programs[id(network)] = jax.jit(make_evaluate(network, asked))
    return self._programs[id(network)]

  def _padded(self, a: np.ndarray) -> np.ndarray:
    """Zeros behind the rows: all targets have the same shapes."""
    return np.pad(a, [(0, self._size - len(a)), *[(0, 0)] * (a.ndim - 1)])
