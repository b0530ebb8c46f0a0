"""Fusion overfitting, measured: encoders trained jointly against trained alone.

Every encoder is frozen after training and re-probed: a linear classifier is
fitted on source training rows and judged on source validation and target. If
joint training made the encoders lean on each other, the probes of jointly
trained encoders, and the fused prediction itself, fall behind those of encoders
that never saw another modality (the evidence of the MER-DG paper, arXiv 2605.01967).

The fused prediction is also judged on samples that are re-paired: modalities of
different samples of one class, across domains. What it loses by that on the sources is
its reliance on which samples came together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.data.arrays import eval_blocks, gather_batch
from mer_dg.evaluation import repair_within_class
from mer_dg.evaluation.probe import linear_probe
from mer_dg.experiments.build import EVAL_BLOCK, HEADLINE, Workbench
from mer_dg.experiments.grid import Wave, train_all
from mer_dg.experiments.runs import Run
from mer_dg.training.step import make_predict

# {(training, probed, target, seed): {"val": accuracy, "target": accuracy}}
Probes = dict[tuple[str, str, str, int], dict[str, float]]


def diagnose(
  bench: Workbench, on_wave: Callable[[Wave], None] = lambda _: None
) -> Probes:
  """Trains every method of the config, and each modality alone, and re-probes all.

  Args:
    bench: A workbench; its methods, targets and seeds are used.
    on_wave: Called with each finished wave of a method.

  Returns:
    Accuracies in [0, 1]. ``training`` is a method name or "alone"; ``probed`` is
    a modality, "all" (a probe on all embeddings side by side), "fused" (the trained
    network's own prediction) or "re-paired" (the same after re-pairing); the last
    two for joint training only. The probe "all" of
    "alone" is what encoders without any co-adaptation reach together.
  """
  config, probes = bench.config, {}
  embedded: dict[tuple[str, str, int], dict[str, np.ndarray]] = {}
  modalities = bench.dataset.modalities

  def collect(own: Workbench, training: str, wave: Wave) -> None:
    found = _embed(own, wave.state.variables)
    for i, run in enumerate(wave.runs):
      rows = {m: z[i] for m, z in found.items()}
      embedded.setdefault((training, run.target, run.seed), {}).update(rows)
      if training != "alone":
        own_state = jax.tree.map(lambda a, i=i: a[i], wave.state.variables)
        repaired = _repaired(own, run.target, own_state, rows)
        probes[training, "re-paired", run.target, run.seed] = repaired

  def joint(wave: Wave) -> None:
    on_wave(wave)
    for e in wave.evaluations:
      if e.step == config["total_steps"]:
        metric = config["metric"]
        probes[e.run.method, "fused", e.run.target, e.run.seed] = {
          "val": e.metrics[f"val/{metric}"],
          "target": e.metrics[f"target/{metric}"],
        }
    collect(bench, wave.runs[0].method, wave)

  cells = [(t, s) for t in bench.targets() for s in config["seeds"]]
  for method in config["methods"]:
    train_all(bench, [Run(method, *c) for c in cells], joint)
  for m in modalities:
    data = {**config["data"], "modalities": [m]}
    alone = bench.dataset.select_modalities((m,))
    own = Workbench({**config, "data": data, "methods": ["erm"]}, alone)
    train_all(
      own,
      [Run("erm", *c) for c in cells],
      lambda wave, own=own: collect(own, "alone", wave),
    )
  for (training, target, seed), z in embedded.items():
    for probed in (*modalities, "all"):
      names = modalities if probed == "all" else (probed,)
      probes[training, probed, target, seed] = _probe(bench, target, z, names)
  return probes


def _embed(bench: Workbench, variables) -> dict[str, np.ndarray]:
  """Embeddings of all rows of the dataset, ``{modality: [runs, N, D]}``."""
  rows, mask = eval_blocks(np.arange(len(bench.dataset)), EVAL_BLOCK)
  predict = make_predict(bench.network)

  def one_run(arrays, variables):
    def block(rows_mask):
      rows, mask = rows_mask
      batch = gather_batch(arrays, rows, jnp.zeros_like(rows), mask)
      return predict(variables, batch).embeddings

    z = jax.lax.map(block, (rows, mask))
    return jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), z)

  z = jax.jit(jax.vmap(one_run, in_axes=(None, 0)))(bench.arrays, variables)
  return {m: np.asarray(a[:, : len(bench.dataset)]) for m, a in z.items()}


def _repaired(bench: Workbench, target: str, variables, z) -> dict[str, float]:
  """Score of the fused prediction on re-paired validation and target rows."""
  split, dataset = bench.split(target), bench.dataset
  headline, found = HEADLINE[bench.config["metric"]], {}
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
    logits = bench.network.fuse(variables, take(z), take(dataset.present))
    found[name] = float(headline(logits, label, jnp.ones(len(rows), bool)))
  return found


# Compiled once per shape: a table has hundreds of probes of a few shapes.
_fit = jax.jit(linear_probe, static_argnames="num_classes")


def _probe(bench, target: str, z: Mapping[str, np.ndarray], names) -> dict[str, float]:
  split = bench.split(target)
  train = np.concatenate(list(split.train.values()))
  joined = np.concatenate([z[m] for m in names], axis=1)
  label = bench.dataset.label
  pick = lambda rows: (joined[rows], label[rows], None)
  val = np.concatenate(list(split.val.values()))
  metric = bench.config["metric"]
  found = _fit(
    joined[train],
    label[train],
    {"val": pick(val), "target": pick(split.test)},
    num_classes=bench.dataset.num_classes,
  )
  return {k: float(found[f"{k}/{metric}"]) for k in ("val", "target")}


def to_markdown(probes: Probes) -> str:
  """Mean and standard error over targets and seeds, one row per training."""
  trainings = list(dict.fromkeys(key[0] for key in probes))
  columns = list(dict.fromkeys(key[1] for key in probes))
  lines = [
    "| training | " + " | ".join(f"{c}: source → target" for c in columns) + " |",
    "|" + " --- |" * (len(columns) + 1),
  ]
  for training in trainings:
    cells = []
    for column in columns:
      rows = [v for k, v in probes.items() if k[:2] == (training, column)]
      cells.append(_cell(rows))
    lines.append(f"| {training} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def _cell(rows: Sequence[Mapping[str, float]]) -> str:
  if not rows:
    return "–"
  val = 100 * np.array([r["val"] for r in rows])
  target = 100 * np.array([r["target"] for r in rows])
  error = target.std(ddof=1) / np.sqrt(len(target)) if len(target) > 1 else np.nan
  return f"{val.mean():.1f} → {target.mean():.1f} ± {error:.1f}"
