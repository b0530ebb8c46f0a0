"""What a command line does: one call per mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from mer_dg.experiments.build import Workbench
from mer_dg.experiments.config import ConfigError, validate
from mer_dg.experiments.diagnose import diagnose, to_markdown
from mer_dg.experiments.grid import Divergence, Wave, train_all
from mer_dg.experiments.runs import Evaluation, Run, record_of, run_id
from mer_dg.experiments.search import Choice, choose, final_runs, search_runs
from mer_dg.experiments.workdir import Workdir, WorkdirError, read_lines
from mer_dg.reporting import append_records, stable_hash, write_atomic, write_report

MODES = ("train", "evaluate", "report", "diagnose")


def run(
  config: Any,
  *,
  workdir: str = "",
  mode: str = "train",
  name: str = "run",
  command: str = "",
) -> str:
  """Runs an experiment.

  Args:
    config: A config with the fields of configs/common.py.
    workdir: Its folder; by default ``runs/<name>-<hash of the config>``, so that
      the same command resumes.
    mode: "train" (one run if ``config.target`` is set, else the table of all
      targets, methods and seeds), "evaluate" (re-evaluates the selected
      checkpoint of one run), "report" (tables and plots from records alone) or
      "diagnose" (re-probes encoders trained jointly and alone).
    name: Name of the experiment, for headings.
    command: The command line, for the report; not shown if empty.

  Returns:
    The text that was printed at the end.

  Raises:
    ConfigError: For a wrong config.
    WorkdirError: For a workdir of another one, or one that holds too little.
    DataError: For wrong data.
    MethodError: For a method that does not fit the data.
    TrainingDiverged: If the loss of a single run stops being finite.
  """
  if mode not in MODES:
    raise ConfigError(f"--mode={mode!r} is not one of {MODES}.")
  config = validate(config)
  if mode == "evaluate" and not config["target"]:
    raise ConfigError(
      "--mode=evaluate takes one run: name the held-out domain after the config file "
      "(configs/x.py:DOMAIN)."
    )
  default = Path("runs") / f"{name}-{stable_hash(config)[:8]}"
  folder = Workdir(workdir or default, config)
  print(f"Workdir: {folder.path}")
  if mode != "report":
    bench = Workbench(config)
    bench.check()
    if config["target"] and mode != "diagnose":
      from mer_dg.experiments import single  # Orbax and Grain: not for the table.

    if mode == "evaluate":
      text = _lines(single.evaluate(bench, folder))
    elif mode == "diagnose":
      folder.create()
      folder.add_command(command)
      text = _diagnose(bench, folder, name)
    else:
      folder.create()
      folder.add_command(command)
      if config["target"]:
        single.train(bench, folder)
      else:
        train_table(bench, folder)
  if mode in ("train", "report"):
    text = report(folder, config, name)
  print(text)
  return text


def train_table(bench: Workbench, workdir: Workdir) -> None:
  """Trains what the table lacks: the search if there is one, then all runs."""
  config, targets = bench.config, bench.targets()
  chosen: dict[tuple[str, str], Choice] = {}
  if config["search"]["trials"]:
    runs = search_runs(config, targets)
    _train_missing(bench, runs, workdir, workdir.search)
    chosen = choose(runs, _evaluations(bench, runs, workdir), config["metric"])
  runs = final_runs(config, targets, chosen)
  _train_missing(bench, runs, workdir, workdir.results)
  workdir.finish()


def _diagnose(bench: Workbench, workdir: Workdir, name: str) -> str:
  """Trains and probes; writes records, report, ``diagnosis.md`` and ``.json``."""
  probes = diagnose(bench, _recorder(bench, workdir, workdir.results))
  text, folder = to_markdown(probes), workdir.path / "report"
  folder.mkdir(exist_ok=True)
  write_atomic(folder / "diagnosis.md", text + "\n")
  fields = ("training", "probed", "target", "seed")
  found = [dict(zip(fields, k, strict=True)) | v for k, v in probes.items()]
  lines = "".join(json.dumps(row) + "\n" for row in found)
  write_atomic(folder / "diagnosis.jsonl", lines)
  report(workdir, bench.config, name)
  return text


def _recorder(bench: Workbench, workdir: Workdir, path: Path):
  """What writes the records of a wave when it ends."""

  def on_wave(wave: Wave) -> None:
    # A wave that is repeated after a kill appends what was not there yet.
    append_records(path, [record_of(bench, e) for e in wave.evaluations])
    _append_diverged(bench, workdir.diverged, wave.diverged)

  return on_wave


def _train_missing(
  bench: Workbench, runs: Sequence[Run], workdir: Workdir, path: Path
) -> None:
  """Trains the runs that have neither ended nor diverged, writing as waves end."""
  last = bench.config["total_steps"]
  ended = {r["run_id"] for r in workdir.records(path) if r["step"] == last}
  ended |= {row["run_id"] for row in read_lines(workdir.diverged)}
  done = {run for run in runs if run_id(bench, run) in ended}
  if done:
    print(f"{len(done)} of {len(runs)} runs are there already.")

  if len(done) < len(runs):
    train_all(bench, runs, _recorder(bench, workdir, path), done=done)


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


def report(workdir: Workdir, config: Mapping[str, Any], name: str) -> str:
  """Writes ``report/`` from the records of a workdir; returns its Markdown.

  Raises:
    WorkdirError: If there are no records.
  """
  records = workdir.records()
  if not records:
    raise WorkdirError(f"{workdir.results} holds no records; train first.")
  return write_report(
    workdir.path,
    records,
    metric=config["metric"],
    reference=config["methods"][0],
    title=name,
    commands=workdir.commands,
    left_out=[row["message"] for row in read_lines(workdir.diverged)],
  )


def _lines(metrics: Mapping[str, float]) -> str:
  return "\n".join(f"{k:32s} {v:.4f}" for k, v in metrics.items())
