"""Which defaults win: scale of inputs, encoder, length; beside scikit-learn's models.

  python studies/defaults.py --data=FOLDER --workdir=runs/defaults cars hydraulic

Every variant is the table of plain fusion and of networks on one modality each
(`uniform`) of configs/features.py, in a process of its own. The column to choose by is
"left out": each source of each target left out in turn, judged by runs that saw
neither, for each encoder in the order of the variant. "target" confirms, on the domains
that a table holds out; "single" is the modality that is best on source validation.
References are scikit-learn's logistic regression and one-hidden-layer network on
statistics of every channel (as the linear rows of a table) and on the arrays as they
are; the better of the two inputs is chosen on source validation rows. Results:
docs/your_data.md.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
from pathlib import Path
import resource
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
from mer_dg.data import leave_one_domain_out
from mer_dg.experiments.linear import features_of

# {name: fields of the config that differ from configs/features.py}
ONE = {"search.encoders": ("auto",)}
PLAIN = {
  "search.encoders": (),
  "network.input_transform": "none",
  "total_steps": 300,
  "eval_every": 100,
}
VARIANTS = {
  "plain": PLAIN,
  "asinh": PLAIN | {"network.input_transform": "asinh"},
  "range": PLAIN | {"network.input_transform": "range"},
  "range, 600": ONE | {"total_steps": 600},
  "range, 1200": ONE,
  "as shipped": {},
}
MODELS = {
  "LR": lambda: LogisticRegression(C=0.1, max_iter=500),
  "MLP": lambda: MLPClassifier((128,), batch_size=64, max_iter=60, random_state=0),
}


def references(dataset):
  """``{model: mean over held-out domains}``."""
  flat = [x.reshape(len(x), -1) for x in dataset.inputs.values()]
  short = [features_of(dataset, m) for m in dataset.modalities]
  inputs = [np.concatenate(flat, 1).astype(np.float32)]
  inputs.append(np.nan_to_num(np.concatenate(short, 1)))
  found = {name: [] for name in MODELS}
  for target in dataset.domain_names:
    split = leave_one_domain_out(dataset, target, split_seed=0, val_fraction=0.2)
    train, val = (np.concatenate([*p.values()]) for p in (split.train, split.val))
    for name, model in MODELS.items():
      scores = []
      for x in inputs:
        fitted = make_pipeline(StandardScaler(), model()).fit(
          x[train], dataset.label[train]
        )
        judged = [
          balanced_accuracy_score(dataset.label[rows], fitted.predict(x[rows]))
          for rows in (val, split.test)
        ]
        scores.append(tuple(judged))
      found[name].append(max(scores)[1])
  return {name: float(np.mean(scores)) for name, scores in found.items()}


def mean(records, step, key):
  """Mean over runs of a metric at a step, in %."""
  found = [r["metrics"][key] for r in records if r["step"] == step]
  return 100 * float(np.mean(found)) if found else np.nan


def config_of(name, folder, fields):
  """The config of a set; av_digits is no single file."""
  config = features.get_config()
  if name == "av_digits":
    config.update_from_flattened_dict({"data.name": name, "data.path": str(folder)})
  else:
    config.data.path = str(folder / f"{name}.npz")
  config.update_from_flattened_dict({"methods": ("erm", "uniform"), **fields})
  return config


def train(name, folder, fields, workdir):
  """The cells of a variant: left out, target, single, average, CPU s, GB."""
  config, began = config_of(name, folder, fields), time.process_time()
  experiments.run(config, workdir=str(workdir))
  parts = [workdir / f"{part}.jsonl" for part in ("inner", "results")]
  inner, table = (list(protocol.read_records(p)) if p.exists() else [] for p in parts)
  score = lambda rows, split="target", only="": mean(
    rows, config.total_steps, f"{split}/{only}balanced_accuracy"
  )
  by_encoder = protocol.group_by(inner, lambda r: r["tags"]["network.encoder"])
  left_out = " / ".join(f"{score(own):.1f}" for own in by_encoder.values())
  fused, apart = ([r for r in table if r["method"] == m] for m in ("erm", "uniform"))
  alone = {m: f"only_{m}/" for m in table[0]["modalities"]}
  single = average = ""
  if len(alone) > 1:
    best = max(alone, key=lambda m: score(apart, "val", alone[m]))
    single = f"{best} {score(apart, only=alone[best]):.1f}"
    average = f"{score(apart):.1f}"
  return [
    left_out,
    f"{score(fused):.1f}",
    single,
    average,
    f"{time.process_time() - began:.0f}",
    f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f}",
  ]


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--data", required=True, help="folder of the sets")
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--seeds", type=int, default=2)
  parser.add_argument("--variant", action="append", choices=list(VARIANTS))
  parser.add_argument("sets", nargs="+")
  args = parser.parse_args()
  warnings.simplefilter("ignore", ConvergenceWarning)
  warnings.simplefilter("ignore", UserWarning)  # A class that no target row has.
  columns = ["set", "variant", "left out", "target", "single", "average", "CPU s", "GB"]
  lines = [columns, ["---"] * len(columns)]
  fresh = multiprocessing.get_context("spawn")
  for name in args.sets:
    folder, seeds = Path(args.data), {"seeds": tuple(range(args.seeds))}
    config = experiments.validate(config_of(name, folder, seeds))
    dataset = experiments.make_setup(config).dataset
    for model, score in references(dataset.in_memory()).items():
      lines.append([name, model, "", f"{100 * score:.1f}", "", "", "", ""])
    for variant in args.variant or VARIANTS:
      place = Path(args.workdir) / f"{name}-{variant}".replace(" ", "_")
      with ProcessPoolExecutor(1, mp_context=fresh) as alone:
        fields = seeds | VARIANTS[variant]
        cells = alone.submit(train, name, folder, fields, place).result()
      lines.append([name, variant, *cells])
    print(*("| " + " | ".join(line) + " |" for line in lines), sep="\n", flush=True)


if __name__ == "__main__":
  main()
