"""What a command line does: one call per mode."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from pathlib import Path
import re
from typing import Any

from mer_dg.data import DataError
from mer_dg.experiments.benchmark import is_benchmark, report_all, run_benchmark
from mer_dg.experiments.choice import with_encoder
from mer_dg.experiments.config import (
  Config,
  ConfigError,
  as_dict,
  protocol_hash,
  validate,
)
from mer_dg.experiments.diagnose import diagnose, to_markdown
from mer_dg.experiments.hosts import is_first_host, this_host
from mer_dg.experiments.linear import linear_first
from mer_dg.experiments.setup import Setup, check, make_setup
from mer_dg.experiments.summary import summary
from mer_dg.experiments.tables import is_trained, report, train_table
from mer_dg.experiments.workdir import Workdir, WorkdirError
from mer_dg.methods import MethodError
from mer_dg.protocol import RecordError, write_atomic
from mer_dg.reporting.maps import write_maps
from mer_dg.training.loop import TrainingDiverged
from mer_dg.training.parameters import CheckpointError

MODES = ("train", "evaluate", "report", "diagnose", "benchmark")
# What a wrong config, file or folder raises; the message says what to do.
USER_ERRORS = (
  CheckpointError,
  ConfigError,
  DataError,
  MethodError,
  RecordError,
  TrainingDiverged,
  WorkdirError,
)


def run(
  config: Any,
  *,
  workdir: str = "",
  mode: str = "train",
  name: str = "",
  command: str = "",
) -> str:
  """Runs an experiment.

  Args:
    config: A config with the fields of configs/common.py.
    workdir: Its folder; by default ``runs/<name>-<hash of the protocol>``, so that the
      same command resumes and another method, seed or setting joins the table.
    mode: "train" (one run if ``config.target`` is set, else the table of all
      targets, methods and seeds), "evaluate" (re-evaluates the selected
      checkpoint of one run), "report" (tables and plots from records alone),
      "diagnose" (re-probes encoders trained jointly and alone) or "benchmark" (the
      tables of all sets, protocols and subsets of ``config.benchmark``).
    name: Name of the experiment, for headings; by default what the folder knows.
    command: The command line, for the report; not shown if empty.

  Returns:
    The report in Markdown (of "evaluate" the metrics); of several hosts the first one
    has it. Its summary is printed.

  Raises:
    ConfigError: For a wrong config.
    WorkdirError: For a workdir of another protocol, one that another process writes to,
      or one that is damaged or holds too little.
    RecordError: For damaged records.
    CheckpointError: If "evaluate" cannot read the checkpoint.
    DataError: For wrong data.
    MethodError: For a method that does not fit the data.
    TrainingDiverged: If the loss of a single run stops being finite.
  """
  if mode not in MODES:
    raise ConfigError(f"--mode={mode!r} is not one of {MODES}.")
  given, config = as_dict(config), validate(config)
  _check_mode(config, mode)
  folder = Workdir(workdir or _default(name or "run", config, mode), config)
  name = name or folder.name
  opening = f"Workdir: {folder.path}"
  if config.log_every != given["log_every"]:
    opening += (
      f"\nconfig.log_every={given['log_every']} does not divide "
      f"config.eval_every={config.eval_every}: logging every {config.log_every}."
    )
  new = True
  if mode == "report":
    print(opening)
    reports = report_all if is_benchmark(folder) else report
    text = reports(folder, config, name)
  elif mode == "benchmark":
    text, new = run_benchmark(config, folder, name, command, opening)
  else:
    if mode == "diagnose":  # The table, whatever single run the folder had last.
      config = dataclasses.replace(config, target="")
    setup = make_setup(config)
    check(setup)
    folder.check_data(setup.dataset.version)
    if config.target and (folder.path / "encoders").exists():
      setup, folder = _with_encoder(setup, folder)
    new = mode != "train" or not _is_trained(setup, folder)
    if new:
      print(opening)
    if new and mode != "evaluate" and is_first_host():
      print(summary(setup))
    if new and config.target and mode == "train":
      setup, folder = _with_encoder(setup, folder)
    text = _compute(setup, folder, mode, name, command)
  print(_ending(folder, mode, text, trained=new))
  return text


def _with_encoder(setup: Setup, folder: Workdir) -> tuple[Setup, Workdir]:
  """A single run with the encoder that its sources choose."""
  config = with_encoder(setup.config, folder.path, setup.dataset)
  if config is setup.config:
    return setup, folder
  return make_setup(config, setup.dataset), Workdir(folder.path, config)


def _is_trained(setup: Setup, folder: Workdir) -> bool:
  """Whether ``--mode=train`` has nothing to do."""
  if setup.config.target:
    from mer_dg.experiments import single

    return single.is_trained(setup, folder)
  return is_trained(setup, folder)


def _ending(folder: Workdir, mode: str, text: str, *, trained: bool) -> str:
  """What is printed last: a verdict, a table and the path of the report."""
  summary, page = folder.path / "report" / "summary.txt", folder.path / "report"
  if mode == "evaluate" or not text or not summary.exists():
    return text
  if mode == "diagnose":
    return f"{text}\n\nReport: {page / 'index.html'}"
  if not trained:
    return f"Finished already: nothing to train.\nReport: {page / 'index.html'}"
  return summary.read_text().rstrip()


def _default(name: str, config: Config, mode: str) -> Path:
  table = Path("runs") / f"{name}-{protocol_hash(config)[:8]}"
  benchmark = table.with_name(f"{table.name}-benchmark")
  reported = mode == "report" and not table.exists() and benchmark.exists()
  return benchmark if mode == "benchmark" or reported else table


def explain(error: BaseException) -> str:
  """One sentence for what a command line may run into; "" for anything else.

  Example:
    >>> explain(FileNotFoundError(2, "No such file or directory", "a.npz"))
    'OSError: a.npz: No such file or directory.'
    >>> explain(RuntimeError("Out of memory allocating 9 bytes."))[:48]
    'Out of memory: Out of memory allocating 9 bytes.'
    >>> explain(ZeroDivisionError())
    ''
  """
  if isinstance(error, OSError):
    places = [str(p) for p in (error.filename, error.filename2) if p is not None]
    what = error.strerror or str(error)
    return f"OSError: {': '.join([' -> '.join(places), what] if places else [what])}."
  if re.search("out of memory|RESOURCE_EXHAUSTED", str(error), re.IGNORECASE):
    reason = str(error).splitlines()[0][-200:]
    return (
      f"Out of memory: {reason} Smaller config.batch_size, config.wave or "
      "config.network widths need less."
    )
  return f"{type(error).__name__}: {error}" if isinstance(error, USER_ERRORS) else ""


def _compute(setup: Setup, folder: Workdir, mode: str, name: str, command: str):
  """One of the modes that need data and network; returns what there is to print."""
  config = setup.config
  if config.target:
    from mer_dg.experiments import single  # Orbax and Grain: not for the table.
  if mode == "evaluate":
    return _lines(single.evaluate(setup, folder))
  with folder.writing(command, name):
    if mode == "diagnose":
      return _diagnose(setup, folder, name)
    if config.target:
      single.train(setup, folder)
    else:
      if is_first_host() and (said := linear_first(setup, folder)):
        print(said)
      train_table(setup, folder)
    return report(folder, config, name) if is_first_host() else ""


def _check_mode(config: Config, mode: str) -> None:
  if mode == "evaluate" and not config.target:
    raise ConfigError(
      "--mode=evaluate takes one run: name the held-out domain after the config file "
      "(configs/x.py:DOMAIN)."
    )
  if mode == "diagnose" and config.protocol != "leave_one_domain_out":
    raise ConfigError(
      f"config.protocol={config.protocol!r}: --mode=diagnose compares encoders "
      "under 'leave_one_domain_out'."
    )
  if mode == "benchmark" and config.target:
    raise ConfigError(
      f"config.target={config.target!r}: --mode=benchmark trains tables; choose "
      "held-out domains by config.targets."
    )
  _, hosts = this_host()
  if hosts > 1 and (mode in ("evaluate", "diagnose") or config.target):
    raise ConfigError(
      f"{hosts} hosts share the waves of a table or benchmark; --mode={mode} of "
      f"config.target={config.target!r} is for one host."
    )


def _diagnose(setup: Setup, workdir: Workdir, name: str) -> str:
  """Trains and examines; writes ``diagnosis.md``, maps and the report."""
  probes, maps = diagnose(setup, workdir)
  folder, text = workdir.path / "report", to_markdown(probes)
  write_maps(folder, maps)
  write_atomic(folder / "diagnosis.md", text + "\n")
  report(workdir, setup.config, name)
  return text


def _lines(metrics: Mapping[str, float]) -> str:
  return "\n".join(f"{k:32s} {v:.4f}" for k, v in metrics.items())
