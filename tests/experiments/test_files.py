"""Files nobody has seen: what the format allows goes through configs/features.py.

By default the first random file that has every kind of modality;
MER_DG_RANDOM_FILES=20 tries the first twenty.
"""

import os

import numpy as np
import pytest

from configs import features
from mer_dg.experiments import run
from mer_dg.protocol import read_records


def random_file(rng):
  """Arrays in the bring-your-own format; the target is named "target"."""
  classes = int(rng.integers(2, 31))
  domains = int(rng.integers(2, 5))
  # Domains of very unequal size: one has 3 rows, the first has every class twice.
  sizes = [2 * classes + 5, *rng.integers(4, 60, domains - 2), 3, 12]
  domain = np.repeat(np.arange(len(sizes)), sizes)
  n = len(domain)
  label = rng.integers(0, classes, n)
  label[: 2 * classes] = np.tile(np.arange(classes), 2)
  lacking = domain == 1  # A domain that has one class only.
  label[lacking] = label[lacking][0]
  names = np.array([f"domain {i}" for i in range(len(sizes) - 1)] + ["target"])
  out = {"label": label, "domain": names[domain]}
  kinds = rng.permutation(
    ["vector", "sequence", "padded", "grey", "rgb", "clip"][: rng.integers(2, 7)]
  )
  for i, kind in enumerate(kinds):
    m = f"{kind}_{i}"
    steps = int(rng.integers(5, 12))
    if kind == "vector":
      out[m] = rng.normal(size=(n, rng.integers(1, 9))) * 10.0 ** rng.integers(-3, 4)
      out[m][:, 0] = 7.0  # A constant column.
    elif kind == "sequence":
      out[m] = rng.normal(size=(n, steps, 2, 2)).astype(np.float32)
    elif kind == "padded":
      out[m] = rng.normal(size=(n, steps, 3)).astype(np.float16)
      out[f"{m}_len"] = rng.integers(1, steps + 1, n)
    elif kind == "grey":
      out[m] = rng.integers(0, 256, (n, 8, 9)).astype(np.uint8)
    elif kind == "rgb":
      out[m] = rng.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
    else:
      out[m] = rng.integers(0, 256, (n, steps, 6, 7)).astype(np.uint8)
  out["modalities"] = np.array([f"{kind}_{i}" for i, kind in enumerate(kinds)])
  m = str(out["modalities"][-1])
  out[f"{m}_present"] = rng.random(n) < 0.8
  if out[m].dtype.kind == "f":
    out[m][~out[f"{m}_present"]] = np.nan
  return out


SEEDS = range(int(os.environ.get("MER_DG_RANDOM_FILES", "0"))) or [1]


@pytest.mark.parametrize("seed", SEEDS)
def test_any_file_of_the_format_trains(tmp_path, seed):
  arrays = random_file(np.random.default_rng(seed))
  np.savez(tmp_path / "set.npz", **arrays)
  config = features.get_config()
  changes = {"data.path": str(tmp_path / "set.npz"), "methods": ("mer_kde",)}
  changes |= {"targets": ("target",), "seeds": (0,)}
  changes |= {"total_steps": 2, "eval_every": 2, "log_every": 1}
  changes |= {
    "search.encoders": (),
    "network.hidden_dim": 16,
    "network.embedding_dim": 8,
  }
  config.update_from_flattened_dict(changes)
  text = run(config, workdir=str(tmp_path / "w"))
  (record,) = read_records(tmp_path / "w" / "results.jsonl")
  assert record["modalities"] == list(arrays["modalities"])
  finite = {k for k, v in record["metrics"].items() if np.isfinite(v)}
  missing = set(record["metrics"]) - finite
  # A domain with hardly any row has no validation row; nothing else may be missing.
  assert {k for k in missing if not k.startswith("val/domain")} == set()
  assert {f"entropy/{m}" for m in arrays["modalities"]} <= finite
  assert {"target/accuracy", "val/balanced_accuracy", "train/loss"} <= finite
  assert "| MER (kde)" in text
