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
import re
import subprocess
from typing import Any, TypedDict
import warnings
import zlib

from mer_dg.files import naming, write_atomic
from mer_dg.protocol.folds import FORMER


class RecordError(ValueError):
  """A file of records is damaged; the message names file and line."""


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
  tags: dict[str, str]
  config_hash: str


class Record(Identity):
  """One evaluation of one run at one step.

  ``metrics`` is flat: ``val/accuracy``, ``val/balanced_accuracy``, ``val/nll``,
  ``target/accuracy``, …, ``val/<domain>/accuracy``, ``entropy/<modality>`` (nats).
  A non-finite value is stored as null and read as NaN. ``config_hash`` stands for the
  protocol that the rows of one table share: data, split, metric, assignment of domains
  (which ``protocol`` names, too), budget of steps. ``hyper`` are the numbers of a run
  (of its method, network and optimiser), ``tags`` its words. ``trials`` is the number
  of settings tried to arrive at this run. ``run_id`` is `run_id` of the `Identity`.
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
  damaged: int


FIELDS = tuple(Record.__annotations__)
_DEFAULT_PROTOCOL = "leave_one_domain_out"  # Of lines older than the field, too.
# What a field of a line must be; whole numbers are floats, too.
_TYPES: dict[str, Any] = dict.fromkeys(FIELDS, str) | {
  "sources": list, "modalities": list, "hyper": dict, "tags": dict, "metrics": dict,
  "seed": int, "split_seed": int, "trials": int, "step": int,
  "wall_time_s": (int, float), "damaged": int,
}  # fmt: skip
# Words that say that something is not there.
_OFF = ("", "none", "off", "False")


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


def run_id(identity: Mapping[str, Any]) -> str:
  """16 hexadecimal digits for a run: the same run has the same ones on any machine.

  What is off (the number 0, the words none, off, False) counts like what is not there,
  so that a hyperparameter which a later version adds, off, makes no other run.

  Args:
    identity: Has the fields of `Identity`; others (of a `Record`) do not count.

  Example:
    >>> run = dict(method="erm", target="t", sources=["s"], modalities=["a"],
    ...   dataset="toy", data_version="1", seed=0, split_seed=0, hyper={"lr": 0.1},
    ...   tags={}, config_hash="c")
    >>> later = run | {"hyper": {"lr": 0.1, "noise": 0.0}, "tags": {"norm": "none"}}
    >>> run_id(run) == run_id(later) != run_id(run | {"seed": 1})
    True
  """
  fields = {name: identity[name] for name in Identity.__annotations__}
  fields["hyper"] = {k: float(v) for k, v in fields["hyper"].items() if v != 0}
  fields["tags"] = {k: v for k, v in fields["tags"].items() if v not in _OFF}
  return stable_hash(fields)


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
  tags: Mapping[str, str] | None = None,
  damaged: int = 0,
) -> Record:
  """Builds a `Record`; adds `run_id` and ``time`` (UTC), turns arrays into numbers.

  Args:
    method: Name of the method, the row of a table.
    target: Held-out domain.
    sources: Training domains, in the order of the config.
    modalities: In the order of the config.
    dataset: Name of the dataset.
    data_version: Version or hash of its content.
    seed: Of initialisation and training.
    split_seed: Of the train/validation split.
    hyper: Numeric hyperparameters, scalars; those of a search among them.
    config_hash: See `Record`.
    trials: Number of hyperparameter settings tried, ``>= 1``.
    step: Number of updates done.
    metrics: Flat scalars; jax or numpy scalars are accepted.
    git_revision: `git_revision()`.
    wall_time_s: Seconds of the run up to this evaluation (of the whole program
      where runs are vmapped).
    device: Number and kind of the devices.
    protocol: One of `PROTOCOLS`.
    tags: Hyperparameters that are words; none if None.
    damaged: Rows that this process could not read so far and left out.

  Raises:
    TypeError: If a hyperparameter or metric is not a number, or a tag no word.
    ValueError: If a name is empty, or trials, step or wall time is out of range.

  Example:
    >>> r = make_record(method="erm", target="d3", sources=["d1", "d2"],
    ...   modalities=["audio"], dataset="toy", data_version="1", seed=0, split_seed=0,
    ...   hyper={}, config_hash="c0", trials=1, step=10, metrics={"val/accuracy": 0.5},
    ...   git_revision="abc", wall_time_s=1.0, device="cpu")
    >>> r["run_id"] == run_id(r)
    True
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
  for name, word in (tags or {}).items():
    if not isinstance(word, str):
      raise TypeError(f"tags[{name!r}] must be a string, got {word!r}.")
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
    "tags": dict(tags or {}),
    "config_hash": config_hash,
  }
  return Record(
    **identity,
    run_id=run_id(identity),
    protocol=str(protocol),
    trials=int(trials),
    step=int(step),
    metrics=_numbers("metrics", metrics),
    git_revision=str(git_revision),
    wall_time_s=float(wall_time_s),
    device=str(device),
    time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    damaged=int(damaged),
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
    RecordError: If the file has a broken line before its end; names the line.
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
  with naming(path), open(path, "r+b" if path.exists() else "xb") as f:
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


def raise_trials(path: str | os.PathLike, trials: Mapping[str, int]) -> None:
  """Corrects records that own up to fewer settings than were tried by now.

  Args:
    path: A ``results.jsonl``; nothing happens without it.
    trials: ``{run_id: number of settings tried}``.
  """
  path = pathlib.Path(path)
  records = read_records(path) if path.exists() else []
  few = [r for r in records if r["trials"] < trials.get(r["run_id"], 1)]
  for record in few:
    record["trials"] = trials[record["run_id"]]
  if few:
    write_atomic(path, b"".join(map(_to_line, records)))


def _to_line(record: Record) -> bytes:
  null = {k: v if math.isfinite(v) else None for k, v in record["metrics"].items()}
  line = json.dumps({**record, "metrics": null}, allow_nan=False).encode()
  return b'%b, "crc": "%08x"}\n' % (line[:-1], zlib.crc32(line))


def read_records(path: str | os.PathLike) -> list[Record]:
  """All records of a file, in the order written.

  Lines of older versions are read, too: those whose ``hyper`` has words as
  ``"name=word": 1.0`` get them as ``tags``, and keep their ``run_id``. A last line that
  a killed process left half-written (no newline at its end, not valid JSON) is skipped
  with a warning; the next `append_records` cuts it off.

  Args:
    path: A ``results.jsonl``.

  Raises:
    FileNotFoundError: If there is no file.
    RecordError: A line that is not JSON, lacks a field of `Record`, or is not as it was
      written (its checksum says); names the line.
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
      except (ValueError, RecursionError) as error:
        unreadable = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
        if unreadable and not line.endswith(b"\n"):
          warnings.warn(
            f"{path}: dropped the half-written last line {number}.", stacklevel=3
          )
          break
        raise RecordError(f"{path}, line {number}: {error}") from error
    good_bytes += len(line)
  return records, good_bytes


_CHECKSUM = re.compile(rb', "crc": "([0-9a-f]{8})"}$')


def _from_line(line: bytes) -> Record:
  value = json.loads(line.decode())  # Bytes would be probed for UTF-16.
  if isinstance(value, dict):
    if isinstance(named := value.setdefault("protocol", _DEFAULT_PROTOCOL), str):
      value["protocol"] = FORMER.get(named, named)
    value.setdefault("damaged", 0)
    if "tags" not in value and isinstance(value.get("hyper"), dict):
      value |= _without_words(value["hyper"])
  missing = [f for f in FIELDS if not isinstance(value, dict) or f not in value]
  if missing:
    raise ValueError(f"not a record: missing {missing}.")
  if value.pop("crc", None) is not None:  # Lines of older versions have none.
    found = _CHECKSUM.search(line.rstrip())
    written = line[: found.start()] + b"}" if found else b""
    if not found or int(found[1], 16) != zlib.crc32(written):
      raise ValueError(
        "the checksum is another one: the line was damaged or edited since it was "
        'written. Remove the line to train its run again, or its "crc" to accept it.'
      )
  wrong = [f for f in FIELDS if not isinstance(value[f], _TYPES[f])]
  wrong += [f for f in ("hyper", "metrics") if not _are(value[f], int | float | None)]
  if wrong or not _are(value["tags"], str):
    raise ValueError(f"not a record: {(wrong or ['tags'])[0]} has another type.")
  value["metrics"] = {
    # As written before 0.2; the only place that knows.
    k.replace("val/repaired/", "val/re-paired/"): math.nan if v is None else float(v)
    for k, v in value["metrics"].items()
  }
  return value


def _are(values: Any, kind: Any) -> bool:
  return isinstance(values, dict) and all(isinstance(v, kind) for v in values.values())


def _without_words(hyper: Mapping[str, Any]) -> dict[str, Any]:
  """``hyper`` and ``tags`` where ``"name=word": 1.0`` is among the numbers."""
  words = [name.partition("=") for name in hyper if "=" in name]
  return {
    "hyper": {k: v for k, v in hyper.items() if "=" not in k},
    "tags": {name: word for name, _, word in words},
  }


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
