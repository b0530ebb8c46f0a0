r"""Checks a downloaded EPIC-Kitchens or HAC and writes the list of its clips.

  python -m data_prep.audit --set=epic --root=EPIC-KITCHENS
  python -m data_prep.audit --set=hac --root=HAC --modalities=video,audio

The root is the folder of the published layout (docs/video_data.md). The numbers of
clips per domain, split and class are compared with the published ones, clips that
stand in a train and a test list are counted, and the files of every clip are looked
at. When something is off the exit status is 1 and nothing is written;
``--on_error=skip`` lists it, leaves the unusable clips out and goes on. A clip whose
sound alone is missing is kept, with the sound track of its video or without sound.
``--decode`` decodes every frame, which alone finds what is damaged in the middle.

The list goes to ``<root>/clips.json`` (or ``--out``) and is what training reads.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
import os
import pathlib

from data_prep.video_scan import (
  ON_ERROR,
  Problem,
  problem_lines,
  scan,
  with_modalities,
)
from data_prep.video_splits import (
  PUBLISHED,
  PUBLISHED_REPEATS,
  SETS,
  listed_twice,
  read_splits,
  repeats,
  without_repeats,
)
from mer_dg.data.dataset import DataError
from mer_dg.data.video.sources import TABLE_FILE
from mer_dg.data.video.table import MODALITIES, SPLITS, ClipTable


def audit(
  name: str,
  root: str | os.PathLike,
  *,
  modalities: Sequence[str] = MODALITIES,
  layout: str = "auto",
  dedup: bool = True,
  decode: bool = False,
  workers: int = 1,
  progress: bool = False,
) -> tuple[ClipTable, list[Problem], str, bool]:
  """Looks at lists and files of a set.

  Args:
    name: "epic" or "hac".
    root: Folder of the published layout.
    modalities: Which files to look for.
    layout: As for `read_splits`.
    dedup: Leave out of the test list what the train list has too.
    decode: Decode every frame.
    workers: Threads.
    progress: Write progress to stderr.

  Returns:
    The usable clips, the problems found, a report to print, and whether all is as
    published.

  Raises:
    DataError: A list cannot be read.
  """
  listed = read_splits(name, root, layout=layout, dedup=False)
  twice, both = listed_twice(listed.clips), repeats(listed.clips)
  kept = without_repeats(listed.clips) if dedup else listed.clips
  table = ClipTable(name, tuple(kept), listed.class_names, listed.domain_names, dedup)
  table, problems = scan(
    with_modalities(table, modalities),
    root,
    workers=workers,
    decode=decode,
    progress=progress,
  )
  counts = _counts(listed)
  as_listed = counts == PUBLISHED[name] and len(both) == PUBLISHED_REPEATS[name]
  lines = [
    f"{name} in {root}: {', '.join(modalities)}; dedup {'on' if dedup else 'off'}",
    "",
    *_count_lines(listed, table),
    "",
    f"in a test list and in the train list of its domain: {len(both)} "
    f"(published: {PUBLISHED_REPEATS[name]}), "
    f"{'left out of the test list' if dedup else 'kept in both'}",
    f"test clips of a recording that the train list has too: {_shared(listed)}",
    f"listed twice in one list, kept: {len(twice)}",
    *(f"  {a.where} and {b.where}, classes {a.label} and {b.label}" for a, b in twice),
    *problem_lines("unusable", [p for p in problems if not p.kept]),
    *problem_lines("kept, but the sound", [p for p in problems if p.kept]),
    *([] if decode else ["frames were not decoded (--decode)"]),
  ]
  return table, problems, "\n".join(lines), as_listed and not problems


def _counts(table: ClipTable) -> dict[tuple[str, str], tuple[int, ...]]:
  """Clips per class, by domain and split."""
  found = Counter((c.domain, c.split, c.label) for c in table.clips)
  return {
    (domain, split): tuple(found[d, split, k] for k in range(len(table.class_names)))
    for d, domain in enumerate(table.domain_names)
    for split in SPLITS
  }


def _count_lines(listed: ClipTable, usable: ClipTable) -> list[str]:
  """A table of what was published, is listed and can be used."""
  rows = [("domain", "split", "published", "listed", "usable", "per class")]
  there, left = _counts(listed), _counts(usable)
  for key, published in PUBLISHED[listed.name].items():
    per_class = " ".join(map(str, there[key]))
    if there[key] != published:
      per_class += f"   published: {' '.join(map(str, published))}"
    totals = (sum(published), sum(there[key]), sum(left[key]))
    rows.append((*key, *map(str, totals), per_class))
  widths = [max(len(row[i]) for row in rows) for i in range(5)]
  sides = ("<", "<", ">", ">", ">")
  return [
    "  ".join(
      [f"{cell:{s}{w}}" for cell, s, w in zip(row, sides, widths, strict=False)]
      + [row[5]]
    )
    for row in rows
  ]


def _shared(table: ClipTable) -> int:
  training = {(c.domain, c.source) for c in table.clips if c.split == "train"}
  test = [c for c in table.clips if c.split == "test"]
  return sum((c.domain, c.source) in training for c in test)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The options that audit and preparation share."""
  parser.add_argument("--set", required=True, choices=SETS, dest="name")
  parser.add_argument("--root", required=True, help="folder of the published layout")
  parser.add_argument(
    "--modalities", default=",".join(MODALITIES), help="default: %(default)s"
  )
  parser.add_argument(
    "--layout",
    default="auto",
    choices=("auto", "frames", "mp4"),
    help="of epic: JPEG frames per recording, or one video per clip",
  )
  parser.add_argument(
    "--no_dedup",
    action="store_true",
    help="keep test clips that the train list has too, as the published numbers do",
  )
  parser.add_argument("--on_error", default="stop", choices=ON_ERROR)
  parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)


def main(argv: Sequence[str] | None = None) -> None:
  """Command line; see the top of this file."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
  add_arguments(parser)
  parser.add_argument("--decode", action="store_true", help="decode every frame")
  parser.add_argument("--out", help=f"list of clips to write; <root>/{TABLE_FILE}")
  args = parser.parse_args(argv)
  try:
    table, _, report, good = audit(
      args.name,
      args.root,
      modalities=args.modalities.split(","),
      layout=args.layout,
      dedup=not args.no_dedup,
      decode=args.decode,
      workers=args.workers,
      progress=True,
    )
  except DataError as error:
    raise SystemExit(f"error: {error}") from None
  print(report)
  if not good and args.on_error == "stop":
    raise SystemExit("error: not as published; --on_error=skip goes on without it.")
  if not table.clips:
    raise SystemExit("error: no clip is usable.")
  out = pathlib.Path(args.out or pathlib.Path(args.root) / TABLE_FILE).expanduser()
  table.save(out)
  print(f"{len(table)} clips, version {table.version}: {out}")


if __name__ == "__main__":
  main()
