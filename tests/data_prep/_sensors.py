"""HUST motor and the sentiment sets in their published layouts, tiny."""

import pickle

import numpy as np

from data_prep import hust, sentiment

# --- HUST motor ----------------------------------------------------------------------

LENGTH = 22_000  # Just enough for the 10 % of the validation windows and two gaps.
FEW = (6, 2, 2)
# What the spectral analyser writes before the numbers.
HEADER = "Title: motor\nSpectral Lines: 3200\nChannels 4\nTime (s) X Y Z Sound\n\n"


def signals(domain, label, length=LENGTH):
  """Vibration x, y, z and sound as they stand in the file, three decimals."""
  rng = np.random.default_rng(10 * domain + label)
  tone = np.sin(2 * np.pi * (5 + 3 * label) * np.arange(length) / 2000)
  return np.round(tone[:, None] + rng.normal(size=(length, 4)), 3)


def write_recording(path, values, header=HEADER):
  time = np.arange(len(values)) / 25_600
  table = np.column_stack([time, values])
  with path.open("w") as file:
    file.write(header)
    np.savetxt(file, table, fmt=["%.6f", *["%.3f"] * 4], delimiter="\t")


def write_hust(root):
  for d, speed in enumerate(hust.SPEEDS):
    for k, state in enumerate(hust.STATES):
      write_recording(root / f"{state}_{speed}.txt", signals(d, k))


def hust_command(root, *words):
  hust.main([f"--root={root}", f"--windows={','.join(map(str, FEW))}", *words])


# --- sentiment -----------------------------------------------------------------------

WIDTHS = {"text": 6, "audio": 4, "vision": 3}
# Steps of each modality and clips of each split, different from set to set.
STEPS = {"mosi": (5, 9, 7), "mosei": (5, 12, 7), "ch_sims": (4, 8, 11)}
CLIPS = {"mosi": (8, 3, 4), "mosei": (12, 4, 5), "ch_sims": (6, 3, 3)}


def block(name, split, n, widths=WIDTHS):
  """One split as the public collection stores it."""
  rng = np.random.default_rng([len(name), len(split), n])
  steps = dict(zip(WIDTHS, STEPS[name], strict=True))
  length = {m: rng.integers(2, t + 1, n) for m, t in steps.items()}
  made = {}
  for m, t in steps.items():
    x = rng.normal(size=(n, t, widths[m])).astype(np.float32)
    x[np.arange(t)[None, :] >= length[m][:, None]] = 0
    made[m] = x
  label = np.round(rng.uniform(-1, 1, n), 1)
  label[:2] = [0.0, 0.4]
  mask = np.arange(steps["text"])[None, :] < length["text"][:, None]
  tokens = np.stack([rng.integers(1, 99, mask.shape), mask, 0 * mask], axis=1)
  made |= {
    "raw_text": np.array([f"clip {i}" for i in range(n)], object),
    "id": [f"{split}video{i // 2}$_${i}" for i in range(n)],
    "text_bert": tokens.astype(np.float32),
    "audio_lengths": length["audio"].tolist(),
    "vision_lengths": length["vision"].tolist(),
    "annotations": ["Neutral"] * n,
    "classification_labels": (np.sign(label) + 1).astype(np.float32),
    "regression_labels": (label if name == "ch_sims" else 3 * label).astype(np.float32),
  }
  return made


def content(name, **options):
  splits = zip(("train", "valid", "test"), CLIPS[name], strict=True)
  return {split: block(name, split, n, **options) for split, n in splits}


def write(path, data, protocol=4):
  path.write_bytes(pickle.dumps(data, protocol=protocol))
  return path


def write_pickles(folder):
  for protocol, name in enumerate(sentiment.CORPORA, start=2):
    write(folder / f"{name}.pkl", content(name), protocol)


def sentiment_command(folder, *words, names=("mosi", "mosei", "ch_sims")):
  pairs = [w for n in names for w in (f"--set={n}", f"--file={folder / n}.pkl")]
  sentiment.main([*pairs, *words])


def write_sentiment(folder, out):
  write_pickles(folder)
  sentiment_command(folder, f"--out={out}")
