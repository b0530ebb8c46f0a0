"""Which defaults win: scale of inputs, encoder, length; beside scikit-learn's models.

  python studies/defaults.py --data=FOLDER --set=cars --workdir=/tmp/defaults

Two domains are left out at a time, training sees the others, and each of the two is
scored as a source that was left out while the other is the target that nobody looked
at. Over all pairs every domain is scored as a left-out source; no default is chosen
by the domain on which a table tests. (A default is one for all sets: what is chosen
here is confirmed on sets that took no part, see ``--confirm`` and docs/your_data.md.)

``--confirm`` trains on all domains but one instead and scores that one: the numbers of
a table. References are scikit-learn's logistic regression and one-hidden-layer network
on statistics of every channel (as the linear rows of a table) and on the arrays as
they are; the better of the two inputs is chosen on source validation rows.
"""

import argparse
import itertools
import json
from pathlib import Path
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from configs import features
from mer_dg import experiments, protocol
from mer_dg.data import leave_one_domain_out, load_npz
from mer_dg.experiments.linear import features_of

# {name: fields of the config that differ from configs/features.py}
PLAIN = {"network.input_transform": "none", "total_steps": 300}
VARIANTS = {
  "plain": PLAIN,
  "asinh": PLAIN | {"network.input_transform": "asinh"},
  "range": PLAIN | {"network.input_transform": "range"},
  "mlp": PLAIN | {"network.encoder": "mlp"},
  "as shipped": {},
}


def pairs(names, confirm):
  """``(sources, scored)`` of every training."""
  left_out = 1 if confirm or len(names) < 3 else 2
  for out in itertools.combinations(names, left_out):
    yield tuple(n for n in names if n not in out), out


def inputs_of(dataset):
  """``{name: [N, D]}``: two ways to flatten all modalities."""
  flat = [x.reshape(len(x), -1) for x in dataset.inputs.values()]
  short = [features_of(dataset, m) for m in dataset.modalities]
  return {
    "flat": np.concatenate(flat, 1).astype(np.float32),
    "statistics": np.nan_to_num(np.concatenate(short, 1)),
  }


def references(dataset, sources, scored):
  """Balanced accuracy of scikit-learn's models on each scored domain."""
  split = leave_one_domain_out(
    dataset, scored[0], sources=sources, split_seed=0, val_fraction=0.2
  )
  train = np.concatenate([*split.train.values()])
  val = np.concatenate([*split.val.values()])
  label, found = dataset.label, {}
  models = {
    "LR": lambda: LogisticRegression(C=0.1, max_iter=500),
    "MLP": lambda: MLPClassifier((128,), batch_size=64, max_iter=60, random_state=0),
  }
  for name, model in models.items():
    best = -1.0
    for x in inputs_of(dataset).values():
      fitted = make_pipeline(StandardScaler(), model()).fit(x[train], label[train])
      score = lambda rows, x=x, f=fitted: (
        100 * balanced_accuracy_score(label[rows], f.predict(x[rows]))
      )
      if (at := score(val)) > best:
        best = at
        rows = {
          d: np.flatnonzero(dataset.domain == dataset.domain_id(d)) for d in scored
        }
        found[name] = {d: score(r) for d, r in rows.items()}
  return found


def train(path, sources, scored, fields, seeds, workdir):
  """Balanced accuracy of plain fusion on each scored domain, mean over seeds."""
  config = features.get_config()
  config.update_from_flattened_dict(
    {
      "data.path": str(path), "methods": ("erm",), "seeds": seeds,
      "metric": "balanced_accuracy", "sources": sources, "targets": scored,
      "eval_every": 100, **fields,
    }
  )  # fmt: skip
  experiments.run(config, workdir=str(workdir))
  records = list(protocol.read_records(workdir / "results.jsonl"))
  last = max(r["step"] for r in records)
  of = lambda d: [
    r["metrics"] for r in records if r["step"] == last and r["target"] == d
  ]
  key = "target/balanced_accuracy"
  return {d: 100 * float(np.mean([m[key] for m in of(d)])) for d in scored}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--data", required=True, help="folder of the sets")
  parser.add_argument("--set", required=True)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--seeds", type=int, default=1)
  parser.add_argument("--variant", action="append", choices=list(VARIANTS))
  parser.add_argument("--confirm", action="store_true")
  args = parser.parse_args()
  warnings.simplefilter("ignore", ConvergenceWarning)
  path, folder = Path(args.data) / f"{args.set}.npz", Path(args.workdir)
  dataset, seeds = load_npz(path), tuple(range(args.seeds))
  out = folder / f"{args.set}{'-confirm' * args.confirm}.jsonl"
  folder.mkdir(parents=True, exist_ok=True)
  for sources, scored in pairs(dataset.domain_names, args.confirm):
    rows = references(dataset, sources, scored)
    for name in args.variant or VARIANTS:
      began = time.time()
      place = "-".join([args.set, *scored, name]).replace(" ", "_")
      rows[name] = train(path, sources, scored, VARIANTS[name], seeds, folder / place)
      print(place, rows[name], f"{time.time() - began:.0f} s", flush=True)
    with out.open("a") as file:
      for name, scores in rows.items():
        for domain, score in scores.items():
          file.write(json.dumps([args.set, name, scored, domain, score]) + "\n")
  lines = [json.loads(line) for line in out.read_text().splitlines()]
  for name in dict.fromkeys(line[1] for line in lines):
    scores = [line[4] for line in lines if line[1] == name]
    print(f"{args.set:16s} {name:20s} {np.mean(scores):5.1f}  n = {len(scores)}")


if __name__ == "__main__":
  main()
