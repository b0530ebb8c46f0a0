"""The folder of an experiment: its files, and the guard at its door."""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
from pathlib import Path
import re
import time
from typing import Any

from mer_dg.experiments.hosts import this_host
from mer_dg.protocol import Record, append_records, read_records, write_atomic


class WorkdirError(ValueError):
  """The workdir is not what the command needs; the message says why."""


class Workdir:
  """Paths of a workdir; refuses one that was started with another config.

  Nothing is written before `create`.

  Args:
    path: The folder.
    config: A dict from `validate`.

  Raises:
    WorkdirError: If ``config.json`` in the folder differs; the message names the
      fields.
  """

  def __init__(self, path: str | os.PathLike, config: Mapping[str, Any]):
    self.path = Path(path).expanduser().absolute()
    self._config = config
    if self._stored.exists():
      changed = _differences(json.loads(self._stored.read_text()), config)
      if changed:
        raise WorkdirError(
          f"{self.path} belongs to another config: {'; '.join(changed)}. "
          "Choose another --workdir, or the config it was started with."
        )

  @property
  def _stored(self) -> Path:
    return self.path / "config.json"

  def create(self) -> None:
    """Makes the folder and its ``config.json``, unless they are there."""
    self.path.mkdir(parents=True, exist_ok=True)
    if not self._stored.exists():
      write_atomic(self._stored, json.dumps(self._config, indent=2) + "\n")

  @property
  def commands(self) -> tuple[str, ...]:
    """Command lines that trained here, oldest first; see `add_command`."""
    stored = self.path / "commands.txt"
    return tuple(stored.read_text().splitlines()) if stored.exists() else ()

  def add_command(self, command: str) -> None:
    """Remembers a command line in ``commands.txt``, once."""
    if command and command not in self.commands:
      lines = (*self.commands, command)
      write_atomic(self.path / "commands.txt", "\n".join(lines) + "\n")

  def _own(self, stem: str) -> Path:
    """The JSON-lines file of this host: ``<stem>-<index>``, but for the first one."""
    index, _ = this_host()
    return self.path / (f"{stem}-{index}.jsonl" if index else f"{stem}.jsonl")

  def parts(self, path: Path) -> list[Path]:
    """The files of all hosts that belong to ``path``, that of the first one first."""
    stem = re.sub(r"-\d+$", "", path.stem)
    others = self.path.glob(f"{stem}-*.jsonl")
    numbered = sorted(p for p in others if re.fullmatch(rf"{stem}-\d+", p.stem))
    return [p for p in (self.path / f"{stem}.jsonl", *numbered) if p.exists()]

  @property
  def results(self) -> Path:
    """``results.jsonl``: one record per evaluation; a file per host until `finish`."""
    return self._own("results")

  @property
  def metrics(self) -> Path:
    """``metrics.jsonl``: training metrics, one row per log step."""
    return self.path / "metrics.jsonl"

  @property
  def checkpoints(self) -> Path:
    """``checkpoints/``."""
    return self.path / "checkpoints"

  @property
  def tensorboard(self) -> Path:
    """``tensorboard/``."""
    return self.path / "tensorboard"

  @property
  def search(self) -> Path:
    """``search.jsonl``: records of a hyperparameter search."""
    return self._own("search")

  @property
  def diverged(self) -> Path:
    """``diverged.jsonl``: runs of a table or search that were given up."""
    return self._own("diverged")

  def records(self, path: Path | None = None) -> list[Record]:
    """The records that all hosts have written so far; none without a file.

    Args:
      path: `results` (the default) or `search`.

    Raises:
      WorkdirError: If a line before the last one is broken; names it.
    """
    found: dict[tuple[str, int], Record] = {}
    try:
      for part in self.parts(path or self.results):
        found |= {(r["run_id"], r["step"]): r for r in read_records(part)}
    except ValueError as error:
      raise WorkdirError(str(error)) from error
    return list(found.values())

  def gave_up(self) -> list[dict[str, Any]]:
    """Rows ``{run_id, message}`` of the runs that diverged, on any host."""
    rows = (row for part in self.parts(self.diverged) for row in read_lines(part))
    return list({row["run_id"]: row for row in rows}.values())

  @property
  def finished(self) -> bool:
    """Whether `finish` was called."""
    return (self.path / "done").exists()

  def finish(self) -> None:
    """Gathers what hosts wrote into one file each; writes ``done`` with the time."""
    others = lambda path: [part for part in self.parts(path) if part != path]
    for path in (self.results, self.search):
      if others(path):
        append_records(path, self.records(path))
    if others(self.diverged):
      rows = (json.dumps(row) + "\n" for row in self.gave_up())
      write_atomic(self.diverged, "".join(rows))
    for path in (self.results, self.search, self.diverged):
      for part in others(path):
        part.unlink()
    write_atomic(self.path / "done", time.strftime("%Y-%m-%dT%H:%M:%S%z\n"))


class MetricsLog:
  """Training metrics as JSON lines and TensorBoard events.

  Args:
    workdir: Where they go.
    resume_step: Rows after this step were written by a run that was killed; they
      are dropped, since the resumed run writes them again.
  """

  def __init__(self, workdir: Workdir, resume_step: int):
    from tensorboardX import SummaryWriter  # 0.2 s that nothing else needs.

    kept = [r for r in read_lines(workdir.metrics) if r["step"] <= resume_step]
    write_atomic(workdir.metrics, "".join(json.dumps(r) + "\n" for r in kept))
    self._file = workdir.metrics.open("a")
    self._events = SummaryWriter(str(workdir.tensorboard), purge_step=resume_step + 1)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends a row; it is on disk when this returns."""
    self._file.write(json.dumps({"step": step, **metrics}) + "\n")
    self._file.flush()
    self.events(step, {f"train/{name}": value for name, value in metrics.items()})

  def events(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes TensorBoard scalars only."""
    for name, value in metrics.items():
      self._events.add_scalar(name, value, step)

  def close(self) -> None:
    self._file.close()
    self._events.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
  """Rows of a JSON-lines file; a half-written last line is left out."""
  if not path.exists():
    return []
  whole, _, _ = path.read_text().rpartition("\n")
  return [json.loads(line) for line in whole.splitlines()]


def _differences(old: Mapping, new: Mapping, prefix="config") -> list[str]:
  changed = []
  for name in sorted({*old, *new}):
    field = f"{prefix}.{name}"
    a, b = old.get(name), new.get(name)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
      changed += _differences(a, b, field)
    elif a != b:
      changed.append(f"{field} was {a!r} and is now {b!r}")
  return changed
