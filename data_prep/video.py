r"""Prepares EPIC-Kitchens or HAC: frames at a shorter side of 256, sound as PCM.

  python -m data_prep.video --set=hac --root=HAC --data_dir=DIR --estimate
  python -m data_prep.video --set=hac --root=HAC --data_dir=DIR

First the lists and files are looked at, as by `data_prep.audit`, and the disk space is
estimated from a few clips. Then shards are written by several threads; interrupted and
started again, it goes on with the shards that are missing. The result is a TFDS data
set in ArrayRecord files (``DIR/hac_video/1.0.0``), which needs no TensorFlow to read;
`mer_dg.data.video.sources.PreparedSource` opens it.

A damaged file stops it with the file and the row of the list; ``--on_error=skip`` lists
the clip and leaves it out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import dataclasses
import importlib
import json
import os
import pathlib
import shutil
import sys
from typing import Any, NamedTuple

from data_prep.audit import add_arguments, audit
from data_prep.video_builders import BUILDERS, VERSION, features
from data_prep.video_scan import Problem, run_parallel
from mer_dg.data.dataset import DataError
from mer_dg.data.video.files import JPEG_QUALITY
from mer_dg.data.video.sources import (
  TABLE_FILE,
  TreeSource,
  record_of,
  split_name,
  stored_keys,
)
from mer_dg.data.video.table import ClipTable
from mer_dg.files import write_atomic

CLIPS_PER_SHARD = 32
# Clips that the estimate is made of.
PROBES = 12
# ArrayRecord begins every record at a multiple of this.
BLOCK = 2**16
# Free space that has to be left over the estimate, as a share of it.
SPARE = 0.1


class Shard(NamedTuple):
  """Some rows of one split, and the file they go to."""

  split: str
  rows: tuple[int, ...]
  file: str


def plan_shards(table: ClipTable, name: str) -> list[Shard]:
  """Cuts each split into shards of up to 32 clips, in the order of the table."""
  by_split: dict[str, list[int]] = {}
  for row, clip in enumerate(table.clips):
    by_split.setdefault(split_name(table, clip), []).append(row)
  shards = []
  for split, rows in by_split.items():
    count = -(-len(rows) // CLIPS_PER_SHARD)
    for i in range(count):
      part = rows[i * len(rows) // count : (i + 1) * len(rows) // count]
      file = f"{name}-{split}.array_record-{i:05d}-of-{count:05d}"
      shards.append(Shard(split, tuple(part), file))
  return shards


def estimate_bytes(source: TreeSource) -> int:
  """Size of the prepared set, from the records of a few clips.

  Bytes per frame (by modality) and per clip are averaged over the probes.
  """
  table = source.table
  step = max(len(table) // PROBES, 1)
  probes = range(step // 2, len(table), step)
  size, frames = {"video": 0, "flow": 0}, {"video": 0, "flow": 0}
  rest = 0
  for row in probes:
    try:
      record = record_of(table, row, source.open(row))
    except DataError:
      continue  # Whoever writes it will say so.
    for m in size:
      size[m] += sum(len(record[key]) for key in stored_keys(m))
      frames[m] += len(record[f"{stored_keys(m)[0]}_end"])
    rest += record["audio"].nbytes
  total = (rest / len(probes) + BLOCK / 2) * len(table)
  for m in size:
    shown = sum(f.shown for c in table.clips if (f := getattr(c, m)) is not None)
    total += size[m] / max(frames[m], 1) * shown
  return int(total)


def prepare(
  table: ClipTable,
  root: str | os.PathLike,
  data_dir: str | os.PathLike,
  *,
  workers: int = 1,
  on_error: str = "stop",
  progress: bool = False,
) -> tuple[pathlib.Path, list[Problem]]:
  """Writes the prepared set, or what is missing of it.

  Args:
    table: Usable clips, from `data_prep.audit.audit`.
    root: Folder that its paths start from.
    data_dir: Where TFDS keeps its sets.
    workers: Threads; each writes one shard.
    on_error: "stop", or "skip" to leave out clips whose files turn out damaged.
    progress: Write progress to stderr.

  Returns:
    The folder, and the clips left out.

  Raises:
    DataError: A damaged file; another set with this name is there, whole or begun.
  """
  name = BUILDERS[table.name].name
  home = pathlib.Path(data_dir).expanduser() / name
  final, begun = home / VERSION, home / f"incomplete.{VERSION}"
  plan = {"version": table.version, "jpeg_quality": JPEG_QUALITY}
  if final.exists():
    if _plan_of(final) == plan:
      return final, []
    raise DataError(f"{final}: another set is there; remove it or take another place.")
  begun.mkdir(parents=True, exist_ok=True)
  if _plan_of(begun) not in (None, plan):
    raise DataError(
      f"{begun}: begun with another list of clips; remove it to start afresh."
    )
  for stale in begun.glob(".*.tmp"):  # Of a process that was killed.
    stale.unlink()
  write_atomic(begun / "plan.json", json.dumps(plan))
  shards = plan_shards(table, name)
  source = TreeSource(table, root)
  work = lambda shard: _write_shard(shard, source, begun, on_error)
  results = run_parallel(
    work, shards, workers=workers, title="shards" if progress else None
  )
  problems = [Problem(*p) for result in results for p in result["problems"]]
  gone = {p.clip for p in problems}
  kept = tuple(clip for clip in table.clips if clip.id not in gone)
  left = dataclasses.replace(table, clips=kept, skipped=(*table.skipped, *sorted(gone)))
  left.save(begun / TABLE_FILE)
  _write_metadata(begun, name, table.name, shards, results)
  for shard in shards:
    (begun / f"{shard.file}.json").unlink()
  os.replace(begun, final)
  return final, problems


def _plan_of(folder: pathlib.Path) -> Any:
  try:
    return json.loads((folder / "plan.json").read_text())
  except (OSError, ValueError):
    return None


def _write_shard(
  shard: Shard, source: TreeSource, folder: pathlib.Path, on_error: str
) -> dict[str, Any]:
  """One shard, unless it is there: ``{"records", "bytes", "problems"}``.

  What belongs to a finished shard is written after it, so that its presence says that
  both are whole.
  """
  import tensorflow_datasets as tfds

  # Compiled and without type stubs: an import statement would not pass the checker.
  array_record: Any = importlib.import_module("array_record.python.array_record_module")

  path, notes = folder / shard.file, folder / f"{shard.file}.json"
  if notes.is_file() and path.is_file():
    return json.loads(notes.read_text())
  form = features(source.table.name)
  serializer = tfds.core.example_serializer.ExampleSerializer(
    form.get_serialized_info()
  )
  result: dict[str, Any] = {"records": 0, "bytes": 0, "problems": []}
  temporary = folder / f".{shard.file}.{os.getpid()}.tmp"
  # One record per group: random access. JPEGs do not compress.
  writer = array_record.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
  try:
    for row in shard.rows:
      clip = source.table.clips[row]
      try:
        record = record_of(source.table, row, source.open(row))
      except DataError as error:
        problem = Problem(clip.id, clip.where, str(error).removesuffix("."))
        if on_error == "stop":
          raise DataError(f"{problem}.") from error
        result["problems"].append(problem)
        continue
      data = serializer.serialize_example(form.encode_example(record))
      writer.write(data)
      result["records"] += 1
      result["bytes"] += len(data)
    writer.close()
    os.replace(temporary, path)
    write_atomic(notes, json.dumps(result))
  finally:
    if writer.is_open():
      writer.close()
    temporary.unlink(missing_ok=True)
  return result


def _write_metadata(folder, name: str, set_name: str, shards, results) -> None:
  """What TFDS wants beside the shards."""
  import tensorflow_datasets as tfds

  lengths: dict[str, list[int]] = {}
  sizes: dict[str, int] = {}
  for shard, result in zip(shards, results, strict=True):
    lengths.setdefault(shard.split, []).append(result["records"])
    sizes[shard.split] = sizes.get(shard.split, 0) + result["bytes"]
  splits = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=counts,
      num_bytes=sizes[split],
      filename_template=tfds.core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=name,
        split=split,
        filetype_suffix="array_record",
      ),
    )
    for split, counts in lengths.items()
  ]
  tfds.folder_dataset.write_metadata(
    data_dir=str(folder),
    features=features(set_name),
    split_infos=splits,
    description="See docs/video_data.md of mer-dg.",
    check_data=False,
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Command line; see the top of this file."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
  add_arguments(parser)
  parser.add_argument("--data_dir", required=True, help="where TFDS keeps its sets")
  parser.add_argument("--estimate", action="store_true", help="estimate and stop")
  args = parser.parse_args(argv)
  try:
    table, _, report, good = audit(
      args.name,
      args.root,
      modalities=args.modalities.split(","),
      layout=args.layout,
      dedup=not args.no_dedup,
      workers=args.workers,
      progress=True,
    )
    print(report)
    if not good and args.on_error == "stop":
      raise DataError("not as published; --on_error=skip goes on without it.")
    if not table.clips:
      raise DataError("no clip is usable.")
    needed = estimate_bytes(TreeSource(table, args.root))
    free = _free_bytes(pathlib.Path(args.data_dir).expanduser(), args.name)
    print(f"estimate: {needed / 1e9:.2f} GB; free: {free / 1e9:.2f} GB")
    if args.estimate:
      return
    if free < needed * (1 + SPARE):
      raise DataError(f"{args.data_dir}: not enough space.")
    folder, problems = prepare(
      table,
      args.root,
      args.data_dir,
      workers=args.workers,
      on_error=args.on_error,
      progress=True,
    )
  except DataError as error:
    raise SystemExit(f"error: {error}") from None
  for problem in problems:
    print(f"left out: {problem}", file=sys.stderr)
  print(f"{len(table) - len(problems)} clips: {folder}")


def _free_bytes(data_dir: pathlib.Path, set_name: str) -> int:
  """Free space there, and what a set begun there takes already."""
  begun = data_dir / BUILDERS[set_name].name / f"incomplete.{VERSION}"
  written = sum(file.stat().st_size for file in begun.glob("*"))
  while not data_dir.exists():
    data_dir = data_dir.parent
  return shutil.disk_usage(data_dir).free + written


if __name__ == "__main__":
  main()
