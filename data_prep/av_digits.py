r"""Builds spoken + written digits from public downloads, as one ``.npz``.

  git clone https://github.com/Jakobovski/free-spoken-digit-dataset
  python -m data_prep.av_digits --out=av_digits.npz \
      --fsdd=free-spoken-digit-dataset/recordings [--semeion=semeion.data]
  python main.py --config=configs/features.py --config.data.path=av_digits.npz

MNIST comes from TFDS (a download of 12 MB; needs Pillow to decode), optdigits from
scikit-learn (nothing to download), speech from a clone of the Free Spoken Digit
Dataset, or without ``--fsdd`` from TFDS, whose ``spoken_digit`` is version 1.0.9 with
five speakers and needs TensorFlow and pydub. Semeion is in neither: get
``semeion.data`` from the UCI repository (dataset 178).

Domains: with all six speakers and Semeion they are the three of
`mer_dg.data.av_digits` (two speakers and one source of images each; the random pairs
within a class differ). Otherwise every speaker is a domain of its own, and the sources
of images take turns: george/mnist, jackson/optdigits, lucas/mnist, ...

There is also a TFDS builder, `AvDigits`, over a folder that holds the prepared
``fsdd.npz``, ``digit_images.npz`` and ``avdigits_pairs.csv``; it needs no TensorFlow.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
import pathlib
from typing import Any, NamedTuple
import wave

import numpy as np
import tensorflow_datasets as tfds

from mer_dg.data.av_digits import load_av_digits
from mer_dg.data.dataset import DataError
from mer_dg.data.logmel import log_mel
from mer_dg.data.npz import save_npz

SAMPLE_RATE = 8000
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")

# The domains of mer_dg.data.av_digits: name (of the images) -> speakers.
THREE_DOMAINS = {
  "mnist": ("george", "jackson"),
  "optdigits": ("lucas", "nicolas"),
  "semeion": ("theo", "yweweler"),
}


class Domain(NamedTuple):
  """Who speaks and where the images come from."""

  name: str
  speakers: tuple[str, ...]
  source: str


class Speech(NamedTuple):
  """Recordings: int16 ``[samples]`` each, label, speaker and name."""

  clips: list[np.ndarray]
  label: np.ndarray
  speaker: np.ndarray
  name: list[str]


class Images(NamedTuple):
  """uint8 ``[N, 16, 16]`` and labels of one source."""

  image: np.ndarray
  label: np.ndarray


# --- raw material --------------------------------------------------------------------


def speech_from_wavs(folder: str | pathlib.Path) -> Speech:
  """Reads ``<digit>_<speaker>_<take>.wav`` files, sorted by name.

  Raises:
    DataError: No such files, or one that is not mono 16-bit PCM at 8 kHz.
  """
  paths = sorted(pathlib.Path(folder).expanduser().glob("*_*_*.wav"))
  if not paths:
    raise DataError(f"{folder}: no files <digit>_<speaker>_<take>.wav.")
  return _speech((path.stem, _read_wav(path)) for path in paths)


def _read_wav(path: pathlib.Path) -> np.ndarray:
  try:
    with wave.open(str(path), "rb") as file:
      form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
      data = file.readframes(file.getnframes())
  except (wave.Error, EOFError) as error:
    raise DataError(f"{path}: not a wav file ({error}).") from error
  if form != (1, 2, SAMPLE_RATE):
    raise DataError(
      f"{path}: (channels, bytes, rate) is {form}, expected {(1, 2, SAMPLE_RATE)}."
    )
  return np.frombuffer(data, "<i2").astype(np.int16)


def speech_from_tfds(elements: Iterable[Mapping[str, Any]]) -> Speech:
  """Recordings from the elements of TFDS's ``spoken_digit``, sorted by name."""
  named = {}
  for element in elements:
    name = element["audio/filename"]
    name = name.decode() if isinstance(name, bytes) else str(name)
    named[pathlib.PurePath(name).stem] = np.asarray(element["audio"]).reshape(-1)
  return _speech((name, named[name]) for name in sorted(named))


def _speech(named: Iterable[tuple[str, np.ndarray]]) -> Speech:
  clips, labels, speakers, names = [], [], [], []
  for name, clip in named:
    digit, _, rest = name.partition("_")
    speaker = rest.rpartition("_")[0]
    if digit not in set("0123456789") or not speaker or not len(clip):
      raise DataError(f"{name}: expected samples named <digit>_<speaker>_<take>.")
    clips.append(clip)
    labels.append(int(digit))
    speakers.append(speaker)
    names.append(name)
  return Speech(clips, np.array(labels), np.array(speakers), names)


def mnist_images(elements: Iterable[Mapping[str, Any]]) -> Images:
  """16 x 16 images from the elements of TFDS's ``mnist``: central 20 x 20, resized."""
  pairs = [(np.asarray(e["image"]).reshape(28, 28), int(e["label"])) for e in elements]
  image = np.stack([image for image, _ in pairs])[:, 4:24, 4:24]
  return Images(resize(image, 16), np.array([label for _, label in pairs]))


def optdigits_images() -> Images:
  """16 x 16 images from scikit-learn's copy of optdigits (8 x 8, values 0..16)."""
  from sklearn import datasets

  data = datasets.load_digits()
  return Images(resize(data.images * (255.0 / 16.0), 16), np.asarray(data.target))


def semeion_images(path: str | pathlib.Path) -> Images:
  """16 x 16 images from ``semeion.data``: 256 pixels, then one column per digit.

  Raises:
    DataError: If the file is not such a table.
  """
  try:
    table = np.loadtxt(pathlib.Path(path).expanduser(), ndmin=2)
  except (OSError, ValueError) as error:
    raise DataError(f"{path}: cannot be read ({error}).") from error
  if table.shape[1] < 266 or not (table[:, 256:266].sum(axis=1) == 1).all():
    raise DataError(f"{path}: expected 256 pixels and ten columns 0/1, one of them 1.")
  image = (table[:, :256].reshape(-1, 16, 16) * 255).astype(np.uint8)
  return Images(image, table[:, 256:266].argmax(axis=1))


def resize(image: np.ndarray, size: int) -> np.ndarray:
  """Bilinear resizing that maps corner pixels onto corner pixels.

  Args:
    image: ``[N, S, S]``, values 0..255.
    size: New height and width.

  Returns:
    uint8 ``[N, size, size]``.

  Example:
    >>> resize(np.array([[[0, 100], [100, 200]]]), 3)[0].tolist()
    [[0, 50, 100], [50, 100, 150], [100, 150, 200]]
  """
  old = image.shape[-1]
  at = np.linspace(0, old - 1, size)
  weight = np.maximum(1 - np.abs(at[:, None] - np.arange(old)[None, :]), 0)
  resized = np.einsum("ai,nij,bj->nab", weight, image.astype(np.float64), weight)
  return np.rint(resized).astype(np.uint8)


# --- pairs ---------------------------------------------------------------------------


def plan_domains(speakers: Sequence[str], sources: Sequence[str]) -> list[Domain]:
  """Domains from the speakers and sources of images at hand.

  Example:
    >>> [d.name for d in plan_domains(("ann", "bob", "cy"), ("mnist", "optdigits"))]
    ['ann', 'bob', 'cy']
    >>> plan_domains(SPEAKERS, tuple(THREE_DOMAINS))[2]
    Domain(name='semeion', speakers=('theo', 'yweweler'), source='semeion')
  """
  if set(SPEAKERS) <= set(speakers) and set(THREE_DOMAINS) <= set(sources):
    return [Domain(source, names, source) for source, names in THREE_DOMAINS.items()]
  return [
    Domain(speaker, (speaker,), sources[i % len(sources)])
    for i, speaker in enumerate(sorted(speakers))
  ]


def pair(
  speech: Speech, images: Mapping[str, Images], *, seed: int
) -> dict[str, np.ndarray]:
  """Pairs recordings and images at random within class and domain.

  Every recording and every image is used at most once; what has no partner is left
  out, as are recordings beyond 100 per class and domain.

  Args:
    speech: The recordings.
    images: ``{source: images}``.
    seed: Seed of the pairs.

  Returns:
    Arrays of the bring-your-own format, for `save_npz`.
  """
  rng = np.random.default_rng(seed)
  domains = plan_domains(sorted(set(speech.speaker.tolist())), tuple(images))
  free = {
    (source, k): list(rng.permutation(np.flatnonzero(made.label == k)))
    for source, made in images.items()
    for k in range(10)
  }
  rows = []  # (domain, class, recording, image)
  for d, domain in enumerate(domains):
    mine = np.isin(speech.speaker, domain.speakers)
    for k in range(10):
      spoken = rng.permutation(np.flatnonzero(mine & (speech.label == k)))[:100]
      written = free[domain.source, k]
      for recording in spoken[: len(written)]:
        rows.append((d, k, recording, written.pop()))
  domain, label, recording, written = np.array(rows).T
  clips = [speech.clips[r] for r in recording]
  length = np.array([len(c) for c in clips])
  audio, frames = log_mel(
    np.concatenate(clips), np.cumsum(length) - length, length, sample_rate=SAMPLE_RATE
  )
  source = [domains[d].source for d in domain]
  return {
    "modalities": np.array(["audio", "image"]),
    "audio": audio,
    "audio_len": frames,
    "image": np.stack(
      [images[s].image[w] for s, w in zip(source, written, strict=True)]
    ),
    "label": label.astype(np.int16),
    "class_names": np.array([str(k) for k in range(10)]),
    "domain": domain.astype(np.int16),
    "domain_names": np.array([d.name for d in domains]),
    "id": np.array(
      [
        f"{speech.name[r]}+{s}_{w}"
        for r, s, w in zip(recording, source, written, strict=True)
      ]
    ),
  }


# --- TFDS ----------------------------------------------------------------------------


class AvDigits(tfds.core.GeneratorBasedBuilder):
  """`mer_dg.data.av_digits` on disk, one split per domain; no TensorFlow needed.

  ``tfds.builder("av_digits", data_dir=..., file_format="array_record")`` after this
  module has been imported; `read_row` makes its elements rows for
  `mer_dg.data.stream.stream_batches`.
  """

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put fsdd.npz, digit_images.npz and avdigits_pairs.csv there (docs/data.md)."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      "audio": tfds.features.Tensor(shape=(64, 40), dtype=np.float16),
      "audio_len": np.int32,
      "image": tfds.features.Tensor(shape=(16, 16, 1), dtype=np.uint8),
      "label": tfds.features.ClassLabel(num_classes=10),
      "index": np.int32,
    }
    # Not dataset_info_from_configs: that needs files beside an importable package.
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    dataset = load_av_digits(dl_manager.manual_dir)
    return {name: self._generate_examples(dataset, name) for name in THREE_DOMAINS}

  def _generate_examples(self, dataset, name):
    for row in np.flatnonzero(dataset.domain == dataset.domain_id(name)):
      yield (
        int(row),
        {
          "audio": dataset.inputs["audio"][row],
          "audio_len": int(dataset.lengths["audio"][row]),
          "image": dataset.inputs["image"][row],
          "label": int(dataset.label[row]),
          "index": int(dataset.index[row]),
        },
      )


def read_row(element: Mapping[str, Any]) -> dict[str, Any]:
  """An element of `AvDigits` as a row of `mer_dg.data.stream.RowSource`."""
  audio = element["audio"]
  valid = (np.arange(len(audio)) < element["audio_len"]).astype(audio.dtype)
  return {
    "inputs": {
      "audio": np.concatenate([audio, valid[:, None]], axis=1),
      "image": element["image"],
    },
    "present": {"audio": True, "image": True},
    "label": element["label"],
    "index": element["index"],
  }


def tfds_source(name: str, split: str, data_dir: str | None, needs: str):
  """The data source of a TFDS set, downloaded if need be.

  Raises:
    DataError: If it cannot be built; ``needs`` says what it takes.
  """
  try:
    builder: Any = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return builder.as_data_source(split)
  except Exception as error:  # TFDS and requests raise a dozen kinds of them.
    message = " ".join(str(error).split())
    raise DataError(f"TFDS set {name!r} failed: {message} It needs {needs}.") from error


def main(argv: Sequence[str] | None = None) -> None:
  """Command line; see the top of this file."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
  parser.add_argument("--out", required=True, help=".npz to write")
  parser.add_argument("--fsdd", help="folder of FSDD's wav files; default: TFDS")
  parser.add_argument("--semeion", help="semeion.data of the UCI repository")
  parser.add_argument("--data_dir", help="where TFDS keeps its sets")
  parser.add_argument("--seed", type=int, default=0, help="seed of the pairs")
  args = parser.parse_args(argv)
  try:
    # What lies on this machine first: a wrong path should not wait for a download.
    images = {}
    if args.semeion:
      images["semeion"] = semeion_images(args.semeion)
    if args.fsdd:
      speech = speech_from_wavs(args.fsdd)
    else:
      needs = (
        "internet, and TensorFlow and pydub for its audio (pip install tensorflow-cpu "
        "pydub); --fsdd=FOLDER with FSDD's wav files needs neither"
      )
      source = tfds_source("spoken_digit", "train", args.data_dir, needs)
      speech = speech_from_tfds(source[i] for i in range(len(source)))
    needs = "internet for 12 MB, and Pillow (pip install Pillow)"
    mnist = tfds_source("mnist", "test", args.data_dir, needs)
    images |= {
      "mnist": mnist_images(mnist[i] for i in range(len(mnist))),
      "optdigits": optdigits_images(),
    }
    images = {name: images[name] for name in THREE_DOMAINS if name in images}
    arrays = pair(speech, images, seed=args.seed)
    save_npz(arrays, args.out)
  except DataError as error:
    raise SystemExit(f"error: {error}") from None
  count = np.bincount(arrays["domain"])
  for name, rows in zip(arrays["domain_names"], count, strict=True):
    print(f"{name}: {rows} pairs")


if __name__ == "__main__":
  main()
