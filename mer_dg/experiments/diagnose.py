"""Fusion overfitting, measured: encoders trained jointly against trained alone.

Every encoder is frozen after training and re-probed: a linear classifier is
fitted on source training rows and judged on source validation and target. If
joint training made the encoders lean on each other, the probes of jointly
trained encoders, and the fused prediction itself, fall behind those of encoders
that never saw another modality (the evidence of the MER-DG paper, arXiv 2605.01967).

The fused prediction is also judged on samples that are re-paired: modalities of
different samples of one class, across domains. What it loses by that on the sources is
its reliance on which samples came together. `stress` corrupts modalities,
`representation` compares the embeddings of source and target.

The networks are those of the table: what is missing of it is trained as `train_table`
does, then one network after another is read from the workdir and examined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mer_dg.contracts import Network
from mer_dg.data.arrays import eval_blocks, put, to_arrays
from mer_dg.evaluation.evaluators import Seen, make_judge, make_look
from mer_dg.experiments.diagnosis_text import Probes, to_markdown
from mer_dg.experiments.grid import Grid
from mer_dg.experiments.representation import (
  draw_all_sides,
  embedding_maps,
  representation,
)
from mer_dg.experiments.runs import Evaluation, Run, record_of, run_id
from mer_dg.experiments.setup import Setup, asked, make_setup
from mer_dg.experiments.stress import Stress
from mer_dg.experiments.tables import train_missing, train_table
from mer_dg.experiments.workdir import Workdir, read_lines
from mer_dg.protocol import Assignment, append_records, write_atomic
from mer_dg.reporting.maps import EmbeddingMaps
from mer_dg.training.parameters import load_parameters, saved_hash
from mer_dg.training.progress import progress_bar

__all__ = ["diagnose", "to_markdown"]

ALONE = "alone"
# {probed: {name: value}} of one network.
Found = dict[str, dict[str, float]]


class Trained(NamedTuple):
  """What is examined at once: a network, or the encoders that were trained alone.

  Attributes:
    training: Name of the method, or `ALONE`.
    task: Who trained and who tests.
    seed: Seed.
    files: Final parameters; by modality if alone, else under "".
    checkpoint: Their hashes.
    run: The run of a method.
  """

  training: str
  task: Assignment
  seed: int
  files: Mapping[str, Path]
  checkpoint: str
  run: Run | None = None

  @property
  def own(self) -> tuple:
    """What tells its rows in ``diagnosis.jsonl`` from others, `_OWN`."""
    return self.training, self.task.target, self.seed, self.checkpoint


def diagnose(setup: Setup, workdir: Workdir) -> tuple[Probes, EmbeddingMaps]:
  """Trains what is missing of the table, and each modality alone; examines all.

  What is found of a network is written at once: to ``report/diagnosis.jsonl``, and as
  further metrics of the last record of its run, those of `stress` and `representation`:
  ``target/corrupted/...``, ``target/without_...``, ``target/mean_for_...`` and
  ``representation/<m>/...``. Parameters that were examined before are not again.

  Args:
    setup: Of a table; its methods, targets and seeds are used.
    workdir: Where the table lies.

  Returns:
    What was found, accuracies in [0, 1], and maps of the embeddings for the first
    target and seed. ``training`` is a method name or "alone"; ``probed`` is
    a modality, "all" (a probe on all embeddings side by side), "fused" (the trained
    network's own prediction) or "re-paired" (the same after re-pairing); the last
    two for joint training only. The probe "all" of "alone" is what encoders without any
    co-adaptation reach together. "fused" has the scores under stress, too, and each
    modality the numbers of `representation`.

  Raises:
    CheckpointError: If a file of parameters is damaged.
  """
  runs, _ = train_table(setup, workdir, parameters=True)
  alone = _train_alone(setup, workdir)
  trained = [*_joint(setup, workdir, runs), *_alone(setup, workdir, alone)]
  path = workdir.path / "report" / "diagnosis.jsonl"
  path.parent.mkdir(exist_ok=True)
  found: dict[tuple, Found] = {}
  for row in read_lines(path, skip_damaged=True):
    own = tuple(row.pop(name, None) for name in _OWN)
    found.setdefault(own, {})[row.pop("probed", "")] = row
  examiner = _Examiner(setup, {m: own.network() for m, own in alone.items()})
  together = lambda t: (t.training, t.task)
  left = [t for t in trained if t.own not in found]
  groups = [list(group) for _, group in itertools.groupby(left, together)]
  for group in progress_bar(groups, len(groups), "examine"):
    new = examiner.examine(group)
    if group[0].run is not None:
      new = _recorded(setup, workdir, group, new)
    found |= {t.own: values for t, values in zip(group, new, strict=True)}
    rows = (
      dict(zip(_OWN, own, strict=True)) | {"probed": probed} | values
      for own, of in found.items()
      for probed, values in of.items()
    )
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
  probes = {
    (t.training, probed, t.task.target, t.seed): values
    for t in trained
    for probed, values in found[t.own].items()
  }
  return probes, embedding_maps(setup, examiner.embedded(trained))


_OWN = ("training", "held_out", "seed", "checkpoint")


def _train_alone(setup: Setup, workdir: Workdir) -> dict[str, Setup]:
  """Trains plain fusion on each modality; the setups of these trainings."""
  found, config = {}, setup.config
  for m in setup.dataset.modalities:
    data = dataclasses.replace(config.data, modalities=(m,))
    own = dataclasses.replace(config, data=data, methods=("erm",))
    found[m] = make_setup(own, setup.dataset.select_modalities((m,)))
    train_missing(
      Grid(found[m]), _runs_alone(setup), workdir, workdir.alone, parameters=True
    )
  return found


def _runs_alone(setup: Setup) -> list[Run]:
  return [
    Run("erm", task.target, seed, sources=task.sources)
    for task in setup.tasks
    for seed in setup.config.seeds
  ]


def _joint(setup: Setup, workdir: Workdir, runs: Sequence[Run]) -> Iterator[Trained]:
  """The networks of the table; those that diverged have left nothing."""
  for run in runs:
    file = workdir.parameters(run_id(setup, run))
    if file.exists():
      own = {"": file}, saved_hash(file)
      yield Trained(run.method, run.task, run.seed, *own, run)


def _alone(
  setup: Setup, workdir: Workdir, alone: Mapping[str, Setup]
) -> Iterator[Trained]:
  for run in _runs_alone(setup):
    of = {m: workdir.parameters(run_id(own, run)) for m, own in alone.items()}
    files = {m: file for m, file in of.items() if file.exists()}
    if files:
      hashes = " ".join(map(saved_hash, files.values()))
      yield Trained(ALONE, run.task, run.seed, files, hashes)


def _recorded(
  setup: Setup, workdir: Workdir, group: Sequence[Trained], found: Sequence[Found]
) -> list[Found]:
  """With the fused predictions as recorded; gives the records what was found."""
  end, metric, out, records = setup.config.total_steps, setup.config.metric, [], []
  last = {r["run_id"]: r for r in workdir.records() if r["step"] == end}
  for t, own in zip(group, found, strict=True):
    assert t.run is not None
    record = last[run_id(setup, t.run)]
    metrics = record["metrics"]
    fused = {side: metrics[f"{side}/{metric}"] for side in ("val", "target")}
    re_paired = {"val": metrics[f"val/re-paired/{metric}"]} | own["re-paired"]
    out.append({**own, "fused": fused | own["fused"], "re-paired": re_paired})
    more = {f"target/{k}/{metric}": v for k, v in own["fused"].items()}
    for m in setup.dataset.modalities:
      inside = {k: v for k, v in own[m].items() if k not in fused}
      more |= {f"representation/{m}/{k}": v for k, v in inside.items()}
    again = Evaluation(t.run, end, {**more, **metrics}, record["wall_time_s"])
    records.append(record_of(setup, again))
  append_records(workdir.results, records)
  return out


class _Examiner:
  """Examines networks, one after another; a program for each kind of network.

  Args:
    setup: Of the table.
    alone: The networks that are trained on one modality.
  """

  def __init__(self, setup: Setup, alone: Mapping[str, Network]):
    self._setup, self._networks = setup, {**alone}
    dataset = setup.dataset.in_memory()
    self._dataset, self._stress = dataset, Stress(setup)
    self._arrays = put(to_arrays(dataset))
    splits = {task.target: setup.folds[task] for task in setup.tasks}
    self._sides = draw_all_sides(dataset, splits)
    self._blocks = max(len(self._rows(task)[0]) for task in setup.tasks)
    self._programs: dict[Any, Any] = {}

  def examine(self, group: Sequence[Trained]) -> list[Found]:
    """What is found of networks of one method and task: they are shown the same."""
    training, task, *_ = group[0]
    corrupted: list[dict[str, float]] = [{} for _ in group]
    if training != ALONE:
      variables = [load_parameters(t.files[""]) for t in group]
      network = self._network(group[0])
      corrupted = self._stress.scores(task, network, variables)
    return [self._found(t, own) for t, own in zip(group, corrupted, strict=True)]

  def _found(self, t: Trained, corrupted: Mapping[str, float]) -> Found:
    metric, (variables, seen) = self._setup.config.metric, self._seen(t)
    judged = self._judge(t)(variables, seen)
    of = lambda key: float(judged[f"{key}/{metric}"])
    whole = t.run is not None or set(t.files) == set(self._dataset.modalities)
    found: Found = {}
    if t.run is not None:
      missing = {k for k in judged if k.startswith(("target/without_", "target/mean_"))}
      names = (k.removeprefix("target/").removesuffix(f"/{metric}") for k in missing)
      found["fused"] = {k: of(f"target/{k}") for k in sorted(names)} | {**corrupted}
      found["re-paired"] = {"target": of("target/re-paired")}
    z = self._on_all_rows(t.task, seen)
    inside = representation(self._dataset, self._sides[t.task.target], z)
    for probed in (*z, *(("all",) if whole else ())):
      sides = {side: of(f"probe/{probed}/{side}") for side in ("val", "target")}
      found[probed] = sides | inside.get(probed, {})
    return found

  def embedded(self, trained: Sequence[Trained]) -> dict[str, dict[str, np.ndarray]]:
    """``{training: {m: [N, D]}}`` for the first task and seed of the table."""
    first = self._setup.tasks[0], self._setup.config.seeds[0]
    some = [t for t in trained if (t.task, t.seed) == first]
    return {t.training: self._on_all_rows(t.task, self._seen(t)[1]) for t in some}

  def _seen(self, t: Trained) -> tuple[Any, Seen]:
    """Parameters, and one forward pass over the rows of its task."""
    rows, domain, mask, train = self._padded(t.task)
    loaded = {m: load_parameters(file) for m, file in t.files.items()}
    if t.run is not None:
      look = self._compiled(make_look, self._network(t))
      seen = look(self._arrays, rows, domain, mask, loaded[""])
      return loaded[""], seen._replace(train=train)
    parts = {}
    for m, variables in loaded.items():
      inputs, present = {m: self._arrays.inputs[m]}, {m: self._arrays.present[m]}
      arrays = self._arrays._replace(inputs=inputs, present=present)
      look = self._compiled(make_look, self._networks[m])
      parts[m] = look(arrays, rows, domain, mask, variables)
    embeddings = {m: part.embeddings[m] for m, part in parts.items()}
    present = {m: part.present[m] for m, part in parts.items()}
    (seen, *_) = parts.values()
    return None, seen._replace(embeddings=embeddings, present=present, train=train)

  def _judge(self, t: Trained):
    evaluators = asked(self._setup, t.task, "checkpoint")
    if t.run is not None:
      return self._compiled(make_judge, self._network(t), evaluators)
    # Encoders alone have no fused prediction.
    probes = tuple(e for e in evaluators if e.name == "probes")
    return self._compiled(make_judge, self._setup.network(), probes)

  def _network(self, t: Trained) -> Network:
    return self._setup.network(t.run.trained if t.run is not None else "")

  def _compiled(self, make, network: Network, *more):
    key = make, id(network), *(len(part) for part in more)
    if key not in self._programs:
      self._programs[key] = jax.jit(make(network, *more))
    return self._programs[key]

  def _rows(self, task: Assignment):
    """``(rows, domain, mask, train)`` of training, validation and target, in blocks."""
    split = self._setup.folds[task]
    parts = [*split.train.values(), *split.val.values(), split.test]
    source = [*range(len(split.train)), *range(len(split.val)), -1]
    sizes = [len(part) for part in parts]
    rows, mask = eval_blocks(np.concatenate(parts))
    flags = [i < len(split.train) for i in range(len(parts))]
    domain, train = np.full(rows.size, -1, np.int32), np.zeros(rows.size, bool)
    domain[: sum(sizes)] = np.repeat(source, sizes)
    train[: sum(sizes)] = np.repeat(flags, sizes)
    return rows, domain.reshape(rows.shape), mask, train.reshape(rows.shape)

  def _padded(self, task: Assignment):
    """`_rows` in as many blocks as any task has: one program serves all."""
    more = self._blocks - len(self._rows(task)[0])
    return [np.pad(a, [(0, more), (0, 0)]) for a in self._rows(task)]

  def _on_all_rows(self, task: Assignment, seen: Seen) -> dict[str, np.ndarray]:
    """Embeddings ``{m: [N, D]}`` by row of the dataset, 0 where it was not seen."""
    rows, _, mask, _ = self._padded(task)
    found = {}
    for m, z in seen.embeddings.items():
      found[m] = np.zeros((len(self._dataset), z.shape[-1]), np.float32)
      found[m][rows[mask]] = np.asarray(z)[mask]
    return {m: found[m] for m in self._dataset.modalities if m in found}
