"""A small table through the whole program, and the records it leaves.

python -m tests.goldens.table  # writes tests/goldens/results.jsonl anew
"""

import pathlib
import tempfile

from configs import cooccurrence
from mer_dg import experiments

PATH = pathlib.Path(__file__).with_name("results.jsonl")


def config():
  c = cooccurrence.get_config()
  c.data.cooccurrence.update(
    num_domains=3, train_per_domain=48, val_per_domain=30, test_per_domain=40,
  )  # fmt: skip
  c.methods = ("erm", "heads", "mer_kde", "mm")
  c.targets = ("d0", "d2")
  c.seeds = (0, 1)
  c.total_steps, c.eval_every, c.log_every = 40, 20, 20
  c.network.update(embedding_dim=16, hidden_dim=32, classifier_dim=32)
  return c


def train(workdir: pathlib.Path) -> pathlib.Path:
  """Trains the table; returns its records' file."""
  experiments.run(config(), workdir=str(workdir))
  return workdir / "results.jsonl"


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    PATH.write_bytes(train(pathlib.Path(folder) / "table").read_bytes())


if __name__ == "__main__":
  main()
