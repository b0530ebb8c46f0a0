"""Spoken digits + handwritten digits: two modalities, three domains, raw material."""

from __future__ import annotations

import csv
import os
import pathlib

import numpy as np

from mer_dg.data.archive import read_arrays
from mer_dg.data.dataset import ArrayDataset, DataError, make_dataset
from mer_dg.data.logmel import framed_waveform, log_mel, resample_time

DOMAINS = ("mnist", "optdigits", "semeion")
AUDIO = ("logmel", "logmel_resampled", "waveform")

# Frames of "logmel_resampled": 400 ms, the median clip, at the usual 20 ms.
RESAMPLED_STEPS = 20
ENVIRONMENT = "MER_DG_DATA"

_HOW_TO_GET = (
  f"Give the folder (config.data.path), or set {ENVIRONMENT} to it; `python -m "
  "data_prep.av_digits --out=av_digits.npz` builds such a set from public downloads, "
  "for configs/features.py."
)


def data_root(path: str | os.PathLike | None = None) -> pathlib.Path:
  """Folder of the prepared data sets.

  Args:
    path: The folder if it is known. None or "" looks at the environment variable
      ``MER_DG_DATA``, then at ``../shared/data`` beside the working directory.

  Returns:
    An existing folder.

  Raises:
    DataError: If what was named is not a folder, or nothing was found; the message
      tells how to get the data.

  Example:
    >>> data_root(pathlib.Path.cwd()) == pathlib.Path.cwd()
    True
  """
  named = {"path": path, ENVIRONMENT: os.environ.get(ENVIRONMENT)}
  for what, value in named.items():
    if value:
      folder = pathlib.Path(value).expanduser()
      if not folder.is_dir():
        raise DataError(f"{what}={str(value)!r} is not a folder. {_HOW_TO_GET}")
      return folder
  beside = pathlib.Path.cwd().parent / "shared" / "data"
  if not beside.is_dir():
    raise DataError(f"No data folder: {beside} does not exist. {_HOW_TO_GET}")
  return beside


def load_av_digits(
  root: str | os.PathLike | None = None, *, audio: str = "logmel"
) -> ArrayDataset:
  """Pairs of a spoken and a handwritten digit from three domains.

  Speech is the Free Spoken Digit Dataset (8 kHz), images come from MNIST, optdigits
  and Semeion (16 x 16, uint8). A domain is two speakers with one source of images,
  named after the images. Both modalities are real, the pairs are made: within a
  class and a domain they are matched at random.

  Args:
    root: Folder with ``fsdd.npz``, ``digit_images.npz`` and ``avdigits_pairs.csv``;
      by default `data_root` finds it.
    audio: "logmel": ``[N, 64, 40]`` spectrograms by `logmel.log_mel`, or "waveform":
      ``[N, 64, 160]`` samples by `logmel.framed_waveform`. Both are float16, padded
      sequences of 20 ms steps; what exceeds 1.28 s (0.1 % of the clips) is cut.
      "logmel_resampled": the spectrograms stretched to ``[N, 20, 40]`` by
      `logmel.resample_time`, for encoders that look at fixed places.

  Returns:
    3000 rows with modalities "audio" and "image", 10 classes, domains `DOMAINS`.

  Raises:
    DataError: No data, or damaged data; ``audio`` not one of `AUDIO`.
  """
  if audio not in AUDIO:
    raise DataError(f"av_digits: audio={audio!r} is not one of {AUDIO}.")
  folder = data_root(root)
  speech = _arrays(
    folder / "fsdd.npz", ("audio", "audio_offset", "sample_rate", "label")
  )
  digits = _arrays(folder / "digit_images.npz", ("image", "label"))
  pairs = _pairs(folder / "avdigits_pairs.csv", speech["label"], digits["label"])
  offset = speech["audio_offset"]
  clip = pairs["audio_index"]
  features = framed_waveform if audio == "waveform" else log_mel
  sequence, length = features(
    speech["audio"],
    offset[clip],
    (offset[1:] - offset[:-1])[clip],
    sample_rate=int(speech["sample_rate"]),
  )
  lengths = {"audio": length}
  if audio == "logmel_resampled":
    sequence, lengths = resample_time(sequence, length, RESAMPLED_STEPS), {}
  return make_dataset(
    name="av_digits",
    inputs={"audio": sequence, "image": digits["image"][pairs["image_index"]]},
    kinds={"audio": "sequence", "image": "image"},
    lengths=lengths,
    label=pairs["label"],
    domain=pairs["domain"],
    class_names=[str(k) for k in range(10)],
    domain_names=DOMAINS,
  )


def _arrays(path: pathlib.Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
  if not path.is_file():
    raise DataError(f"{path}: no such file. {_HOW_TO_GET}")
  return read_arrays(path, keys)


def _pairs(path: pathlib.Path, spoken: np.ndarray, written: np.ndarray):
  """int columns of the table of pairs, checked against both sets of labels."""
  keys = ("domain", "label", "audio_index", "image_index")
  if not path.is_file():
    raise DataError(f"{path}: no such file. {_HOW_TO_GET}")
  with path.open(newline="") as file:
    rows = list(csv.DictReader(file))
  try:
    table = {key: np.array([int(row[key]) for row in rows]) for key in keys}
  except (KeyError, TypeError, ValueError) as e:
    raise DataError(f"{path}: needs the integer columns {keys} ({e!r}).") from e
  for key, labels in (("audio_index", spoken), ("image_index", written)):
    index = table[key]
    inside = (index >= 0) & (index < len(labels))
    agrees = labels[np.where(inside, index, 0)] == table["label"]
    bad = np.flatnonzero(~(inside & agrees))
    if bad.size:
      raise DataError(
        f"{path}: row {bad[0]} has {key} {index[bad[0]]}, which is not a "
        f"{table['label'][bad[0]]} there."
      )
  return table
