"""What a command line does: one call per mode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mer_dg.experiments import single
from mer_dg.experiments.build import Workbench
from mer_dg.experiments.config import ConfigError, validate
from mer_dg.experiments.grid import Evaluation, Run, train_all
from mer_dg.experiments.search import choose, final_runs, search_runs
from mer_dg.experiments.workdir import Workdir
from mer_dg.reporting import append_records, read_records, stable_hash, write_report

MODES = ("train", "evaluate", "report")


def run(config: Any, *, workdir: str = "", mode: str = "train", name: str = "run"):
  """Runs an experiment.

  Args:
    config: A config with the fields of configs/common.py.
    workdir: Its folder; by default ``runs/<name>-<hash of the config>``, so that
      the same command resumes.
    mode: "train" (one run if ``config.target`` is set, else the table of all
      targets, methods and seeds), "evaluate" (re-evaluates the selected
      checkpoint of one run) or "report" (tables and plots from records).
    name: Name of the experiment, for headings.

  Returns:
    The text that was printed at the end.

  Raises:
    ConfigError: For a wrong config, or a workdir of another one.
    DataError: For wrong data.
  """
  if mode not in MODES:
    raise ConfigError(f"--mode={mode!r} is not one of {MODES}.")
  config = validate(config)
  bench = Workbench(config)
  check_tasks(bench)
  folder = Workdir(workdir or Path("runs") / f"{name}-{stable_hash(config)[:8]}", config)
  print(f"Workdir: {folder.path}")
  if mode == "evaluate":
    if not config["target"]:
      raise ConfigError("--mode=evaluate takes one run: set config.target.")
    text = _lines(single.evaluate(bench, folder))
  else:
    if mode == "train" and config["target"]:
      single.train(bench, folder)
    elif mode == "train":
      train_table(bench, folder)
    text = report(folder, config, name)
  print(text)
  return text


def check_tasks(bench: Workbench) -> None:
  """Raises for anything wrong with the tasks, before anything compiles."""
  config = bench.config
  targets = (config["target"],) if config["target"] else bench.targets()
  methods = (config["method"],) if config["target"] else config["methods"]
  for target in targets:
    task = bench.task(bench.split(target))
    for method in methods:
      bench.method(method, task)


def train_table(bench: Workbench, workdir: Workdir) -> None:
  """Trains what the table lacks: the search if there is one, then all runs."""
  config, targets, chosen = bench.config, bench.targets(), {}
  if config["search"]["trials"]:
    path = workdir.path / "search.jsonl"
    runs = search_runs(config, targets)
    _train_missing(bench, runs, path)
    chosen = choose(_evaluations_of(bench, runs, read_records(path)), config["metric"])
  _train_missing(bench, final_runs(config, targets, chosen), workdir.results)
  workdir.finish()


def _train_missing(bench: Workbench, runs: list[Run], path: Path) -> None:
  """Trains the runs whose last record is not in ``path``, writing as waves end."""
  known = read_records(path) if path.exists() else []
  done = {r["run_id"] for r in known if r["step"] == bench.config["total_steps"]}
  missing = [r for r in runs if _record(bench, Evaluation(r, 0, {}, 0.0)) not in done]
  if len(missing) < len(runs):
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are there already.")

  def on_wave(evaluations: list[Evaluation]) -> None:
    append_records(path, [_full_record(bench, e) for e in evaluations])

  if missing:
    train_all(bench, missing, on_wave)


def _full_record(bench: Workbench, e: Evaluation):
  return single.record_of(bench, e.run, e.step, e.metrics, e.wall_time_s)


def _record(bench: Workbench, e: Evaluation) -> str:
  return _full_record(bench, e)["run_id"]


def _evaluations_of(bench, runs, records):
  """Records joined to the runs they belong to: ``(run, metrics, step)``."""
  by_id = {_record(bench, Evaluation(r, 0, {}, 0.0)): r for r in runs}
  return [
    (by_id[r["run_id"]], r["metrics"], r["step"])
    for r in records
    if r["run_id"] in by_id
  ]


def report(workdir: Workdir, config: Mapping[str, Any], name: str) -> str:
  """Writes ``report/`` from the records of a workdir; returns its Markdown."""
  records = workdir.records()
  if not records:
    raise FileNotFoundError(f"{workdir.results} holds no records yet; train first.")
  return write_report(
    workdir.path,
    records,
    metric=config["metric"],
    reference=config["methods"][0],
    title=name,
  )


def _lines(metrics: Mapping[str, float]) -> str:
  return "\n".join(f"{k:32s} {v:.4f}" for k, v in metrics.items())
