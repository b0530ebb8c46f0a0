r"""One ``.npz`` in the bring-your-own format from tables: one or more csv files.

  python -m data_prep.from_csv --file=walks.csv --out=walks.npz \
      --label=activity --domain=subject --group=session
  python main.py --config=configs/features.py --config.data.path=walks.npz

Every row is a sample, unless rows are steps in time: with ``--sample=COLUMN`` the rows
of one value are one sample, with ``--window=N`` every N rows in a row are one
(``--step=N`` apart; within one domain, group and file). ``--time=COLUMN`` sorts them.

Columns belong to a modality by the word before the first ``_`` or ``.`` of their name,
or as ``--modality=NAME=PATTERN[,PATTERN]`` says (``*`` and ``?`` as in a shell; once
for each modality; columns that no pattern fits are left out and named). Columns of text
become one column per value. Where all numbers of a modality are missing in a row, the
modality is; where some are, ``--on_missing`` decides.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import fnmatch
import pathlib
import re
from typing import Any

import numpy as np
import pandas as pd

from mer_dg.data.dataset import DataError
from mer_dg.data.npz import RESERVED, save_npz

MOST_VALUES = 20  # Of a text column that becomes columns.
ON_MISSING = ("absent", "drop", "stop")


def group_columns(
  names: Sequence[str], patterns: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
  """Columns by modality.

  Args:
    names: Columns that are not label, domain, group, time or sample.
    patterns: ``{modality: shell patterns}``; empty groups by the word before the first
      ``_`` or ``.``.

  Returns:
    ``{modality: columns}`` in the order of the patterns, else of the columns.

  Raises:
    DataError: A pattern that fits no column, or a column that two modalities claim.

  Example:
    >>> group_columns(["acc_x", "acc_y", "temp"], {})
    {'acc': ['acc_x', 'acc_y'], 'temp': ['temp']}
    >>> group_columns(["acc_x", "acc_y", "temp"], {"all": ["acc_*", "t*"]})
    {'all': ['acc_x', 'acc_y', 'temp']}
  """
  groups: dict[str, list[str]] = {}
  if not patterns:
    for name in names:
      groups.setdefault(re.split("[_.]", name, maxsplit=1)[0] or name, []).append(name)
    return groups
  taken: dict[str, str] = {}
  for modality, words in patterns.items():
    for word in words:
      found = [n for n in names if fnmatch.fnmatchcase(n, word)]
      if not found:
        raise DataError(f"--modality={modality}: {word!r} fits none of {list(names)}.")
      for name in found:
        if taken.setdefault(name, modality) != modality:
          raise DataError(
            f"column {name!r} belongs to {taken[name]!r} and {modality!r}."
          )
        if name not in groups.setdefault(modality, []):
          groups[modality].append(name)
  return groups


def prepare(
  table: pd.DataFrame,
  *,
  label: str,
  domain: str,
  group: str = "",
  time: str = "",
  sample: str = "",
  window: int = 0,
  step: int = 0,
  patterns: Mapping[str, Sequence[str]] | None = None,
  on_missing: str = "absent",
) -> tuple[dict[str, Any], list[str]]:
  """Arrays of the bring-your-own format from a table.

  Args:
    table: One row per sample or step.
    label: Column of the class, text or integers.
    domain: Column of the domain.
    group: Column of what a random split must keep together.
    time: Column that orders the steps of a sample.
    sample: Column whose values tell samples apart; their rows are steps.
    window: Steps of a sample cut out of a recording; 0 cuts nothing.
    step: Rows between starts of windows; 0 is ``window``.
    patterns: As for `group_columns`.
    on_missing: Rows in which some numbers of a modality are missing: it is "absent"
      there, the row is "drop"ped, or "stop".

  Returns:
    The arrays, and lines on what was done.

  Raises:
    DataError: Columns that do not exist or cannot be read.

  Example:
    >>> table = pd.DataFrame({"a_x": [1.0, 2, 3, 4], "b_x": [0.5, 1, None, 2],
    ...                       "what": ["up", "down"] * 2, "who": ["p", "p", "q", "q"]})
    >>> arrays, lines = prepare(table, label="what", domain="who")
    >>> arrays["a"].shape, arrays["b_present"].tolist(), arrays["label"].tolist()
    ((4, 1), [True, True, False, True], [1, 0, 1, 0])
  """
  roles = {"label": label, "domain": domain, "group": group, "time": time}
  roles |= {"sample": sample}
  for role, column in roles.items():
    if column and column not in table.columns:
      raise DataError(
        f"--{role}={column!r} is no column; there are {[*table.columns]}."
      )
  if sample and window:
    raise DataError("--sample and --window are two ways to make samples; give one.")
  needed = [c for c in (label, domain, group, sample) if c]
  known = table[needed].notna().all(axis=1)
  lines = []
  if not known.all():
    lines.append(f"{(~known).sum()} rows without {' or '.join(needed)}: left out.")
    table = table[known]
  table = table.reset_index(drop=True)
  if time:
    table = table.sort_values(time, kind="stable")
  names = [c for c in table.columns if c not in roles.values() and c != _FILE]
  numbers, more = _as_numbers(table, names)
  lines += more
  groups = group_columns(list(names), patterns or {})
  used = {c for columns in groups.values() for c in columns}
  if unused := [c for c in names if c not in used]:
    lines.append(f"columns of no modality, left out: {unused}.")
  bad = [m for m in groups if m in RESERVED]
  if bad:
    raise DataError(f"{bad} cannot name modalities; use --modality=NAME=PATTERN.")
  rows = _samples(table, label, domain, group, sample, window, step or window)
  if not rows:
    raise DataError(f"no sample: {len(table)} rows make no window of {window}.")
  arrays: dict[str, Any] = {"modalities": np.array(list(groups))}
  keep = np.ones(len(rows), bool)
  stepped = bool(sample or window)
  for m, columns in groups.items():
    data = [numbers[column] for column in columns]
    if not any(part.shape[1] for part in data):
      raise DataError(f"no column of modality {m!r} can be read.")
    values = np.concatenate(data, axis=1)  # [rows of the table, C]
    x, length, present, partly = _stack(values, rows, stepped)
    if partly.any():
      what = f"{partly.sum()} samples lack some numbers of {m!r}"
      if on_missing == "stop":
        raise DataError(f"{what}, the first is number {np.flatnonzero(partly)[0]}.")
      lines.append(f"{what}: {'left out' if on_missing == 'drop' else 'absent there'}.")
      if on_missing == "drop":
        keep &= ~partly
      present &= ~partly
      x[partly] = 0
    arrays[m] = x
    if not present.all():
      arrays[f"{m}_present"] = present
    if stepped and (length != length[0]).any():
      arrays[f"{m}_len"] = length
    lines.append(f"{m}: {list(x.shape)} from {', '.join(columns)}")
  first = np.array([r[0] for r in rows])
  labels = [_commonest(table[label].to_numpy()[r]) for r in rows]
  class_names, position = np.unique(
    np.array([str(v) for v in labels]), return_inverse=True
  )
  arrays["label"] = position
  arrays["class_names"] = class_names
  arrays["domain"] = table[domain].astype(str).to_numpy(str)[first]
  if group:
    # Names of sessions may come again in another domain; a split asks within each.
    arrays["group"] = table[group].astype(str).to_numpy(str)[first]
  elif window:
    arrays["group"] = table.index.to_numpy()[first] // (10 * window)
    lines.append("no --group: stretches of ten windows are kept together.")
  for key in list(arrays):
    if not keep.all() and key not in ("modalities", "class_names"):
      arrays[key] = arrays[key][keep]
  return arrays, lines


_FILE = "__file__"  # Windows never cross files.


def _as_numbers(table: pd.DataFrame, names: Sequence[str]):
  """``{column: [rows, 1 or more]}``; text becomes one column per value."""
  numbers, lines = {}, []
  for name in names:
    column = table[name]
    if pd.api.types.is_numeric_dtype(column):
      numbers[name] = column.to_numpy(np.float64)[:, None]
      continue
    as_number = pd.to_numeric(column, errors="coerce")
    if as_number.notna().sum() >= 0.5 * column.notna().sum() > 0:
      lost = int(column.notna().sum() - as_number.notna().sum())
      if lost:
        lines.append(f"{name}: {lost} words among numbers are taken as missing.")
      numbers[name] = as_number.to_numpy(np.float64)[:, None]
      continue
    values = sorted(column.dropna().astype(str).unique())
    if not values or len(values) > MOST_VALUES:
      lines.append(f"{name}: text with {len(values)} values: left out.")
      numbers[name] = np.zeros((len(column), 0))
      continue
    hot = (column.astype(str).to_numpy()[:, None] == np.array(values)).astype(float)
    hot[column.isna().to_numpy()] = np.nan
    numbers[name] = hot
    lines.append(f"{name}: one column for each of {values}.")
  return numbers, lines


def _samples(table, label, domain, group, sample, window, step) -> list[np.ndarray]:
  """Row numbers of each sample."""
  if not sample and not window:
    return list(np.arange(len(table))[:, None])
  keys = [table[c].astype(str) for c in (domain, group, sample) if c]
  if _FILE in table.columns:
    keys.append(table[_FILE])
  place = pd.Series(np.arange(len(table)))
  parts = place.groupby([k.reset_index(drop=True) for k in keys], sort=False)
  rows = []
  for _, part in parts:
    part = part.to_numpy()
    if sample:
      rows.append(part)
      continue
    starts = range(0, len(part) - window + 1, step)
    rows += [part[s : s + window] for s in starts]
  return rows


def _stack(values: np.ndarray, rows: list[np.ndarray], stepped: bool):
  """Inputs, lengths, where the modality is there at all, and where only in part."""
  length = np.array([len(r) for r in rows])
  x = np.zeros((len(rows), length.max(), values.shape[1]), np.float32)
  present, partly = np.ones(len(rows), bool), np.zeros(len(rows), bool)
  for i, r in enumerate(rows):
    part = values[r]
    missing = ~np.isfinite(part)
    present[i] = not missing.all()
    if missing.any() and present[i] and stepped:
      # A gap in a series is bridged from its neighbours.
      part = pd.DataFrame(np.where(missing, np.nan, part))
      part = part.interpolate(limit_direction="both").to_numpy()
      missing = ~np.isfinite(part)
    partly[i] = present[i] and missing.any()
    x[i, : len(r)] = np.where(missing, 0, part)
  return (x if stepped else x[:, 0]), length, present, partly


def _commonest(values: np.ndarray) -> Any:
  names, counts = np.unique(values.astype(str), return_counts=True)
  return names[counts.argmax()]


def main(argv: Sequence[str] | None = None) -> None:
  """Command line; see the top of this file."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
  parser.add_argument("--file", action="append", required=True, help="csv; repeatable")
  parser.add_argument("--out", required=True, help=".npz to write")
  parser.add_argument("--label", required=True, help="column of the class")
  parser.add_argument("--domain", required=True, help="column of the domain, or 'file'")
  parser.add_argument("--group", default="", help="column of what stays together")
  parser.add_argument("--time", default="", help="column that orders rows")
  parser.add_argument("--sample", default="", help="column that tells samples apart")
  parser.add_argument("--window", type=int, default=0, help="rows of a window")
  parser.add_argument("--step", type=int, default=0, help="rows between windows")
  parser.add_argument(
    "--modality", action="append", default=[], metavar="NAME=PATTERNS"
  )
  parser.add_argument("--on_missing", default="absent", choices=ON_MISSING)
  parser.add_argument("--separator", default=None, help="default: found out")
  parser.add_argument("--decimal", default=".", help="decimal mark of the numbers")
  args = parser.parse_args(argv)
  try:
    patterns = {}
    for word in args.modality:
      name, equals, rest = word.partition("=")
      if not equals or not rest:
        raise DataError(f"--modality={word!r} must be NAME=PATTERN[,PATTERN].")
      patterns[name] = rest.split(",")
    tables = [_read(path, args.separator, args.decimal) for path in args.file]
    table = pd.concat(tables, ignore_index=True)
    domain = args.domain
    if domain == "file" and "file" not in table.columns:
      domain = _FILE
    arrays, lines = prepare(
      table, label=args.label, domain=domain, group=args.group, time=args.time,
      sample=args.sample, window=args.window, step=args.step, patterns=patterns,
      on_missing=args.on_missing,
    )  # fmt: skip
    save_npz(arrays, args.out)
  except DataError as error:
    raise SystemExit(f"error: {error}") from None
  print(*lines, f"{len(arrays['label'])} samples: {args.out}", sep="\n")


def _read(path: str, separator: str | None, decimal: str) -> pd.DataFrame:
  try:
    # sep=None finds the separator out, which only the Python engine can.
    engine = "python" if separator is None else "c"
    table = pd.read_csv(path, sep=separator, decimal=decimal, engine=engine)
  except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors.
    raise DataError(
      f"{path}: no readable table ({str(error).splitlines()[0]})."
    ) from error
  table.columns = [str(c).strip() for c in table.columns]
  table[_FILE] = pathlib.Path(path).stem
  return table


if __name__ == "__main__":
  main()
