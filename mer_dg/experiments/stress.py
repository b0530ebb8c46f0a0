"""Trained networks under stress, on target rows: inputs corrupted, modalities missing.

Corrupted inputs are made once for each held-out domain and shown to all its runs; only
the embedding of the corrupted modality is computed again, those of the others and the
fusion are as in the clean evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.contracts import Network
from mer_dg.data.arrays import eval_blocks, to_arrays
from mer_dg.data.logmel import HOP_S
from mer_dg.data.splits import Split
from mer_dg.evaluation import (
  CORRUPTIONS,
  SEVERITIES,
  corrupt,
  mean_embeddings,
  missing_modalities,
)
from mer_dg.experiments.setup import EVAL_BLOCK, HEADLINE, Setup
from mer_dg.training.step import make_predict


def fold(setup: Setup, target: str) -> Split:
  """The rows of the one task that tests on a domain."""
  (split,) = (s for task, s in setup.folds.items() if task.target == target)
  return split


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
  setup: Setup, target: str, modality: str, kind: str, name: str
) -> Iterator[np.ndarray]:
  """One modality of the target rows as the network takes it, severity by severity.

  Vectors and sequences are corrupted in units of the spread of the source training
  rows. Rows that lack the modality stay empty.
  """
  split = fold(setup, target)
  dataset = setup.dataset.in_memory().take(split.test).select_modalities((modality,))
  x, here = dataset.inputs[modality], dataset.present[modality]
  options: dict[str, Any] = {}
  if modality in dataset.lengths:
    options["lengths"] = dataset.lengths[modality][here]
  shape = x.shape
  if kind in ("vector", "sequence"):
    x, units = x.astype(np.float32), _units(setup, target, modality)
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


def _units(setup: Setup, target: str, modality: str) -> dict[str, np.ndarray]:
  train = np.concatenate(list(fold(setup, target).train.values()))
  fitted = setup.dataset.select_modalities((modality,)).scaling(train)[modality]
  inverse = fitted["inv_scale"]
  scale = np.divide(1.0, inverse, out=np.zeros_like(inverse), where=inverse > 0)
  return {"center": fitted["center"], "scale": scale}


class Stress:
  """Scores of many runs under stress; one compiled program per modality.

  Args:
    setup: The setup.
    network: Of the runs.
  """

  def __init__(self, setup: Setup, network: Network):
    self._setup, self._network = setup, network
    self._headline = HEADLINE[setup.config.metric]
    tests = [split.test for split in setup.folds.values()]
    self._size = EVAL_BLOCK * max(len(eval_blocks(r, EVAL_BLOCK)[0]) for r in tests)
    self._missing = jax.jit(jax.vmap(self._missing_scores, in_axes=(0, 0, None, None)))

    @functools.cache
    def corrupted(modality: str):
      scores = functools.partial(self._corrupted_scores, modality)
      return jax.jit(jax.vmap(scores, in_axes=(0, 0, None, None, None)))

    self._corrupted = corrupted

  def scores(
    self, target: str, variables: Any, embeddings: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """The headline metric of each run, ``{name without split and metric: [R]}``.

    Names are ``corrupted/<m>/<corruption>/<severity>``; ``without_<a>+<b>``, those
    modalities missing; and ``mean_for_<a>+<b>``, the mean embedding of source training
    rows in their places.

    Args:
      target: Held-out domain of all the runs.
      variables: Of the network, stacked over R runs.
      embeddings: ``{m: [R, N, D]}`` of all rows of the dataset.
    """
    dataset, split = self._setup.dataset.in_memory(), fold(self._setup, target)
    train = np.concatenate(list(split.train.values()))
    here = {m: p[train] for m, p in dataset.present.items()}
    fill = jax.vmap(mean_embeddings, in_axes=(0, None))(
      {m: jnp.asarray(z[:, train]) for m, z in embeddings.items()}, here
    )
    z = {m: self._padded(a[:, split.test], axis=1) for m, a in embeddings.items()}
    present = {m: self._padded(p[split.test]) for m, p in dataset.present.items()}
    label = self._padded(dataset.label[split.test]), self._mask(len(split.test))
    found = {}
    if len(dataset.modalities) > 1:
      found |= self._missing(variables, (z, fill), present, label)
    for m in dataset.modalities:
      kind = corruption_kind(self._setup, m)
      if kind is None:
        continue
      for name in CORRUPTIONS[kind]:
        inputs = corrupted_inputs(self._setup, target, m, kind, name)
        x = np.stack([self._padded(a) for a in inputs])
        scores = self._corrupted(m)(variables, z, present, label, x)
        found |= {
          f"corrupted/{m}/{name}/{s}": scores[:, i] for i, s in enumerate(SEVERITIES)
        }
    return {k: np.asarray(v) for k, v in found.items()}

  def _padded(self, a: np.ndarray, axis: int = 0) -> np.ndarray:
    """Zeros (False) behind the rows: all targets have the same shapes."""
    widths = [(0, 0)] * a.ndim
    widths[axis] = (0, self._size - a.shape[axis])
    return np.pad(a, widths)

  def _mask(self, rows: int) -> np.ndarray:
    return np.arange(self._size) < rows

  def _missing_scores(self, variables, z_and_fill, present, label):
    """One run, every subset of modalities, both ways of withholding."""
    z, fill = z_and_fill
    z = {m: z[m] for m in self._setup.dataset.modalities}  # jit sorts by name.
    fuse = functools.partial(self._network.fuse, variables)
    metric, found = self._setup.config.metric, {}
    for prefix, mean in (("without_", None), ("mean_for_", fill)):
      scores = missing_modalities(fuse, z, present, *label, fill=mean)
      for name, value in scores.items():
        subset, _, of = name.partition("/")
        if of == metric and subset != "all":
          found[prefix + subset.removeprefix("without_")] = value
    return found

  def _corrupted_scores(self, modality: str, variables, z, present, label, x):
    """One run, ``x [severities, n, ...]`` instead of a modality; ``[severities]``."""
    network, predict = self._network, make_predict(self._network)
    shapes = {m: spec.shape for m, spec in self._setup.dataset.specs.items()}
    blocks = lambda a: a.reshape(-1, EVAL_BLOCK, *a.shape[1:])
    z, present = jax.tree.map(blocks, (z, present))

    def fused(block):
      own, z, present = block
      # Encoders do not see each other: what the others would read is not computed.
      inputs = {m: jnp.zeros((EVAL_BLOCK, *shapes[m])) for m in shapes}
      batch = {"inputs": {**inputs, modality: own}, "present": present}
      new = predict(variables, batch).embeddings[modality]
      return network.fuse(variables, {**z, modality: new}, present)

    def score(x):
      logits = jax.lax.map(fused, (blocks(x), z, present))
      return self._headline(logits.reshape(-1, logits.shape[-1]), *label)

    return jax.lax.map(score, x)
