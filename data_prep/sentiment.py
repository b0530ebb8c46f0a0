r"""Builds a sentiment set over several corpora from their published pickles.

  python -m data_prep.sentiment --set=mosi --file=mosi.pkl          # Check one.
  python -m data_prep.sentiment --set=mosei --file=mosei.pkl --set=mosi \
      --file=mosi.pkl --set=ch_sims --file=sims.pkl --out=sentiment.npz
  python main.py --config=configs/features.py --config.data.path=sentiment.npz

CMU-MOSI, CMU-MOSEI and CH-SIMS, each a domain, in the layout of the MMSA collection: a
pickled ``{"train" | "valid" | "test": {...}}`` with ``text``, ``audio``, ``vision``
``[N, T, C]`` and ``regression_labels [N]``. Nothing in a pickle is executed. All sets
need features of one extraction: the widths C must agree, the lengths T need not.
``--modalities=text`` will do where only the text features agree.

The classes are those of the protocol's accuracy (Acc2): positive is a label above 0.
docs/sensor_and_text_data.md says what this leaves out, and more.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from data_prep._pickles import load_plain
from data_prep._prepared import add_arguments, finish
from data_prep.video_scan import Problem
from mer_dg.data.dataset import DataError

MODALITIES = ("text", "audio", "vision")
CLASSES = ("not positive", "positive")
# Names of the splits in the pickles, and ours.
SPLITS = {"train": "train", "valid": "val", "test": "test"}
LIMIT = 3.0  # Largest label, after scaling.
DTYPES = ("float32", "float16")


class Corpus(NamedTuple):
  """What is known of a set.

  Attributes:
    scale: Factor that brings its labels to -3..3.
    rows: Published number of clips in train, valid, test.
  """

  scale: float
  rows: tuple[int, int, int]


# In the order of the reference's domain numbers.
CORPORA = {
  "mosei": Corpus(1.0, (16_326, 1_871, 4_659)),
  "mosi": Corpus(1.0, (1_284, 229, 686)),
  "ch_sims": Corpus(3.0, (1_368, 456, 457)),
}

Rows = dict[str, Any]


def read_corpus(
  name: str,
  path: str | os.PathLike,
  *,
  modalities: Sequence[str] = MODALITIES,
  dtype: str = "float32",
) -> tuple[list[Rows], list[Problem], list[str]]:
  """The usable rows of one pickle.

  Args:
    name: A key of `CORPORA`.
    path: The pickle.
    modalities: Which to read.
    dtype: Of the features.

  Returns:
    One dict of arrays per split, the unusable rows, and lines for the audit.

  Raises:
    DataError: The pickle asks for more than plain data (nothing of it is executed), or
      is laid out otherwise; the message names file, split and key.
  """
  path = pathlib.Path(path).expanduser()
  content = load_plain(path)
  if not isinstance(content, dict) or any(s not in content for s in SPLITS):
    found = list(content) if isinstance(content, dict) else type(content).__name__
    raise DataError(f"{path}: expected the splits {list(SPLITS)}, found {found}.")
  parts, problems, notes = [], [], []
  for split in SPLITS:
    where = f"{path}: {split}"
    part = _read_split(where, content.pop(split), name, split, modalities)
    bad = _bad_rows(part, modalities, dtype)
    problems += [Problem(f"{name}/{split}/{i}", f"{where}", bad[i]) for i in bad]
    keep = np.setdiff1d(np.arange(len(part["value"])), list(bad))
    notes += _oddities(f"{name} {split}", part, modalities)
    kept = {key: a[keep] for key, a in part.items() if not key.startswith("note_")}
    parts.append(kept | {m: kept[m].astype(dtype) for m in modalities})
  return parts, problems, [*notes, *_shared_videos(name, parts)]


def _read_split(where, block: Any, name: str, split: str, modalities) -> Rows:
  """Arrays of all rows of a split, unchecked but for their shapes."""
  needed = (*modalities, "regression_labels")
  if not isinstance(block, dict) or any(key not in block for key in needed):
    found = list(block) if isinstance(block, dict) else type(block).__name__
    raise DataError(f"{where}: expected {list(needed)}, found {found}.")
  value = _numbers(f"{where}: regression_labels", block["regression_labels"])
  value = value.astype(np.float64).reshape(-1) * CORPORA[name].scale
  n = len(value)
  # What is far out of range is named as such later, as is NaN.
  part: Rows = {"value": np.clip(value, -1e3, 1e3).astype(np.float32)}
  for m in modalities:
    x = _sequences(f"{where}: {m}", block[m], n)
    if m == "audio":  # The extraction's logarithm of silence; as the public loader.
      silent = np.isneginf(x)
      part["note_silent"] = silent.any(axis=(1, 2))
      x = np.where(silent, x.dtype.type(0), x)
    part[m] = x
    part[f"{m}_len"], part[f"note_cut_{m}"] = _lengths(where, block, m, x)
    part[f"{m}_present"] = (x != 0).any(axis=(1, 2))
  part["split"] = np.full(n, SPLITS[split])
  part["id"] = np.array([f"{name}/{split}/{i}" for i in range(n)])
  part["group"] = np.array([f"{name}/{v}" for v in _videos(where, block, split, n)])
  return part


def _numbers(where: str, values: Any) -> np.ndarray:
  try:
    array = np.asarray(values)
    return array if array.dtype.kind in "fiub" else array.astype(np.float32)
  except (ValueError, TypeError) as error:
    raise DataError(f"{where} must hold numbers ({error}).") from error


def _sequences(where: str, values: Any, n: int) -> np.ndarray:
  """Features ``[N, T, C]``; a list of ``[T_i, C]`` is padded with zeros."""
  if isinstance(values, list) or (
    isinstance(values, np.ndarray) and values.ndim and values.dtype.kind == "O"
  ):
    values = [_numbers(where, v) for v in values]
    if not all(v.ndim == 2 for v in values) or len({v.shape[1:] for v in values}) != 1:
      shapes = sorted({str(v.shape) for v in values})[:4]
      raise DataError(f"{where} must be [N, T, C], found rows of shape {shapes}.")
    steps = max(len(v) for v in values)
    padded = np.zeros((len(values), steps, values[0].shape[1]), np.float32)
    for row, v in zip(padded, values, strict=True):
      row[: len(v)] = v
    values = padded
  values = _numbers(where, values)
  if values.ndim != 3 or len(values) != n or 0 in values.shape[1:]:
    raise DataError(
      f"{where} must be numbers [N = {n}, T, C], found {values.dtype} {values.shape}."
    )
  return values.astype(np.float32) if values.dtype.kind != "f" else values


def _lengths(where: str, block: Mapping[str, Any], m: str, x: np.ndarray):
  """Valid steps of each row, and whether the file names more than there are.

  The file's own lengths, for text those of the tokens that BERT attends to; else up to
  the last step that is not zero.
  """
  n, steps = x.shape[:2]
  mask = _numbers(f"{where}: text_bert", block.get("text_bert", 0))
  if f"{m}_lengths" in block:
    named = _numbers(f"{where}: {m}_lengths", block[f"{m}_lengths"]).reshape(-1)
  elif m == "text" and mask.shape == (n, 3, steps):
    named = (mask[:, 1] != 0).sum(axis=1)
  else:
    filled = (x != 0).any(axis=2)
    named = np.where(filled.any(axis=1), steps - filled[:, ::-1].argmax(axis=1), 1)
  if named.shape != (n,) or not np.isfinite(named).all():
    raise DataError(f"{where}: {m}_lengths must be {n} numbers, got {named.shape}.")
  return np.clip(named, 1, steps).astype(np.int32), named > steps


def _videos(where: str, block: Mapping[str, Any], split: str, n: int) -> list[str]:
  """The recording of each clip: what stands before ``$_$`` in its id."""
  if "id" not in block:
    return [f"{split}/{i}" for i in range(n)]
  ids = block["id"]
  if not isinstance(ids, list | tuple | np.ndarray) or getattr(ids, "ndim", 1) == 0:
    raise DataError(f"{where}: id must be a list, found {type(ids).__name__}.")
  if len(ids) != n:
    raise DataError(f"{where}: id has {len(ids)} entries, regression_labels {n}.")
  return [_video(f"{where}: id {i}", v) for i, v in enumerate(ids)]


def _video(where: str, value: Any) -> str:
  if isinstance(value, list | tuple | np.ndarray) and np.size(value):
    value = value[0]  # (recording, start, end) in older collections.
  if isinstance(value, bytes):
    value = value.decode("utf-8", "replace")
  if not isinstance(value, str | int | np.integer):
    raise DataError(f"{where} is {value!r}, not a name.")
  return str(value).partition("$_$")[0]


def _bad_rows(part: Rows, modalities: Sequence[str], dtype: str) -> dict[int, str]:
  """What is wrong, by row."""
  bad: dict[int, str] = {}
  largest = float(np.finfo(dtype).max)

  def mark(rows: np.ndarray, what) -> None:
    for i in np.flatnonzero(rows).tolist():
      bad.setdefault(i, f"row {i}: {what(i)}")

  value = part["value"]
  outside = ~(np.abs(value) <= LIMIT + 1e-4)  # NaN, too.
  mark(outside, lambda i: f"label is {value[i]:g}, expected -{LIMIT:g}..{LIMIT:g}")
  for m in modalities:
    x = part[m]
    finite = np.isfinite(x).all(axis=(1, 2))
    mark(~finite, lambda _, m=m: f"{m} holds NaN or infinity")
    with np.errstate(invalid="ignore"):
      wide = np.abs(x).max(axis=(1, 2)) > largest
    mark(finite & wide, lambda _, m=m: f"{m} is too large for {dtype}")
  none = ~np.any([part[f"{m}_present"] for m in modalities], axis=0)
  mark(none, lambda _: "all modalities are zero throughout")
  return bad


def _oddities(title: str, part: Rows, modalities: Sequence[str]) -> list[str]:
  missing = {m: int((~part[f"{m}_present"]).sum()) for m in modalities}
  cut = {m: int(part[f"note_cut_{m}"].sum()) for m in modalities}
  silent = int(part.get("note_silent", np.zeros(0)).sum())
  return [
    *(f"{title}: {m} zero throughout, missing: {k}" for m, k in missing.items() if k),
    *(f"{title}: {m}_lengths beyond the array, cut: {k}" for m, k in cut.items() if k),
    *([f"{title}: audio has -inf, set to 0: {silent}"] if silent else []),
  ]


def _shared_videos(name: str, parts: Sequence[Rows]) -> list[str]:
  train = {*parts[0]["group"].tolist()}
  shared = [sum(g in train for g in part["group"].tolist()) for part in parts[1:]]
  return [
    f"{name} {split} clips of a recording that train has too: {count}"
    for split, count in zip(("val", "test"), shared, strict=True)
    if count
  ]


def combine(
  corpora: Mapping[str, Sequence[Rows]], modalities: Sequence[str]
) -> dict[str, np.ndarray] | None:
  """Arrays of the bring-your-own format with every corpus as a domain.

  Args:
    corpora: ``{name: one dict per split}`` from `read_corpus`.
    modalities: In the order that they get.

  Returns:
    The arrays; shorter sequences are padded with zeros. None without a row.

  Raises:
    DataError: Widths differ between the corpora.
  """
  names = [name for name in CORPORA if name in corpora]
  parts = [(d, part) for d, name in enumerate(names) for part in corpora[name]]
  if not any(len(part["value"]) for _, part in parts):
    return None
  for m in modalities:
    widths = sorted({(d, part[m].shape[2]) for d, part in parts})
    if len({w for _, w in widths}) > 1:
      listed = ", ".join(f"{w} in {names[d]}" for d, w in widths)
      raise DataError(
        f"{m} has different widths: {listed}. Domains need features of one extraction; "
        "--modalities names those to use."
      )
  arrays = {
    key: np.concatenate([part[key] for _, part in parts])
    for key in parts[0][1]
    if key not in modalities
  }
  for m in modalities:
    steps = max(part[m].shape[1] for _, part in parts)
    pad = lambda x, steps=steps: ((0, 0), (0, steps - x.shape[1]), (0, 0))
    arrays[m] = np.concatenate([np.pad(part[m], pad(part[m])) for _, part in parts])
  domain = np.repeat([d for d, _ in parts], [len(p["value"]) for _, p in parts])
  return arrays | {
    "modalities": np.array(modalities),
    "label": (arrays["value"] > 0).astype(np.int16),
    "class_names": np.array(CLASSES),
    "domain": domain.astype(np.int16),
    "domain_names": np.array(names),
  }


def main(argv: Sequence[str] | None = None) -> None:
  """Command line; see the top of this file."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
  parser.add_argument(
    "--set", required=True, action="append", choices=tuple(CORPORA), dest="sets"
  )
  parser.add_argument(
    "--file", required=True, action="append", dest="files", help="one for each --set"
  )
  parser.add_argument(
    "--modalities", default=",".join(MODALITIES), help="default: %(default)s"
  )
  parser.add_argument("--dtype", default="float32", choices=DTYPES)
  add_arguments(parser)
  args = parser.parse_args(argv)
  try:
    modalities = _check(args)
    corpora, problems, notes = {}, [], []
    for name, file in zip(args.sets, args.files, strict=True):
      corpora[name], bad, odd = read_corpus(
        name, file, modalities=modalities, dtype=args.dtype
      )
      problems += bad
      notes += odd
    finish(
      combine(corpora, modalities),
      problems,
      f"sentiment from {', '.join(args.files)}: {', '.join(modalities)}",
      notes,
      args=args,
      variant=f"classes=acc2,dtype={args.dtype}",
      expected={
        (name, split): rows
        for name in corpora
        for split, rows in zip(SPLITS.values(), CORPORA[name].rows, strict=True)
      },
    )
  except DataError as error:
    raise SystemExit(f"error: {error}") from None


def _check(args: argparse.Namespace) -> tuple[str, ...]:
  """The modalities; refuses what could only fail after the reading."""
  if len(args.sets) != len(args.files) or len(set(args.sets)) != len(args.sets):
    raise DataError("name every --set once, each with its --file.")
  if args.out and len(args.sets) < 2:
    raise DataError(
      "one set is one domain, and leave-one-domain-out needs two: name another --set "
      "with its --file, or leave out --out to check only."
    )
  modalities = tuple(args.modalities.split(","))
  wrong = [m for m in modalities if m not in MODALITIES]
  if wrong or len(set(modalities)) != len(modalities):
    raise DataError(f"--modalities={args.modalities} must be out of {MODALITIES}.")
  return modalities


if __name__ == "__main__":
  main()
