"""One table: train what is missing of it, write records as waves end, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from mer_dg.experiments.build import Workbench
from mer_dg.experiments.grid import Divergence, Wave, train_all
from mer_dg.experiments.hosts import is_first_host, wait_for_all
from mer_dg.experiments.runs import Evaluation, Run, record_of, run_id
from mer_dg.experiments.search import Choice, choose, final_runs, search_runs
from mer_dg.experiments.workdir import Workdir, WorkdirError, read_lines
from mer_dg.protocol import Assignment, append_records, write_atomic
from mer_dg.reporting import write_report


def train_table(
  bench: Workbench, workdir: Workdir, on_wave: Callable[[Wave], None] = lambda _: None
) -> None:
  """Trains what the table lacks: the search if there is one, then all runs.

  Args:
    bench: The workbench.
    workdir: Where records go; other hosts write to it, too.
    on_wave: Called with each finished wave once its records are on disk.
  """
  config, tasks = bench.config, bench.tasks()
  chosen: dict[tuple[str, Assignment], Choice] = {}
  if config["search"]["trials"]:
    runs = search_runs(config, tasks)
    _train_missing(bench, runs, workdir, workdir.search, on_wave)
    wait_for_all(f"search in {workdir.path}")
    found = _evaluations(bench, runs, workdir)
    chosen = choose(runs, found, config["metric"], config["selection"])
  runs = final_runs(config, tasks, chosen)
  _train_missing(bench, runs, workdir, workdir.results, on_wave)
  wait_for_all(f"table in {workdir.path}")
  if is_first_host():
    workdir.finish()
  wait_for_all(f"finished {workdir.path}")


def _train_missing(
  bench: Workbench,
  runs: Sequence[Run],
  workdir: Workdir,
  path: Path,
  then: Callable[[Wave], None],
) -> None:
  """Trains the runs that have neither ended nor diverged, writing as waves end."""
  last = bench.config["total_steps"]
  ended = {r["run_id"] for r in workdir.records(path) if r["step"] == last}
  ended |= {row["run_id"] for row in workdir.gave_up()}
  done = {run for run in runs if run_id(bench, run) in ended}
  if done:
    print(f"{len(done)} of {len(runs)} runs are there already.")

  write = recorder(bench, workdir, path)

  def on_wave(wave: Wave) -> None:
    write(wave)
    then(wave)

  if len(done) < len(runs):
    train_all(bench, runs, on_wave, done=done)


def recorder(bench: Workbench, workdir: Workdir, path: Path):
  """What writes the records of a wave when it ends."""

  def on_wave(wave: Wave) -> None:
    # A wave that is repeated after a kill appends what was not there yet.
    append_records(path, [record_of(bench, e) for e in wave.evaluations])
    _append_diverged(bench, workdir.diverged, wave.diverged)

  return on_wave


def _append_diverged(bench: Workbench, path: Path, new: Sequence[Divergence]) -> None:
  if new:
    rows = {row["run_id"]: row for row in read_lines(path)}
    for d in new:
      identity = run_id(bench, d.run)
      rows[identity] = {"run_id": identity, "message": str(d)}
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows.values()))


def _evaluations(
  bench: Workbench, runs: Sequence[Run], workdir: Workdir
) -> list[Evaluation]:
  """The evaluations of a search, from its records."""
  by_id = {run_id(bench, run): run for run in runs}
  return [
    Evaluation(by_id[r["run_id"]], r["step"], r["metrics"], r["wall_time_s"])
    for r in workdir.records(workdir.search)
    if r["run_id"] in by_id
  ]


def report(
  workdir: Workdir,
  config: Mapping[str, Any],
  name: str,
  tables: Sequence[Workdir] = (),
) -> str:
  """Writes ``report/`` from the records of a workdir; returns its Markdown.

  Args:
    workdir: Where the report goes.
    config: Its config.
    name: Heading.
    tables: Whose records are shown; () is those of ``workdir`` itself.

  Raises:
    WorkdirError: If there are no records.
  """
  tables = tables or (workdir,)
  records = [record for table in tables for record in table.records()]
  if not records:
    raise WorkdirError(f"{workdir.path} holds no records; train first.")
  return write_report(
    workdir.path,
    records,
    metric=config["metric"],
    reference=config["methods"][0],
    title=name,
    rule=config["selection"],
    commands=workdir.commands,
    left_out=[row["message"] for table in tables for row in table.gave_up()],
  )
