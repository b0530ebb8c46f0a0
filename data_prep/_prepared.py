"""What preparation commands of in-memory sets share: an audit, repeats, the writing.

All of it works on the arrays of the bring-your-own format (docs/data.md).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
import hashlib
from typing import Any

import numpy as np

from data_prep.video_scan import ON_ERROR, Problem, problem_lines
from mer_dg.data.dataset import SPLITS
from mer_dg.data.npz import save_npz

Arrays = dict[str, np.ndarray]

# Keys that do not have one entry per row; nor does `<m>_kind`.
_OF_THE_FILE = ("modalities", "class_names", "domain_names", "variant", "preparation")


def take_rows(arrays: Mapping[str, np.ndarray], keep: np.ndarray) -> Arrays:
  """The arrays restricted to the rows ``keep``, a mask or numbers.

  Example:
    >>> arrays = {"modalities": np.array(["a"]), "a": np.arange(3), "label": np.ones(3)}
    >>> take_rows(arrays, np.array([True, False, True]))["a"]
    array([0, 2])
  """
  whole = lambda key: key in _OF_THE_FILE or key.endswith("_kind")
  return {key: a if whole(key) else a[keep] for key, a in arrays.items()}


def content_ids(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  """int64 ``[N]``: equal where the inputs of all modalities are equal bit for bit."""
  inputs = [np.ascontiguousarray(arrays[m]) for m in arrays["modalities"].tolist()]
  first: dict[bytes, int] = {}
  ids = np.empty(len(arrays["label"]), np.int64)
  for row in range(len(ids)):
    digest = hashlib.blake2b(digest_size=16)
    for x in inputs:
      digest.update(x[row].data)
    ids[row] = first.setdefault(digest.digest(), row)
  return ids


def repeats(ids: np.ndarray, split: np.ndarray) -> np.ndarray:
  """bool ``[N]``: rows whose inputs an earlier split has too, in whichever domain.

  Splits are train, val, test in this order, so that training rows are never repeats.

  Args:
    ids: From `content_ids`.
    split: Names.

  Example:
    >>> repeats(np.array([0, 0, 2]), np.array(["test", "train", "test"]))
    array([ True, False, False])
  """
  place = np.array([SPLITS.index(s) for s in split.tolist()])
  earliest = np.full(len(ids), len(SPLITS))
  np.minimum.at(earliest, ids, place)
  return earliest[ids] < place


def audit_lines(
  arrays: Mapping[str, np.ndarray],
  ids: np.ndarray,
  *,
  dedup: bool,
  expected: Mapping[tuple[str, str], int],
) -> list[str]:
  """Rows per domain, split and class, and rows that occur more than once.

  Args:
    arrays: All usable rows, repeats included.
    ids: From `content_ids`.
    dedup: Whether repeats will be left out.
    expected: ``{(domain, split): rows}``, what should be there.

  Returns:
    Lines to print.
  """
  gone = repeats(ids, arrays["split"])
  names, classes = arrays["domain_names"].tolist(), range(len(arrays["class_names"]))
  counts = Counter(
    zip(
      arrays["domain"].tolist(),
      arrays["split"].tolist(),
      arrays["label"].tolist(),
      strict=True,
    )
  )
  table = [("domain", "split", "expected", "usable", "per class")]
  for d, domain in enumerate(names):
    for split in SPLITS:
      per_class = [counts[d, split, k] for k in classes]
      due = expected.get((domain, split), "?")
      cells = (domain, split, due, sum(per_class), " ".join(map(str, per_class)))
      table.append(tuple(map(str, cells)))
  widths = [max(len(row[i]) for row in table) for i in range(4)]
  kept = ids[~gone]
  label = arrays["label"][~gone]
  other = int(np.sum(label != arrays["label"][kept]))
  again = len(kept) - len(np.unique(kept))
  return [
    f"classes: {', '.join(arrays['class_names'].tolist())}",
    *(
      f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {n:>{widths[3]}}  {rest}"
      for a, b, c, n, rest in table
    ),
    f"val and test rows that an earlier split has too: {gone.sum()}, "
    f"{'left out' if dedup else 'kept'}",
    f"other rows with the inputs of another row: {again}, {other} of them with another "
    "label; kept",
  ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The options of every such command."""
  parser.add_argument("--out", help=".npz to write; without it the set is checked only")
  parser.add_argument(
    "--no_dedup",
    action="store_true",
    help="keep val and test rows that an earlier split has too",
  )
  parser.add_argument("--on_error", default="stop", choices=ON_ERROR)


def finish(
  arrays: Arrays | None,
  problems: Sequence[Problem],
  title: str,
  notes: Sequence[str],
  *,
  args: argparse.Namespace,
  variant: str,
  expected: Mapping[tuple[str, str], int],
) -> None:
  """Prints the audit and writes the file, or stops.

  Args:
    arrays: The usable rows; None if there are none.
    problems: What is unusable.
    title: First line of the audit.
    notes: More lines of it.
    args: Parsed options of `add_arguments`.
    variant: Words on how the file is made; ``dedup`` is added.
    expected: As for `audit_lines`.

  Raises:
    SystemExit: Something is unusable and ``--on_error`` is "stop", or nothing is left.
    DataError: The arrays are not a valid set.
  """
  dedup = not args.no_dedup
  report = [f"{title}; dedup {'on' if dedup else 'off'}", ""]
  if arrays is not None:
    ids = content_ids(arrays)
    report += audit_lines(arrays, ids, dedup=dedup, expected=expected)
    if dedup:
      arrays = take_rows(arrays, ~repeats(ids, arrays["split"]))
  report += [*notes, *problem_lines("unusable", problems)]
  print("\n".join(report))
  if problems and args.on_error == "stop":
    raise SystemExit("error: not all is usable; --on_error=skip goes on without it.")
  if arrays is None:
    raise SystemExit("error: nothing is usable.")
  if not args.out:
    return
  made: dict[str, Any] = {
    "variant": f"{variant},dedup={'on' if dedup else 'off'}",
    "preparation": "\n".join(report),
  }
  save_npz(arrays | {key: np.array(text) for key, text in made.items()}, args.out)
  print(f"{len(arrays['label'])} rows: {args.out}")
