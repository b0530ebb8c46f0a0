"""From published files to a record: prepare, then train two steps."""

from configs import features, hust, sentiment
from mer_dg.experiments import run
from mer_dg.protocol import read_records
from tests.data_prep import _sensors

SMALL = {
  "methods": ("mer_kde",),
  "seeds": (0,),
  "total_steps": 2,
  "eval_every": 2,
  "log_every": 1,
  "network.classifier_dim": 8,
  "network.projector_dim": 8,
  "network.projection_dim": 4,
}


def train(config, path, workdir, **fields):
  config.update_from_flattened_dict(SMALL | {"data.path": str(path)} | fields)
  run(config, workdir=str(workdir))
  return read_records(workdir / "results.jsonl")


def check(records, split, modalities):
  *_, last = records
  assert last["data_version"].startswith(f"split={split},dedup=on/")
  assert last["sources"] == ["5HZ", "10HZ", "20HZ"]
  assert last["modalities"] == modalities
  assert (last["dataset"], last["step"]) == (split, 2)
  assert 0 <= last["metrics"]["target/accuracy"] <= 1


def test_hust(hust_prepared, tmp_path):
  """The table of one target, with the CNNs."""
  fields = {"targets": ("30HZ",), "batch_size": 6}
  path = hust_prepared / "time.npz"
  records = train(hust.get_config(), path, tmp_path, **fields)
  check(records, "time", ["vibration", "sound"])


def test_features_on_the_overlapping_split(hust_prepared, tmp_path):
  """A single run of configs/features.py, which knows nothing of the set."""
  fields = {
    "data.modalities": ("vibration",),
    "method": "erm",
    "network.embedding_dim": 4,
    "network.hidden_dim": 4,
  }
  path = hust_prepared / "overlap.npz"
  records = train(features.get_config("30HZ"), path, tmp_path, **fields)
  check(records, "overlap", ["vibration"])


def test_sentiment(tmp_path):
  """A single run of the transformers, with checkpoints; lengths differ by corpus."""
  path = tmp_path / "sentiment.npz"
  _sensors.write_sentiment(tmp_path, path)
  fields = {"batch_size": 4, "data.modalities": ("text", "vision")}
  config = sentiment.get_config("ch_sims")
  *_, last = train(config, path, tmp_path / "run", **fields)
  assert last["data_version"].startswith("classes=acc2,dtype=float32,dedup=on/")
  assert last["sources"] == ["mosei", "mosi"]
  assert last["modalities"] == ["text", "vision"]
  assert last["step"] == 2
