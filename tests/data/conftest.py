"""A made folder in the layout of the real digits: 30 clips, 60 images, 30 pairs."""

import csv

import numpy as np
import pytest

from mer_dg.data.av_digits import DOMAINS


@pytest.fixture
def write_pairs():
  """A function that writes the table of pairs into a folder."""

  def write(folder, rows):
    with (folder / "avdigits_pairs.csv").open("w", newline="") as file:
      writer = csv.DictWriter(file, rows[0])
      writer.writeheader()
      writer.writerows(rows)

  return write


@pytest.fixture
def folder(tmp_path, write_pairs):
  """The layout of the real folder: 30 clips, 60 images, 30 pairs."""
  rng = np.random.default_rng(0)
  length = rng.integers(1000, 12_000, 30)
  np.savez(
    tmp_path / "fsdd.npz",
    audio=rng.integers(-3000, 3000, length.sum()).astype(np.int16),
    audio_offset=np.concatenate([[0], np.cumsum(length)]),
    label=np.arange(30) % 10,
    sample_rate=np.array(8000),
  )
  np.savez(
    tmp_path / "digit_images.npz",
    image=rng.integers(0, 256, (60, 16, 16)).astype(np.uint8),
    label=np.arange(60) % 10,
    domain_names=np.array(DOMAINS),
  )
  rows = [
    {"domain": i // 10, "label": i % 10, "audio_index": i, "image_index": i + 30}
    for i in range(30)
  ]
  write_pairs(tmp_path, rows)
  return tmp_path
