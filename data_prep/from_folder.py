r"""One ``.npz`` in the bring-your-own format from folders of sounds, pictures, tables.

  ROOT/DOMAIN/CLASS/NAME.EXT          audio (wav), image (png, jpg), series (csv)
  ROOT/DOMAIN/CLASS/NAME.MODALITY.EXT more of one sample, under a name of its own

  python -m data_prep.from_folder --root=ROOT --out=set.npz
  python main.py --config=configs/features.py --config.data.path=set.npz

Files with one NAME (up to its first point) in one folder are one sample; without a
MODALITY it is called by the kind of file. What a sample lacks is missing there. Sounds
become mono at one rate, pictures one size, tables the same columns.

``--group=REGEX`` keeps together what its first parenthesis finds in NAME, for example
``--group='(.*)_\d+'`` the takes of one recording.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import math
import pathlib
import re
import struct
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import scipy.io.wavfile
import scipy.signal

from mer_dg.data.dataset import DataError
from mer_dg.data.npz import RESERVED, save_npz

# Kind of file by the end of its name.
KINDS = {".wav": "audio", ".csv": "series"} | dict.fromkeys(
  (".png", ".jpg", ".jpeg", ".bmp"), "image"
)
Key = tuple[str, str, str]  # domain, class, name


def find_samples(root: pathlib.Path) -> dict[str, dict[Key, pathlib.Path]]:
  """``{modality: {(domain, class, name): file}}``; what is no such file is ignored.

  Raises:
    DataError: No folder, no file in the layout, or two files for one place.
  """
  if not root.is_dir():
    raise DataError(f"{root}: no such folder.")
  found: dict[str, dict[Key, pathlib.Path]] = {}
  for path in sorted(root.glob("*/*/*")):
    kind = KINDS.get(path.suffix.lower())
    if kind is None or not path.is_file() or path.name.startswith("."):
      continue
    name, _, modality = path.stem.partition(".")
    key = (path.parent.parent.name, path.parent.name, name)
    files = found.setdefault(modality or kind, {})
    if key in files:
      raise DataError(f"{path} and {files[key].name} are both {modality or kind!r}.")
    files[key] = path
  if not found:
    raise DataError(f"{root}: no ROOT/DOMAIN/CLASS/NAME with {', '.join(KINDS)}.")
  bad = [m for m in found if m in RESERVED]
  if bad:
    raise DataError(f"{bad} cannot name modalities; rename these files.")
  return found


def prepare(
  root: str | pathlib.Path,
  *,
  rate: int = 16_000,
  seconds: float = 0.0,
  side: int = 32,
  group: str = "",
) -> tuple[dict[str, Any], list[str]]:
  """Arrays of the bring-your-own format from a folder.

  Args:
    root: The folder.
    rate: Samples per second that sounds get; lower ones stay as they are when all are
      of one rate.
    seconds: Of a sound that are kept; 0 keeps all.
    side: Height and width of pictures.
    group: Regular expression with one parenthesis, searched in the name.

  Returns:
    The arrays, and lines on what was found.

  Raises:
    DataError: Files that cannot be read or do not fit each other; names the file.
  """
  found = find_samples(pathlib.Path(root))
  keys = sorted({key for files in found.values() for key in files})
  arrays: dict[str, Any] = {"modalities": np.array(list(found))}
  lines = []
  for m, files in found.items():
    kinds = {KINDS[path.suffix.lower()] for path in files.values()}
    if len(kinds) > 1:
      raise DataError(f"modality {m!r} has files of {sorted(kinds)}; name them apart.")
    kind = kinds.pop()
    paths = [files.get(key) for key in keys]
    if kind == "audio":
      made = _sounds(m, paths, rate, seconds)
    elif kind == "image":
      made = _pictures(m, paths, side)
    else:
      made = _tables(m, paths)
    arrays |= made
    if len(files) < len(keys):
      arrays[f"{m}_present"] = np.array([p is not None for p in paths])
    lines.append(f"{m}: {len(files)} of {len(keys)} samples, {list(made[m].shape)}")
  classes = sorted({key[1] for key in keys})
  arrays["class_names"] = np.array(classes)
  arrays["label"] = np.array([classes.index(key[1]) for key in keys])
  arrays["domain"] = np.array([key[0] for key in keys])
  arrays["id"] = np.array(["/".join(key) for key in keys])
  if group:
    arrays["group"] = np.array([_group_of(key, group) for key in keys])
  return arrays, lines


def _group_of(key: Key, pattern: str) -> str:
  try:
    match = re.search(pattern, key[2])
  except re.error as error:
    raise DataError(
      f"--group={pattern!r} is no regular expression: {error}."
    ) from error
  if not match or not match.groups():
    raise DataError(f"--group={pattern!r} finds no parenthesis in {key[2]!r}.")
  return match[1]


def _sounds(m: str, paths, rate: int, seconds: float) -> dict[str, Any]:
  clips: list[tuple[int, np.ndarray] | None] = []
  for path in paths:
    if path is None:
      clips.append(None)
      continue
    try:
      own, x = scipy.io.wavfile.read(path)
    except (ValueError, OSError, EOFError, struct.error) as error:
      raise DataError(f"{path}: no readable wav file ({error}).") from error
    if not len(x):
      raise DataError(f"{path}: no samples.")
    x = _full_scale(x)
    clips.append((own, x.mean(axis=1) if x.ndim == 2 else x))
  there = [clip for clip in clips if clip is not None]
  rates = {own for own, _ in there}
  rate = rates.pop() if len(rates) == 1 and max(rates) <= rate else rate
  waves = []
  for clip in clips:
    if clip is None:
      waves.append(np.zeros(1, np.float32))
      continue
    own, x = clip
    if own != rate:
      common = math.gcd(own, rate)
      x = scipy.signal.resample_poly(x, rate // common, own // common)
    waves.append(x[: round(seconds * rate) or None])
  x, length = _padded([wave[:, None] for wave in waves])
  made = {m: x[:, :, 0].astype(np.float16), f"{m}_kind": np.array("waveform")}
  return made | {f"{m}_rate": np.array(rate), f"{m}_len": length}


def _full_scale(x: np.ndarray) -> np.ndarray:
  """Samples of a wav file as float32 in units of full scale."""
  if x.dtype == np.uint8:  # The one format without a sign.
    return (x.astype(np.float32) - 128) / 128
  scale = 1 if x.dtype.kind == "f" else -float(np.iinfo(x.dtype).min)
  return x.astype(np.float32) / scale


def _pictures(m: str, paths, side: int) -> dict[str, Any]:
  pictures = []
  for path in paths:
    if path is None:
      pictures.append(None)
      continue
    try:
      with PIL.Image.open(path) as picture:
        grey = picture.mode in ("1", "L", "I;16", "I")
        x = picture.convert("L" if grey else "RGB").resize((side, side))
    except (OSError, ValueError) as error:
      raise DataError(f"{path}: no readable picture ({error}).") from error
    x = np.asarray(x)
    pictures.append(x[:, :, None] if grey else x)
  channels = max(p.shape[2] for p in pictures if p is not None)
  out = np.zeros((len(paths), side, side, channels), np.uint8)
  for i, p in enumerate(pictures):
    if p is not None:
      out[i] = p  # Grey ones among colours are repeated.
  return {m: out, f"{m}_kind": np.array("image")}


def _tables(m: str, paths) -> dict[str, Any]:
  tables, columns = [], None
  for path in paths:
    if path is None:
      tables.append(None)
      continue
    try:
      table = pd.read_csv(path)
      x = table.to_numpy(np.float32)
    except (OSError, ValueError) as error:
      raise DataError(f"{path}: no table of numbers ({error}).") from error
    if not len(x) or not np.isfinite(x).all():
      raise DataError(f"{path}: a table needs rows, and a number in every place.")
    columns = columns or (path, list(table.columns))
    if list(table.columns) != columns[1]:
      raise DataError(
        f"{path}: columns {list(table.columns)}, but {columns[0].name} has "
        f"{columns[1]}."
      )
    tables.append(x)
  width = next(t.shape[1] for t in tables if t is not None)
  empty = np.zeros((1, width), np.float32)
  x, length = _padded([empty if t is None else t for t in tables])
  if x.shape[1] == 1:
    return {m: x[:, 0], f"{m}_kind": np.array("vector")}
  return {m: x, f"{m}_kind": np.array("sequence"), f"{m}_len": length}


def _padded(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """``[N, T, C]`` with zeros behind each row, and the lengths."""
  length = np.array([len(r) for r in rows])
  out = np.zeros((len(rows), length.max(), rows[0].shape[1]), np.float32)
  for i, r in enumerate(rows):
    out[i, : len(r)] = r
  return out, length


def main(argv: Sequence[str] | None = None) -> None:
  """Command line; see the top of this file."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
  parser.add_argument("--root", required=True, help="folder of domains")
  parser.add_argument("--out", required=True, help=".npz to write")
  parser.add_argument("--rate", type=int, default=16_000, help="of sounds, in Hz")
  parser.add_argument("--seconds", type=float, default=0.0, help="kept of a sound")
  parser.add_argument("--side", type=int, default=32, help="of pictures, in pixels")
  parser.add_argument("--group", default="", help="regular expression on names")
  args = parser.parse_args(argv)
  try:
    if min(args.rate, args.side) < 1 or args.seconds < 0:
      raise DataError("--rate and --side must be above 0, --seconds not below.")
    arrays, lines = prepare(
      args.root, rate=args.rate, seconds=args.seconds, side=args.side, group=args.group
    )
    save_npz(arrays, args.out)
  except DataError as error:
    raise SystemExit(f"error: {error}") from None
  print(*lines, f"{len(arrays['label'])} samples: {args.out}", sep="\n")


if __name__ == "__main__":
  main()
