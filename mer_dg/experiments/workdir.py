"""The folder of an experiment: its files, and the guard at its door."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mer_dg.experiments.config import ConfigError
from mer_dg.reporting import read_records
from mer_dg.reporting.plots import write_atomic


class Workdir:
  """Paths of a workdir; refuses one that was started with another config.

  Args:
    path: The folder; made if absent.
    config: A dict from `validate`.

  Raises:
    ConfigError: If ``config.json`` in the folder differs; the message names the
      fields.
  """

  def __init__(self, path: str | os.PathLike, config: Mapping[str, Any]):
    self.path = Path(path).expanduser().absolute()
    stored = self.path / "config.json"
    if stored.exists():
      changed = _differences(json.loads(stored.read_text()), config)
      if changed:
        raise ConfigError(
          f"{self.path} belongs to another config: {'; '.join(changed)}. "
          "Choose another --workdir, or the config it was started with."
        )
    else:
      self.path.mkdir(parents=True, exist_ok=True)
      write_atomic(stored, json.dumps(config, indent=2) + "\n")

  @property
  def results(self) -> Path:
    """``results.jsonl``: one record per evaluation."""
    return self.path / "results.jsonl"

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

  def records(self) -> list[Any]:
    """The records written so far; none if there is no file yet."""
    return read_records(self.results) if self.results.exists() else []

  def finish(self) -> None:
    """Writes the marker ``done`` with the time."""
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

    kept = [r for r in read_metrics(workdir.metrics) if r["step"] <= resume_step]
    write_atomic(workdir.metrics, "".join(json.dumps(r) + "\n" for r in kept))
    self._file = workdir.metrics.open("a")
    self._events = SummaryWriter(str(workdir.tensorboard), purge_step=resume_step + 1)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends a row; it is on disk when this returns."""
    self._file.write(json.dumps({"step": step, **metrics}) + "\n")
    self._file.flush()
    self.events(step, metrics)

  def events(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes TensorBoard scalars only."""
    for name, value in metrics.items():
      self._events.add_scalar(name, value, step)

  def close(self) -> None:
    self._file.close()
    self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """Rows of ``metrics.jsonl``; a half-written last line is left out."""
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
