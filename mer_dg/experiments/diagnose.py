"""Fusion overfitting, measured: encoders trained jointly against trained alone.

Every encoder is frozen after training and re-probed: a linear classifier is
fitted on source training rows and judged on source validation and target. If
joint training made the encoders lean on each other, the probes of jointly
trained encoders, and the fused prediction itself, fall behind those of encoders
that never saw another modality (the evidence of the MER-DG paper, arXiv 2605.01967).

The fused prediction is also judged on samples that are re-paired: modalities of
different samples of one class, across domains. What it loses by that on the sources is
its reliance on which samples came together. `stress` corrupts and withholds modalities,
`representation` compares the embeddings of source and target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.data.arrays import eval_blocks, gather_batch, to_arrays
from mer_dg.evaluation import repair_within_class
from mer_dg.evaluation.probe import linear_probe
from mer_dg.experiments.diagnosis_text import Probes, to_markdown
from mer_dg.experiments.grid import Grid, Wave, train_all
from mer_dg.experiments.representation import (
  Embedded,
  embedding_maps,
  representations,
)
from mer_dg.experiments.runs import Evaluation, Run
from mer_dg.experiments.setup import EVAL_BLOCK, HEADLINE, Setup, make_setup
from mer_dg.experiments.stress import Stress, fold
from mer_dg.reporting.maps import EmbeddingMaps
from mer_dg.training.step import make_predict

__all__ = ["diagnose", "to_markdown"]


def diagnose(
  setup: Setup,
  on_wave: Callable[[Wave], None] = lambda _: None,
  on_maps: Callable[[EmbeddingMaps], None] = lambda _: None,
) -> Probes:
  """Trains every method of the config, and each modality alone, and examines all.

  Args:
    setup: A setup; its methods, targets and seeds are used.
    on_wave: Called with each finished wave of a method; at the end with each of them
      again, now with the last evaluations only, to whose metrics those of `Stress` and
      `representations` are added: ``target/corrupted/...``, ``target/without_...``,
      ``target/mean_for_...`` and ``representation/<m>/...``.
    on_maps: Called with maps of the embeddings for the first target and seed.

  Returns:
    Accuracies in [0, 1]. ``training`` is a method name or "alone"; ``probed`` is
    a modality, "all" (a probe on all embeddings side by side), "fused" (the trained
    network's own prediction) or "re-paired" (the same after re-pairing); the last
    two for joint training only. The probe "all" of "alone" is what encoders without any
    co-adaptation reach together. "fused" has the scores under stress, too, and each
    modality the numbers of `representations`.
  """
  waves, embedded = _train(setup, on_wave)
  probes = _fused(setup, waves, embedded)
  modalities = setup.dataset.modalities
  for (training, target, seed), z in embedded.items():
    for probed in (*modalities, "all"):
      names = modalities if probed == "all" else (probed,)
      if z.keys() >= set(names):  # A training that diverged is left out.
        probes[training, probed, target, seed] = _probe(setup, target, z, names)
  _add_stress(setup, waves, embedded, probes)
  splits = {task.target: split for task, split in setup.folds.items()}
  inside = representations(setup.dataset.in_memory(), splits, embedded)
  for (training, target, seed), numbers in inside.items():
    for m, values in numbers.items():
      probes[training, m, target, seed] |= values
  for wave in waves:
    on_wave(wave._replace(evaluations=_extended(setup, wave, probes)))
  on_maps(embedding_maps(setup, embedded))
  return probes


def _train(
  setup: Setup, on_wave: Callable[[Wave], None]
) -> tuple[list[Wave], Embedded]:
  """The waves of all methods, on the host, and the embeddings of every training."""
  config, waves = setup.config, []
  embedded: Embedded = {}

  def collect(own: Setup, training: str, wave: Wave) -> None:
    found, lost = _embed(own, wave), {d.run for d in wave.diverged}
    for i, run in enumerate(wave.runs):
      if run not in lost:
        rows = {m: z[i] for m, z in found.items()}
        embedded.setdefault((training, run.target, run.seed), {}).update(rows)

  def joint(wave: Wave) -> None:
    on_wave(wave)
    host = jax.tree.map(_to_host, (wave.state, wave.variables))
    waves.append(wave._replace(state=host[0], variables=host[1]))
    collect(setup, wave.runs[0].method, wave)

  runs = lambda method: [
    Run(method, task.target, seed, sources=task.sources)
    for task in setup.tasks
    for seed in config.seeds
  ]
  grid = Grid(setup)
  for method in config.methods:
    train_all(grid, runs(method), joint)
  for m in setup.dataset.modalities:
    data = dataclasses.replace(config.data, modalities=(m,))
    alone = setup.dataset.select_modalities((m,))
    own = make_setup(dataclasses.replace(config, data=data, methods=("erm",)), alone)
    train_all(
      Grid(own),
      runs("erm"),
      lambda wave, own=own: collect(own, "alone", wave),
    )
  return waves, embedded


def _to_host(a: jax.Array) -> Any:
  return a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else np.asarray(a)


def _variables(wave: Wave, run: Run) -> Any:
  i = wave.runs.index(run)
  return jax.tree.map(lambda a: a[i], wave.variables)


def _last(setup: Setup, wave: Wave) -> list[Evaluation]:
  return [e for e in wave.evaluations if e.step == setup.config.total_steps]


def _fused(setup: Setup, waves: Sequence[Wave], embedded: Embedded) -> Probes:
  """The fused predictions of all methods, as they are and re-paired."""
  metric, probes = setup.config.metric, {}
  for wave in waves:
    for e in _last(setup, wave):
      key, own = (e.run.target, e.run.seed), _variables(wave, e.run)
      probes[e.run.method, "fused", *key] = {
        side: e.metrics[f"{side}/{metric}"] for side in ("val", "target")
      }
      probes[e.run.method, "re-paired", *key] = _repaired(
        setup, e.run, own, embedded[e.run.method, *key]
      )
  return probes


def _add_stress(
  setup: Setup, waves: Sequence[Wave], embedded: Embedded, probes: Probes
) -> None:
  """Adds the scores under stress to the "fused" probes, target by target."""
  stress: dict[int, Stress] = {}  # Methods that share a network share programs.
  groups: dict[tuple[str, int], list[tuple[Wave, Run]]] = {}
  for wave in waves:
    for e in _last(setup, wave):
      network = setup.network(e.run.method)
      stress.setdefault(id(network), Stress(setup, network))
      groups.setdefault((e.run.target, id(network)), []).append((wave, e.run))
  stack = lambda trees: jax.tree.map(lambda *a: np.stack(a), *trees)
  for (target, network), found in groups.items():
    variables = [_variables(wave, run) for wave, run in found]
    own = [embedded[run.method, target, run.seed] for _, run in found]
    scores = stress[network].scores(target, stack(variables), stack(own))
    for i, (_, run) in enumerate(found):
      probes[run.method, "fused", target, run.seed] |= {
        name: float(values[i]) for name, values in scores.items()
      }


def _extended(setup: Setup, wave: Wave, probes: Probes) -> list[Evaluation]:
  """The last evaluations of a wave with all that was found since, as metrics."""
  metric, sides = setup.config.metric, ("val", "target")
  out = []
  for e in _last(setup, wave):
    key = e.run.target, e.run.seed
    fused = probes[e.run.method, "fused", *key]
    more = {f"target/{k}/{metric}": v for k, v in fused.items() if k not in sides}
    for m in setup.dataset.modalities:
      own = probes[e.run.method, m, *key]
      more |= {f"representation/{m}/{k}": v for k, v in own.items() if k not in sides}
    out.append(dataclasses.replace(e, metrics={**more, **e.metrics}))
  return out


def _embed(setup: Setup, wave: Wave) -> dict[str, np.ndarray]:
  """Embeddings of all rows of the dataset, ``{modality: [runs, N, D]}``."""
  rows, mask = eval_blocks(np.arange(len(setup.dataset)), EVAL_BLOCK)
  predict = make_predict(setup.network(wave.runs[0].method))

  def one_run(arrays, variables):
    def block(rows_mask):
      rows, mask = rows_mask
      batch = gather_batch(arrays, rows, jnp.zeros_like(rows), mask)
      return predict(variables, batch).embeddings

    z = jax.lax.map(block, (rows, mask))
    return jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), z)

  z = jax.jit(jax.vmap(one_run, in_axes=(None, 0)))(
    to_arrays(setup.dataset.in_memory()), wave.variables
  )
  return {m: np.asarray(a[:, : len(setup.dataset)]) for m, a in z.items()}


def _repaired(setup: Setup, run: Run, variables, z) -> dict[str, float]:
  """Score of the fused prediction on re-paired validation and target rows."""
  split, dataset = setup.folds[run.task], setup.dataset.in_memory()
  network = setup.network(run.method)
  headline, found = HEADLINE[setup.config.metric], {}
  val = np.concatenate(list(split.val.values()))
  for name, rows in (("val", val), ("target", split.test)):
    label = jnp.asarray(dataset.label[rows])
    # One re-pairing per task: methods and seeds are judged on the same samples.
    partners = repair_within_class(
      label, jnp.asarray(dataset.domain[rows]), jax.random.key(0), dataset.modalities
    )
    take = lambda values, rows=rows, partners=partners: {
      m: jnp.asarray(values[m][rows])[partners[m]] for m in dataset.modalities
    }
    logits = network.fuse(variables, take(z), take(dataset.present))
    found[name] = float(headline(logits, label, jnp.ones(len(rows), bool)))
  return found


# Compiled once per shape: a table has hundreds of probes of a few shapes.
_fit = jax.jit(linear_probe, static_argnames="num_classes")


def _probe(setup, target: str, z: Mapping[str, np.ndarray], names) -> dict[str, float]:
  split = fold(setup, target)
  train = np.concatenate(list(split.train.values()))
  joined = np.concatenate([z[m] for m in names], axis=1)
  label = setup.dataset.label
  pick = lambda rows: (joined[rows], label[rows], None)
  val = np.concatenate(list(split.val.values()))
  metric = setup.config.metric
  found = _fit(
    joined[train],
    label[train],
    {"val": pick(val), "target": pick(split.test)},
    num_classes=setup.dataset.num_classes,
  )
  return {k: float(found[f"{k}/{metric}"]) for k in ("val", "target")}
