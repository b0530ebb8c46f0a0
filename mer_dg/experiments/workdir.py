"""The folder of an experiment: its files, and the guard at its door."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
import contextlib
import functools
import json
import math
import os
from pathlib import Path
import re
import time
from typing import Any
import warnings

from mer_dg.experiments.config import Config, as_dict, protocol_hash, protocol_of
from mer_dg.experiments.hosts import agree, is_first_host, this_host, wait_for_all
from mer_dg.experiments.lock import LockedError, hold
from mer_dg.files import naming
from mer_dg.protocol import (
  Record,
  append_records,
  raise_trials,
  read_records,
  write_atomic,
)

# Files of records, for each of which asked.json has two lists of runs.
_PARTS = ("inner", "search", "results", "alone")
_NOTED = ("runs", "missing")


class WorkdirError(ValueError):
  """The workdir is not what the command needs; the message says why."""


class Workdir:
  """Paths of a workdir; refuses one of another protocol.

  A workdir holds runs of one protocol (`protocol_of`): of any methods, settings, seeds
  and domains, whatever commands asked for them. Nothing is written before `writing`.

  Args:
    path: The folder.
    config: From `validate`; or as another workdir stores it, to read that one.

  Raises:
    WorkdirError: If ``config.json`` in the folder is of another protocol (the message
      names the fields), of an older version, or damaged.
  """

  def __init__(self, path: str | os.PathLike, config: Config | Mapping[str, Any]):
    self.path = Path(path).expanduser().absolute()
    self._config = as_dict(config)
    self._protocol = protocol_hash(config)
    self._check_config()

  @property
  def generated(self) -> bool:
    """Whether its data come from a generator, not from the world."""
    return self._config["data"]["name"] == "cooccurrence"

  @property
  def _stored(self) -> Path:
    return self.path / "config.json"

  def _check_config(self) -> None:
    if not self._stored.exists():
      return
    stored = read_object(self._stored)
    old, new = protocol_of(stored), protocol_of(self._config)
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    field = lambda config, name: functools.reduce(
      lambda group, part: group.get(part) if isinstance(group, dict) else None,
      name.split("."),
      config,
    )
    unknown = [f"config.{name}" for name in changed if field(stored, name) is None]
    if unknown:
      raise WorkdirError(
        f"{self.path} was made by an older version (its config.json has no "
        f"{', '.join(unknown)}). Choose another --workdir."
      )
    if changed:
      said = (
        f"config.{name} was {field(stored, name)!r} and is now "
        f"{field(self._config, name)!r}"
        for name in changed
        if field(stored, name) != field(self._config, name)
      )
      raise WorkdirError(
        f"{self.path} belongs to another protocol: {'; '.join(said)}. "
        "Choose another --workdir, or the protocol it was started with."
      )

  def check_data(self, version: str) -> None:
    """Refuses a folder whose records are of other data, or of an older version.

    Args:
      version: That of the dataset.

    Raises:
      WorkdirError: If there is such a record.
    """
    parts = (self.inner, self.search, self.results)
    ours = [record for part in parts for record in self.records(part)]
    for record in ours:
      if record["config_hash"] != self._protocol:
        raise WorkdirError(
          f"{self.path} holds records of another protocol, or of an older version "
          f"(their config_hash is {record['config_hash']}, not {self._protocol}). "
          "--mode=report still shows them; choose another --workdir to train."
        )
    # What was trained alone, on other modalities, is of another protocol.
    for record in (*ours, *self.records(self.alone)):
      if record["data_version"] != version:
        raise WorkdirError(
          f"{self.path} holds records of version {record['data_version']} of the data, "
          f"which are now version {version}. Choose another --workdir."
        )

  @contextlib.contextmanager
  def writing(self, command: str = "", name: str = "") -> Generator[None]:
    """Holds the folder for writing: makes it, its ``config.json``, and a lock.

    Several hosts of one command are one writer; the first one holds the lock.

    Args:
      command: Command line to remember.
      name: Name of the experiment to remember.

    Raises:
      WorkdirError: If another process writes there; says which.
    """
    with contextlib.ExitStack() as stack:
      refused = None
      if is_first_host():
        try:
          self._open(stack, command, name)
        except (WorkdirError, OSError) as error:
          refused = error
      if not agree(refused is None):
        raise refused or WorkdirError(
          f"{self.path} cannot be written by the first host; its message says why."
        )
      yield

  def _open(self, stack: contextlib.ExitStack, command: str, name: str) -> None:
    self.path.mkdir(parents=True, exist_ok=True)
    try:
      stack.enter_context(hold(self.path / ".lock"))
    except LockedError as error:
      raise WorkdirError(
        f"{self.path} is being written by {error}. Wait for it to end, or choose "
        "another --workdir."
      ) from error
    self._check_config()  # Again: another process may just have left it.
    text = json.dumps(self._config, indent=2) + "\n"
    if not self._stored.exists() or self._stored.read_text() != text:
      write_atomic(self._stored, text)
    self._remember(command)
    if name and name != self.name:
      self._write_asked({**self._asked, "name": name})

  def check_there(self) -> None:
    """Refuses to go on when the folder is gone.

    Raises:
      WorkdirError: If it, or what makes it a workdir, is no longer there.
    """
    if not self._stored.exists():
      raise WorkdirError(
        f"{self.path} was removed or emptied while it was written to; what was trained "
        "since is lost. The same command starts it again."
      )

  @property
  def commands(self) -> tuple[str, ...]:
    """Command lines that trained here, oldest first."""
    stored = self.path / "commands.txt"
    # For readers only: a damaged byte is no reason to stop.
    text = stored.read_text(errors="replace") if stored.exists() else ""
    return tuple(text.splitlines())

  def _remember(self, command: str) -> None:
    if command and command not in self.commands:
      lines = (*self.commands, command)
      write_atomic(self.path / "commands.txt", "\n".join(lines) + "\n")

  @property
  def _asked(self) -> dict[str, Any]:
    stored = self.path / "asked.json"
    nothing: dict[str, Any] = {part: {"runs": [], "missing": []} for part in _PARTS}
    try:
      found = read_object(stored) if stored.exists() else {}
      return nothing | {
        name: part if name == "name" else {key: [*part[key]] for key in _NOTED}
        for name, part in found.items()
      }
    except (WorkdirError, LookupError, TypeError):
      # No number depends on it but for the last digit, where another wave rounds.
      warnings.warn(f"{stored} is damaged and left out.", stacklevel=2)
      return nothing

  def _write_asked(self, asked: Mapping[str, Any]) -> None:
    write_atomic(self.path / "asked.json", json.dumps(asked) + "\n")

  @property
  def name(self) -> str:
    """Name of the experiment, by default that of the folder."""
    return self._asked.get("name") or self.path.name

  @property
  def asked(self) -> set[str]:
    """Ids of the runs that the last command asked for, those of its search included."""
    asked = self._asked
    return {run for part in _PARTS for run in asked[part]["runs"]}

  def ask(
    self,
    path: Path,
    runs: Sequence[str],
    steps: Sequence[int],
    lacking: Collection[str] = (),
  ) -> list[str]:
    """Notes which runs a command asks for; returns those it has to train.

    A command that was interrupted gets the same list again, with the runs that it
    trained meanwhile: so it goes on in the same waves, and ends with the same numbers.

    Args:
      path: `results`, `inner`, `search` or `alone`.
      runs: Ids of the runs.
      steps: At which each is evaluated.
      lacking: Those to be trained though they have ended.

    Returns:
      Those of ``runs`` that were missing when the command began; none if no run is
      missing by now. A run that diverged is not missing.
    """
    part, asked = self._stem(path), self._asked
    ended = self.ended(path, steps).difference(lacking)
    missing = [run for run in runs if run not in ended]
    begun = asked[part]
    same = begun["runs"] == [*runs] and {*missing} <= {*begun["missing"]}
    begun = {"runs": [*runs], "missing": begun["missing"] if same else missing}
    wait_for_all(f"{part} of {self.path}")  # Every host has read what is there.
    if is_first_host():
      self._write_asked({**asked, part: begun})
      if missing:
        (self.path / "done").unlink(missing_ok=True)
    return begun["missing"] if missing else []

  def ended(self, path: Path, steps: Sequence[int]) -> set[str]:
    """Ids of the runs that have a record of every step, or diverged.

    Args:
      path: `results` or `search`.
      steps: At which a run is evaluated.
    """
    there = {(r["run_id"], r["step"]) for r in self.records(path)}
    whole = {run for run, _ in there if all((run, step) in there for step in steps)}
    return whole | {row["run_id"] for row in self.gave_up()}

  def _own(self, stem: str) -> Path:
    """The JSON-lines file of this host: ``<stem>-<index>``, but for the first one."""
    index, _ = this_host()
    return self.path / (f"{stem}-{index}.jsonl" if index else f"{stem}.jsonl")

  @staticmethod
  def _stem(path: Path) -> str:
    return re.sub(r"-\d+$", "", path.stem)

  def parts(self, path: Path) -> list[Path]:
    """The files of all hosts that belong to ``path``, that of the first one first."""
    stem = self._stem(path)
    others = self.path.glob(f"{stem}-*.jsonl")
    numbered = sorted(p for p in others if re.fullmatch(rf"{stem}-\d+", p.stem))
    return [p for p in (self.path / f"{stem}.jsonl", *numbered) if p.exists()]

  @property
  def results(self) -> Path:
    """``results.jsonl``: one record per evaluation; a file per host until `finish`."""
    return self._own("results")

  @property
  def metrics(self) -> Path:
    """``metrics.jsonl``: training metrics of single runs, one row per log step."""
    return self.path / "metrics.jsonl"

  def checkpoints(self, run: str) -> Path:
    """``checkpoints/<id of the run>``."""
    return self.path / "checkpoints" / run

  def tensorboard(self, run: str) -> Path:
    """``tensorboard/<id of the run>``."""
    return self.path / "tensorboard" / run

  @property
  def inner(self) -> Path:
    """``inner.jsonl``: records of runs that left out a source to choose an encoder."""
    return self._own("inner")

  @property
  def search(self) -> Path:
    """``search.jsonl``: records of a hyperparameter search."""
    return self._own("search")

  @property
  def alone(self) -> Path:
    """``alone.jsonl``: records of each modality trained alone, for a diagnosis."""
    return self._own("alone")

  @property
  def linear(self) -> Path:
    """``linear.json``: what linear models score on the same splits."""
    return self.path / "linear.json"

  def parameters(self, run: str) -> Path:
    """``checkpoints/<id of the run>.npz``: final parameters of a run of a table."""
    return self.path / "checkpoints" / f"{run}.npz"

  @property
  def diverged(self) -> Path:
    """``diverged.jsonl``: runs of a table or search that were given up."""
    return self._own("diverged")

  def records(self, path: Path | None = None) -> list[Record]:
    """The records that all hosts have written so far; none without a file.

    Args:
      path: `results` (the default) or `search`.

    Raises:
      RecordError: If a line before the last one is broken; names it.
    """
    found: dict[tuple[str, int], Record] = {}
    for part in self.parts(path or self.results):
      found |= {(r["run_id"], r["step"]): r for r in read_records(part)}
    return list(found.values())

  def gave_up(self) -> list[dict[str, Any]]:
    """Rows of the runs that diverged, on any host: what identifies them, a message.

    Raises:
      WorkdirError: If a line before the last one is broken; names it.
    """
    found = {}
    for part in self.parts(self.diverged):
      for number, row in enumerate(read_lines(part), start=1):
        if not isinstance(row.get("run_id"), str) or "message" not in row:
          raise WorkdirError(_damaged(part, number, "it names no run"))
        found[row["run_id"]] = row
    return list(found.values())

  @property
  def finished(self) -> bool:
    """Whether `finish` was called."""
    return (self.path / "done").exists()

  def finish(self, runs: Mapping[str, int], steps: Sequence[int]) -> None:
    """Gathers what hosts wrote into one file each; writes ``done`` with the time.

    Args:
      runs: ``{id: number of settings tried}`` of all runs that were asked for. A record
        that owns up to fewer, because a search has grown since, is corrected.
      steps: At which each is evaluated.

    Raises:
      WorkdirError: If there is not a record of each, and the run did not diverge.
    """
    self.check_there()
    others = lambda path: [part for part in self.parts(path) if part != path]
    for path in (self.results, self.search, self.inner):
      if others(path):
        append_records(path, self.records(path))
    if others(self.diverged):
      rows = (json.dumps(row) + "\n" for row in self.gave_up())
      write_atomic(self.diverged, "".join(rows))
    for path in (self.results, self.search, self.inner, self.diverged):
      for part in others(path):
        part.unlink()
    raise_trials(self.results, runs)
    lost = runs.keys() - self.ended(self.results, steps)
    if lost:
      raise WorkdirError(
        f"{self.results} lacks records of {len(lost)} of {len(runs)} runs: it was "
        "removed or changed while they trained. The same command trains them again."
      )
    write_atomic(self.path / "done", time.strftime("%Y-%m-%dT%H:%M:%S%z\n"))


class Events:
  """What TensorBoard shows of one run: curves of the sources, and its settings.

  Args:
    workdir: Where they go.
    run: Id of the run.
    metric: The headline.
    resume_step: What was written of later steps is void.
  """

  def __init__(self, workdir: Workdir, run: str, metric: str, resume_step: int = 0):
    self._folder, self._metric = workdir.tensorboard(run), metric
    self._file = _EventFile(self._folder, resume_step + 1)

  def training(self, step: int, metrics: Mapping[str, float]) -> None:
    """Means over the steps since the last call."""
    self._write(step, {f"train/{name}": value for name, value in metrics.items()})

  def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
    """What is worth a curve: source validation, inside of embeddings; no target."""
    self._write(step, self._telling(metrics))

  def settings(self, record: Mapping[str, Any]) -> None:
    """What TensorBoard compares runs by, from the last record."""
    hyper = {k: record[k] for k in ("method", "target", "seed")} | record["hyper"]
    scores = self._telling(record["metrics"])
    from tensorboardX.summary import hparams

    file = _EventFile(self._folder / "settings")
    for summary in hparams(hyper, scores):
      file.write(summary=summary)
    file.add(None, scores)
    file.close()

  def close(self) -> None:
    self._file.close()

  def _write(self, step: int, values: Mapping[str, float]) -> None:
    self._file.add(step, values)

  def _telling(self, metrics: Mapping[str, Any]) -> dict[str, float]:
    shown = (f"val/{self._metric}", "val/nll", f"val/re-paired/{self._metric}")
    kinds = ("entropy/", "effective_rank/")
    return {
      k: math.nan if v is None else v  # As records have it.
      for k, v in metrics.items() if k in shown or k.startswith(kinds)
    }  # fmt: skip


class _EventFile:
  """TensorBoard events in a folder, written at once.

  The writer of tensorboardX is a thread: one that finds a full disk dies with a
  traceback, and the program waits for it for ever.
  """

  def __init__(self, folder: Path, from_step: int | None = None):
    # 0.2 s that nothing else needs.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2

    folder.mkdir(parents=True, exist_ok=True)
    self._folder, self._flushed = folder, time.monotonic()
    self._proto: Any = event_pb2  # Made at run time: no type checker knows it.
    with naming(folder):
      self._writer = EventsWriter(str(folder / "events"))
    if from_step is not None:  # What a killed run wrote from there on is not shown.
      start = self._proto.SessionLog(status=self._proto.SessionLog.START)
      self.write(step=from_step, session_log=start)

  def add(self, step: int | None, metrics: Mapping[str, float]) -> None:
    from tensorboardX.summary import scalar

    for name, value in metrics.items():
      self.write(step=step, summary=scalar(name, value))
    if time.monotonic() - self._flushed > 10:  # Seconds.
      self._flushed = time.monotonic()
      with naming(self._folder):
        self._writer.flush()

  def write(self, **what: Any) -> None:
    with naming(self._folder):
      self._writer.write_event(self._proto.Event(wall_time=time.time(), **what))

  def close(self) -> None:
    with naming(self._folder):
      self._writer.close()


class MetricsLog:
  """Training metrics of one run as JSON lines and TensorBoard events.

  Args:
    workdir: Where they go; runs share ``metrics.jsonl``.
    run: Id of the run, in every row.
    metric: The headline.
    resume_step: Rows of the run after this step were written before it was killed; they
      are dropped, since the resumed run writes them again.

  Attributes:
    events: TensorBoard's.
  """

  def __init__(self, workdir: Workdir, run: str, metric: str, resume_step: int):
    rows = read_lines(workdir.metrics, skip_damaged=True)
    kept = [r for r in rows if r.get("run") != run or r["step"] <= resume_step]
    write_atomic(workdir.metrics, "".join(json.dumps(r) + "\n" for r in kept))
    self._run = run
    self._file = workdir.metrics.open("a")
    self.events = Events(workdir, run, metric, resume_step)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends a row; it is on disk when this returns."""
    with naming(self._file.name):
      self._file.write(json.dumps({"run": self._run, "step": step, **metrics}) + "\n")
      self._file.flush()
    self.events.training(step, metrics)

  def close(self) -> None:
    with naming(self._file.name):
      self._file.close()
    self.events.close()


def read_lines(path: Path, *, skip_damaged: bool = False) -> list[dict[str, Any]]:
  """Rows of a JSON-lines file; a half-written last line is left out.

  Args:
    path: The file; no rows without it.
    skip_damaged: Leaves out any line that is no row, with a warning: for what is only
      looked at.

  Raises:
    WorkdirError: For a line that is no row; names it.
  """
  if not path.exists():
    return []
  whole, _, _ = path.read_bytes().rpartition(b"\n")
  rows = []
  for number, line in enumerate(whole.splitlines(), start=1):
    try:
      row = json.loads(line.decode())
      if not isinstance(row, dict) or not isinstance(row.get("step", 0), int):
        raise ValueError("it is no row")
    except (ValueError, RecursionError) as error:
      if not skip_damaged:
        raise WorkdirError(_damaged(path, number, error)) from error
      warnings.warn(f"{path}, line {number} is left out: {error}.", stacklevel=2)
    else:
      rows.append(row)
  return rows


def _damaged(path: Path, number: int, why: object) -> str:
  return (
    f"{path}, line {number} is damaged: {why}. Without that line, what it says is done "
    "again by the same command."
  )


def read_object(path: Path) -> dict[str, Any]:
  """The JSON object in a file.

  Raises:
    WorkdirError: If it is none.
  """
  try:
    found = json.loads(path.read_bytes().decode())
  except (ValueError, RecursionError) as error:
    raise WorkdirError(f"{path} is damaged: {error}. {_REMEDY}") from error
  if not isinstance(found, dict):
    raise WorkdirError(f"{path} is damaged: it is no object. {_REMEDY}")
  return found


_REMEDY = "Without the file, the same command with its --config writes it again."
