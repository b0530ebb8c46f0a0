"""What was understood of data and config, before anything is compiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
import math

import jax
import numpy as np
from tabulate import tabulate

from mer_dg.data.dataset import ArrayDataset
from mer_dg.data.evidence import spread
from mer_dg.experiments.search import offered_encoders
from mer_dg.experiments.setup import Setup
from mer_dg.networks.encoders import resolve

_ROWS = 512  # Looked at for ranges.
_LINES = 12  # Of domains and classes; more are counted.


def summary(setup: Setup) -> str:
  """Rows, classes, domains, modalities, warnings, and what is going to be trained.

  Args:
    setup: From `make_setup`.

  Returns:
    Text to be printed, several tables.
  """
  dataset, sizes = setup.dataset, _parameters(setup)
  groups, rows = len(np.unique(dataset.group)), len(dataset)
  head = f"{dataset.name}: {rows} rows, {dataset.num_classes} classes"
  head += f", {dataset.num_domains} domains"
  head += f", {groups} groups" if groups < rows else ""
  counts = np.bincount(dataset.label, minlength=dataset.num_classes)
  named = zip(dataset.class_names, counts.tolist(), strict=True)
  classes = _some([f"{name} {n}" for name, n in named])
  parts = [head, f"classes: {classes}", _domains(setup)]
  parts += [_modalities(setup, sizes), _plan(setup, sum(sizes.values()))]
  if warnings := dataset.warnings:
    parts.append("\n".join(["What is odd:", *(f"  {line}" for line in warnings)]))
  return "\n\n".join(parts) + "\n"


def _some(words: Sequence[str]) -> str:
  more = f" and {len(words) - _LINES} more" if len(words) > _LINES else ""
  return ", ".join(words[:_LINES]) + more


def _domains(setup: Setup) -> str:
  dataset, body = setup.dataset, []
  for d, name in enumerate(dataset.domain_names[:_LINES]):
    mine = dataset.domain == d
    there = np.unique(dataset.label[mine])
    lacking = np.setdiff1d(np.arange(dataset.num_classes), there)
    names = [dataset.class_names[k] for k in lacking]
    body.append([name, int(mine.sum()), _some(names) or "none"])
  text = tabulate(body, ["domain", "rows", "missing classes"], disable_numparse=True)
  more = dataset.num_domains - _LINES
  return text + (f"\n... and {more} more" if more > 0 else "")


def _modalities(setup: Setup, sizes: Counter[str]) -> str:
  dataset, body = setup.dataset, []
  for m, spec in dataset.specs.items():
    shape, kind, why, low_high, missing = list(spec.shape), spec.kind, "", "", ""
    if isinstance(dataset, ArrayDataset):
      x, present = dataset.inputs[m], dataset.present[m]
      shape, why = list(x.shape[1:]), dataset.why.get(m, "")
      low_high = _range(x[present], dataset.lengths.get(m))
      missing = f"{1 - present.mean():.1%}" if not present.all() else "none"
    offered = offered_encoders(setup) or (setup.config.network.encoder,)
    encoder = " or ".join(dict.fromkeys(resolve(e, kind) for e in offered))
    body.append(
      [m, str(shape), kind, why, low_high, missing, encoder, sizes[f"encoder/{m}"]]
    )
  head = [
    "modality",
    "shape",
    "kind",
    "why",
    "range",
    "missing",
    "encoder",
    "parameters",
  ]
  widths = [24, 20, 10, 36, 18, 8, 20, 10]
  return tabulate(body, head, maxcolwidths=widths, disable_numparse=True)


def _range(x: np.ndarray, lengths: np.ndarray | None) -> str:
  if not len(x):
    return ""
  some = x[spread(len(x), _ROWS)]
  if np.issubdtype(some.dtype, np.floating):
    some = some[np.isfinite(some)]
  padded = " (padded)" if lengths is not None else ""
  return f"{some.min():.3g} to {some.max():.3g}{padded}" if some.size else ""


def _parameters(setup: Setup) -> Counter[str]:
  """Numbers of each part of the network, by its name."""
  network = setup.network()
  params = jax.eval_shape(network.init, jax.random.key(0))["params"]
  sizes: Counter[str] = Counter()
  leaves, labels = jax.tree.leaves(params), jax.tree.leaves(network.parts(params))
  for leaf, label in zip(leaves, labels, strict=True):
    sizes[label] += math.prod(leaf.shape)
  return sizes


def _plan(setup: Setup, total: int) -> str:
  """Batch, steps in epochs, and how many runs of what."""
  config, tasks = setup.config, setup.tasks
  lines = []
  rows = [sum(map(len, split.train.values())) for split in setup.splits]
  batch = setup.per_domain(tasks[0]) * len(setup.folds[tasks[0]].sources)
  epochs = config.total_steps * batch / np.mean(rows)
  lines.append(
    f"batch {batch}, {config.total_steps} steps = {epochs:.0f} epochs of "
    f"{np.mean(rows):.0f} training rows, evaluated every {config.eval_every} steps"
  )
  if config.target:
    runs = f"one run: {config.method}, target {config.target}, seed {config.seed}"
  else:
    count = len(config.methods) * len(tasks) * len(config.seeds)
    runs = (
      f"{count} runs: {len(config.methods)} methods ({', '.join(config.methods)}) x "
      f"{len(tasks)} targets x {len(config.seeds)} seeds"
    )
    if config.search.trials:
      runs += f", after a search of {config.search.trials} trials per method"
  lines.append(f"{runs}; {total} parameters")
  return "\n".join(lines)
