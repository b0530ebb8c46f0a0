"""Records: one JSON line per evaluation, in ``results.jsonl`` of a workdir."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import subprocess
from typing import Any, TypedDict
import warnings

from mer_dg.protocol.files import write_atomic


class Identity(TypedDict):
  """What identifies a run; `Record` explains."""

  method: str
  target: str
  sources: list[str]
  modalities: list[str]
  dataset: str
  data_version: str
  seed: int
  split_seed: int
  hyper: dict[str, float]
  config_hash: str


class Record(Identity):
  """One evaluation of one run at one step.

  ``metrics`` is flat: ``val/accuracy``, ``val/balanced_accuracy``, ``val/nll``,
  ``target/accuracy``, …, ``val/<domain>/accuracy``, ``entropy/<modality>`` (nats).
  A non-finite value is stored as null and read as NaN. ``config_hash`` stands for the
  protocol that the rows of one table share: `stable_hash` of the config without method,
  target, seed and what ``hyper`` lists; ``protocol`` is the name of how domains were
  assigned, which it stands for, too. ``trials`` is the number of hyperparameter
  settings tried to arrive at this run. ``run_id`` is `stable_hash` of the `Identity`.
  """

  run_id: str
  protocol: str
  trials: int
  step: int
  metrics: dict[str, float]
  git_revision: str
  wall_time_s: float
  device: str
  time: str


FIELDS = tuple(Record.__annotations__)
_DEFAULT_PROTOCOL = "leave_one_domain_out"  # Of lines older than the field, too.


def stable_hash(value: Any) -> str:
  """16 hexadecimal digits of a JSON-like value; the order of dict keys is irrelevant.

  Args:
    value: Nested dicts, lists, tuples (as lists), strings, numbers, booleans, None.

  Raises:
    TypeError: If something is not JSON.

  Example:
    >>> stable_hash({"a": 1, "b": (2,)}) == stable_hash({"b": [2], "a": 1})
    True
  """
  text = json.dumps(value, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_record(
  *,
  method: str,
  target: str,
  sources: Sequence[str],
  modalities: Sequence[str],
  dataset: str,
  data_version: str,
  seed: int,
  split_seed: int,
  hyper: Mapping[str, Any],
  config_hash: str,
  trials: int,
  step: int,
  metrics: Mapping[str, Any],
  git_revision: str,
  wall_time_s: float,
  device: str,
  protocol: str = _DEFAULT_PROTOCOL,
) -> Record:
  """Builds a `Record`; adds ``run_id`` and ``time`` (UTC), turns arrays into numbers.

  ``run_id`` is a hash of every field that identifies a run (method, target, sources,
  modalities, dataset, data version, seed, split seed, hyper, config hash), so the same
  run started again has the same id on any machine.

  Args:
    method: Name of the method, the row of a table.
    target: Held-out domain.
    sources: Training domains, in the order of the config.
    modalities: In the order of the config.
    dataset: Name of the dataset.
    data_version: Version or hash of its content.
    seed: Of initialisation and training.
    split_seed: Of the train/validation split.
    hyper: Numeric hyperparameters, the axes of a search; scalars.
    config_hash: See `Record`.
    trials: Number of hyperparameter settings tried, ``>= 1``.
    step: Number of updates done.
    metrics: Flat scalars; jax or numpy scalars are accepted.
    git_revision: `git_revision()`.
    wall_time_s: Seconds of the run up to this evaluation (of the whole program
      where runs are vmapped).
    device: Number and kind of the devices.
    protocol: One of `PROTOCOLS`.

  Raises:
    TypeError: If a hyperparameter or metric is not a number.
    ValueError: If a name is empty, or trials, step or wall time is out of range.

  Example:
    >>> r = make_record(method="erm", target="d3", sources=["d1", "d2"],
    ...   modalities=["audio"], dataset="toy", data_version="1", seed=0, split_seed=0,
    ...   hyper={}, config_hash="c0", trials=1, step=10, metrics={"val/accuracy": 0.5},
    ...   git_revision="abc", wall_time_s=1.0, device="cpu")
    >>> r["run_id"]
    '5814eaca5b08dbd4'
  """
  names = {
    "method": method,
    "target": target,
    "dataset": dataset,
    "data_version": data_version,
    "config_hash": config_hash,
  }
  for field, value in names.items():
    if not isinstance(value, str) or not value:
      raise ValueError(f"{field} must be a non-empty string, got {value!r}.")
  for field, value, least in (("trials", trials, 1), ("step", step, 0)):
    if int(value) != value or value < least:
      raise ValueError(f"{field} must be an integer >= {least}, got {value!r}.")
  if not wall_time_s >= 0:
    raise ValueError(f"wall_time_s must be >= 0, got {wall_time_s!r}.")
  identity: Identity = {
    "method": method,
    "target": target,
    "sources": [str(s) for s in sources],
    "modalities": [str(m) for m in modalities],
    "dataset": dataset,
    "data_version": data_version,
    "seed": int(seed),
    "split_seed": int(split_seed),
    "hyper": _numbers("hyper", hyper),
    "config_hash": config_hash,
  }
  return Record(
    **identity,
    run_id=stable_hash(identity),
    protocol=str(protocol),
    trials=int(trials),
    step=int(step),
    metrics=_numbers("metrics", metrics),
    git_revision=str(git_revision),
    wall_time_s=float(wall_time_s),
    device=str(device),
    time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
  )


def _numbers(field: str, values: Mapping[str, Any]) -> dict[str, float]:
  out = {}
  for name, value in values.items():
    try:
      # A string is no number here, even if it reads like one.
      out[str(name)] = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
      value = repr(value)
    if isinstance(value, str):
      raise TypeError(f"{field}[{name!r}] must be a number, got {value}.")
  return out


def append_records(path: str | os.PathLike, records: Iterable[Record]) -> int:
  """Appends the records whose ``(run_id, step)`` the file does not have yet.

  One write, flushed and synced to disk before the return; a half-written last line of a
  killed process is cut off first. Doing it again changes nothing, so a resumed run may
  append what it already did. One writer at a time.

  A record that the file has with fewer metrics (it was diagnosed since) gets the new
  ones: the file is written anew under a temporary name. If the metrics of both do not
  agree it was another network; the record stays as it is, with a warning.

  Args:
    path: The file; it and its folder are made if absent.
    records: Evaluations.

  Returns:
    Number of records written, or given more metrics.

  Raises:
    ValueError: If the file has a broken line before its end; names the line.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  existing, good_bytes = _parse(path) if path.exists() else ([], 0)
  seen = {(r["run_id"], r["step"]): r for r in existing}
  new, extended = [], 0
  for record in records:
    key = record["run_id"], record["step"]
    if key in seen:
      extended += _extend(seen[key], record)
    else:
      seen[key] = record
      new.append(record)
  lines = [_to_line(record) for record in new]
  if extended:
    write_atomic(path, b"".join([*map(_to_line, existing), *lines]))
    return len(lines) + extended
  if not lines:
    return 0
  with open(path, "r+b" if path.exists() else "xb") as f:
    f.truncate(good_bytes)
    f.seek(good_bytes)
    needs_newline = good_bytes > 0 and not path.read_bytes()[:good_bytes].endswith(
      b"\n"
    )
    f.write(b"\n" * needs_newline + b"".join(lines))
    f.flush()
    os.fsync(f.fileno())
  return len(lines)


def _extend(old: Record, new: Record) -> bool:
  """Adds the metrics that ``old`` lacks; whether there were any to add."""
  more = {k: v for k, v in new["metrics"].items() if k not in old["metrics"]}
  if not more:
    return False
  a, b = old["metrics"], new["metrics"]
  # What is not finite is read back as NaN.
  finite = [
    k for k in a.keys() & b.keys() if math.isfinite(a[k]) or math.isfinite(b[k])
  ]
  if not all(math.isclose(a[k], b[k], rel_tol=1e-4, abs_tol=1e-6) for k in finite):
    warnings.warn(
      f"Run {old['run_id']} at step {old['step']} has other metrics than when it was "
      f"recorded; {len(more)} new ones are not added. A fresh workdir takes them.",
      stacklevel=3,
    )
    return False
  old["metrics"].update(more)
  return True


def _to_line(record: Record) -> bytes:
  null = {k: v if math.isfinite(v) else None for k, v in record["metrics"].items()}
  return json.dumps({**record, "metrics": null}, allow_nan=False).encode() + b"\n"


def read_records(path: str | os.PathLike) -> list[Record]:
  """All records of a file, in the order written.

  A last line that a killed process left half-written (no newline at its end, not valid
  JSON) is skipped with a warning; the next `append_records` cuts it off.

  Args:
    path: A ``results.jsonl``.

  Raises:
    FileNotFoundError: If there is no file.
    ValueError: A line that is not JSON or lacks a field of `Record`; names the line.
  """
  return _parse(pathlib.Path(path))[0]


def _parse(path: pathlib.Path) -> tuple[list[Record], int]:
  """Records, and the number of leading bytes of the file that are sound."""
  records: list[Record] = []
  good_bytes = 0
  for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
    if line.strip():
      try:
        records.append(_from_line(line))
      except ValueError as error:
        unreadable = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
        if unreadable and not line.endswith(b"\n"):
          warnings.warn(
            f"{path}: dropped the half-written last line {number}.", stacklevel=3
          )
          break
        raise ValueError(f"{path}, line {number}: {error}") from error
    good_bytes += len(line)
  return records, good_bytes


def _from_line(line: bytes) -> Record:
  value = json.loads(line.decode())  # Bytes would be probed for UTF-16.
  if isinstance(value, dict):
    value.setdefault("protocol", _DEFAULT_PROTOCOL)
  missing = [f for f in FIELDS if not isinstance(value, dict) or f not in value]
  if missing:
    raise ValueError(f"not a record: missing {missing}.")
  metrics = value["metrics"]
  value["metrics"] = {
    k: math.nan if v is None else float(v) for k, v in metrics.items()
  }
  return value


def git_revision() -> str:
  """Commit of this package's source, with ``-dirty`` if files differ from it.

  An installed copy has no commit of its own: then ``v`` and the package version (or
  ``unknown``), never the commit of the user's surrounding repository.
  """
  root = pathlib.Path(__file__).resolve().parents[2]

  def git(*args: str) -> str:
    command = ["git", "-C", str(root), *args]
    return subprocess.run(
      command, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()

  try:
    if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() == root:
      dirty = git("status", "--porcelain", "--untracked-files=no")
      return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
  except (OSError, subprocess.SubprocessError):
    pass  # No git, no repository or no commit yet.
  try:
    return "v" + importlib.metadata.version("mer_dg")
  except importlib.metadata.PackageNotFoundError:
    return "unknown"
