"""One table: train what is missing of it, write records as waves end, report."""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mer_dg import protocol
from mer_dg.experiments import budget
from mer_dg.experiments.config import Config
from mer_dg.experiments.grid import Grid, Wave, train_all, trainings
from mer_dg.experiments.hosts import is_first_host, wait_for_all
from mer_dg.experiments.linear import read_linear
from mer_dg.experiments.runs import (
  Evaluation,
  Run,
  code_revision,
  evaluation_steps,
  identity,
  record_of,
  run_id,
)
from mer_dg.experiments.search import (
  Choice,
  Encoders,
  choose,
  choose_by_sources,
  choose_encoders,
  encoder_runs,
  final_runs,
  runs_before,
)
from mer_dg.experiments.setup import Setup
from mer_dg.experiments.workdir import Events, Workdir, WorkdirError, read_lines
from mer_dg.protocol import Assignment, Record, append_records, write_atomic
from mer_dg.protocol.records import Identity
from mer_dg.reporting import group_of, write_report
from mer_dg.training.parameters import save_parameters

# Workdirs by name, in the order of a report.
Tables = Mapping[str, Workdir]
Key = Callable[[Any], Any]


def train_table(
  setup: Setup,
  workdir: Workdir,
  on_wave: Callable[[Wave], None] = lambda _: None,
  *,
  parameters: bool = False,
) -> tuple[list[Run], bool]:
  """Trains what the table lacks: the search if there is one, then all runs.

  Args:
    setup: The setup.
    workdir: Where records and final parameters go; other hosts write to it, too.
    on_wave: Called with each finished wave once its records are on disk.
    parameters: Whether a run also lacks its final parameters: tables of before did not
      keep them.

  Returns:
    The runs of the table, and whether anything was missing.

  Raises:
    WorkdirError: If the records of what was trained are not there at the end.
  """
  config, grid, began = setup.config, Grid(setup), False
  runs: list[Run] = []
  code_revision()
  for stage, (path, runs) in enumerate(_stages(setup, workdir)):
    final = path == workdir.results
    if final and is_first_host() and (less := budget.said(_seeds(runs), config)):
      print(less)
    new = train_missing(
      grid, runs, workdir, path, on_wave, parameters=parameters and final
    )
    # Not by the name of the file: every host writes its own.
    wait_for_all(f"stage {stage} of {workdir.path}")
    if new and path == workdir.inner and is_first_host():
      print(_said(config, _encoders(setup, workdir)))
    began |= new
  if is_first_host():
    trials = {run_id(setup, run): run.trials for run in runs}
    workdir.finish(trials, evaluation_steps(config))
  wait_for_all(f"finished {workdir.path}")
  return runs, began


def _stages(setup: Setup, workdir: Workdir) -> Iterator[tuple[Path, list[Run]]]:
  """The runs of a table, and of what chooses for it, by the file of their records.

  What a stage asks for follows from the records of those before it. The last one is the
  table itself.
  """
  yield workdir.inner, encoder_runs(setup)
  judged = _judging(setup, workdir)
  encoders = _best(choose_encoders(setup, judged))
  searched = runs_before(setup, encoders)
  yield workdir.search, searched
  chosen = _settings(setup, searched, workdir)
  seeds = budget.affordable_seeds(setup, encoders, judged)
  config = dataclasses.replace(setup.config, seeds=seeds)
  yield workdir.results, final_runs(config, setup.tasks, chosen, encoders)


def _seeds(runs: Sequence[Run]) -> list[int]:
  return list(dict.fromkeys(run.seed for run in runs))


def train_encoders(setup: Setup, workdir: Workdir) -> Encoders:
  """Trains what is missing of the runs that choose encoders, and chooses.

  Args:
    setup: The setup.
    workdir: Where the records go.

  Returns:
    The encoder of each task.
  """
  path, runs = next(_stages(setup, workdir))
  new = train_missing(Grid(setup), runs, workdir, path)
  scores = _encoders(setup, workdir)
  if new:
    print(_said(setup.config, scores))
  return _best(scores)


def is_trained(setup: Setup, workdir: Workdir) -> bool:
  """Whether every run of a table, and of what chooses for it, has ended or diverged."""
  steps = evaluation_steps(setup.config)
  return all(
    {run_id(setup, run) for run in runs} <= workdir.ended(path, steps)
    for path, runs in _stages(setup, workdir)
  )


def _judging(setup: Setup, workdir: Workdir) -> list[Record]:
  """Records of the runs that choose encoders."""
  ids = {run_id(setup, run) for run in encoder_runs(setup)}
  return (
    [r for r in workdir.records(workdir.inner) if r["run_id"] in ids] if ids else []
  )


def _encoders(setup: Setup, workdir: Workdir):
  """What each encoder scores for each task, best first."""
  return choose_encoders(setup, _judging(setup, workdir))


def _best(scores: Mapping[Assignment, Mapping[str, float]]) -> Encoders:
  return {task: next(iter(found)) for task, found in scores.items()}


def _settings(
  setup: Setup, runs: Sequence[Run], workdir: Workdir
) -> dict[tuple[str, Assignment], Choice]:
  """What a search finds; nothing without one."""
  config = setup.config
  if not runs:
    return {}
  if config.search.rule == "leave_one_source_out":
    return choose_by_sources(setup, runs, workdir.records(workdir.search))
  found = _evaluations(setup, runs, workdir)
  return choose(runs, found, config.metric, config.selection)


def _said(config: Config, scores: Mapping[Assignment, Mapping[str, float]]) -> str:
  """What the encoders scored, a line a target."""
  of = lambda found: ", ".join(f"{e} {100 * s:.1f}" for e, s in found.items())
  lines = [f"  {task.target}: {of(found)}" for task, found in scores.items()]
  head = (
    f"Encoders by {config.metric.replace('_', ' ')} of {config.methods[0]} on sources "
    "left out in turn, the chosen one first (another than "
    f"{config.search.encoders[0]!r} where it is three points better):"
  )
  return "\n".join([head, *lines])


def train_missing(
  grid: Grid,
  runs: Sequence[Run],
  workdir: Workdir,
  path: Path,
  then: Callable[[Wave], None] = lambda _: None,
  *,
  parameters: bool = False,
) -> bool:
  """Trains runs that have neither ended nor diverged, writing as waves end.

  Args:
    grid: What waves share.
    runs: The runs.
    workdir: Where their records go.
    path: Which file of it: ``results``, ``inner``, ``search`` or ``alone``.
    then: Called with each finished wave once its records are on disk.
    parameters: See `train_table`.

  Returns:
    Whether any was missing.
  """
  setup, steps = grid.setup, evaluation_steps(grid.setup.config)
  by_id = {run_id(setup, run): run for run in runs}
  ended, lacking = workdir.ended(path, steps), set[str]()
  if parameters:
    lost = {row["run_id"] for row in workdir.gave_up()}
    lacking = {i for i in by_id if i not in lost and not workdir.parameters(i).exists()}
  missing = workdir.ask(path, list(by_id), steps, lacking)
  done = {run for i, run in by_id.items() if i in ended and i not in lacking}
  if done and missing:
    print(f"{len(done)} of {len(runs)} runs are there already.")

  def on_wave(wave: Wave) -> None:
    workdir.check_there()
    records = [record_of(setup, e) for e in wave.evaluations]
    # Before the records, which say that a run has ended.
    if path not in (workdir.search, workdir.inner):
      _keep(setup, workdir, wave)
    if path == workdir.results:
      _curves(setup.config, workdir, records)
    # A wave that is repeated after a kill appends what was not there yet.
    append_records(path, records)
    lost = {d.run: str(d) for d in wave.diverged}
    append_diverged(setup, workdir.diverged, lost)
    then(wave)

  if missing:
    train_all(grid, [by_id[i] for i in missing], on_wave, done=done)
  return bool(missing)


def _keep(setup: Setup, workdir: Workdir, wave: Wave) -> None:
  """Writes the final parameters of the runs that stayed finite."""
  lost, host = {d.run for d in wave.diverged}, jax.tree.map(np.asarray, wave.variables)
  for i, lane in enumerate(trainings(wave.runs)):
    for run in lane:
      if run not in lost:
        own = jax.tree.map(lambda a, i=i: a[i], host)
        save_parameters(workdir.parameters(run_id(setup, run)), own)


def _curves(config: Config, workdir: Workdir, records: Sequence[Record]) -> None:
  """Writes evaluations and settings of the runs of a wave for TensorBoard."""
  for run, own in protocol.group_by(records, lambda r: r["run_id"]).items():
    events = Events(workdir, run, config.metric)
    for record in own:
      events.evaluation(record["step"], record["metrics"])
    events.settings(own[-1])
    events.close()


def append_diverged(setup: Setup, path: Path, new: Mapping[Run, str]) -> None:
  """Notes runs that were given up, and why."""
  if new:
    rows = {row["run_id"]: row for row in read_lines(path)}
    for run, message in new.items():
      own = identity(setup, run)
      row = {"run_id": protocol.run_id(own), "message": message, **own}
      rows[row["run_id"]] = row
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows.values()))


def _evaluations(
  setup: Setup, runs: Sequence[Run], workdir: Workdir
) -> list[Evaluation]:
  """The evaluations of a search, from its records."""
  by_id = {run_id(setup, run): run for run in runs}
  return [
    Evaluation(by_id[r["run_id"]], r["step"], r["metrics"], r["wall_time_s"])
    for r in workdir.records(workdir.search)
    if r["run_id"] in by_id
  ]


def report(
  workdir: Workdir, config: Config, name: str, tables: Tables | None = None
) -> str:
  """Writes ``report/`` from the records of a workdir; returns its Markdown.

  Args:
    workdir: Where the report goes.
    config: Its config.
    name: Heading.
    tables: Whose records are shown, by name; None is those of ``workdir`` itself.

  Raises:
    WorkdirError: If nothing was trained.
  """
  records, left_out, linear, generated = [], [], {}, set()
  for table, folder in ({"": workdir} if tables is None else tables).items():
    some, notes = shown(folder)
    records += some
    if some and (models := read_linear(folder, config.metric)):
      linear[group_of(some[0])] = models
    if some and folder.generated:
      generated.add(group_of(some[0]))
    left_out += [f"{table}: {note}" if table else note for note in notes]
  if records:
    return write_report(
      workdir.path,
      records,
      metric=config.metric,
      reference=config.methods[0],
      title=name,
      rule=config.selection,
      methods=() if config.target else config.methods,
      commands=workdir.commands,
      left_out=left_out,
      linear=linear,
      generated=generated,
    )
  if not left_out:
    raise WorkdirError(f"{workdir.path} holds no records; train first.")
  lines = [f"# {name}", "", "Every run diverged; there is no table.", ""]
  text = "\n".join([*lines, *(f"- {note}" for note in left_out)])
  (workdir.path / "report").mkdir(exist_ok=True)
  write_atomic(workdir.path / "report" / "report.md", text + "\n")
  return text


def shown(workdir: Workdir) -> tuple[list[Record], list[str]]:
  """The records of a workdir that a table of it shows, and notes on the others.

  All that are there, but for a target the runs of one list of sources, and for a method
  those of one setting: what the last command asked for, else the newest. (A search
  settles on one setting; the records of others are those of earlier commands.)
  """
  asked, gave_up, records = workdir.asked, workdir.gave_up(), workdir.records()
  ours = {tuple(r["modalities"]) for r in records}  # Others were for a diagnosis.
  foreign = lambda r: ours and tuple(r.get("modalities", ())) not in {(), *ours}
  gave_up = [row for row in gave_up if not foreign(row)]
  whole = [row for row in gave_up if row.keys() >= set(Identity.__annotations__)]
  kept: list[Any] = [*whole, *records]
  pairs = any(r["protocol"] == "single_source" for r in records)
  sources = lambda r: tuple(r["sources"])
  cell = lambda r: (r["method"], r["target"], sources(r) if pairs else ())
  kept = kept if pairs else _newest(kept, lambda r: r["target"], sources, asked)
  kept = _newest(kept, cell, protocol.setting, asked)
  ids = {row["run_id"] for row in kept}
  lost = {r["run_id"]: r["method"] for r in records if r["run_id"] not in ids}
  counts = collections.Counter(lost.values())
  notes = [
    f"{method}: {number} run{'s' * (number > 1)} in a setting that the last command "
    "did not ask for"
    for method, number in counts.items()
  ]
  of_older_versions = [row["run_id"] for row in gave_up if row not in whole]
  told = ids | asked | {*of_older_versions}
  diverged = [row["message"] for row in gave_up if row["run_id"] in told]
  return [r for r in records if r["run_id"] in ids], diverged + notes


def _newest(rows: Sequence[Any], cell: Key, kind: Key, asked: Collection[str]) -> list:
  """Rows of one kind in each cell: that of rows asked for, else of the last row."""
  kinds: dict[Any, Any] = {}
  for part in (rows, [row for row in rows if row["run_id"] in asked]):
    kinds |= {cell(row): kind(row) for row in part}
  return [row for row in rows if kinds[cell(row)] == kind(row)]
