"""Which weight decay your own data should start with, by sources left out in turn.

  python studies/weight_decay.py --data=FOLDER hydraulic cars gesture_phase

Plain fusion of configs/features.py with the encoder `auto`, at several decays as an
axis of one program: the runs that `config.search.encoders` trains, which see neither
the target nor the source that judges them. No target is looked at. Results:
docs/your_data.md.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from configs import features
from mer_dg import experiments
from mer_dg.experiments.grid import Grid, train_all
from mer_dg.experiments.search import encoder_runs

DECAYS = (1e-4, 1e-3, 3e-3, 7e-3, 1.5e-2)
NAME = "optimizer.weight_decay"


def left_out(path, steps):
  """Mean balanced accuracy on left-out sources in %, for each decay."""
  config = features.get_config()
  config.update_from_flattened_dict(
    {
      "data.path": str(path), "methods": ("erm",), "total_steps": steps,
      "eval_every": steps, "search.encoders": ("auto",), "search.seeds": (100,),
    }
  )  # fmt: skip
  setup = experiments.make_setup(experiments.validate(config))
  found: dict[float, list[float]] = {decay: [] for decay in DECAYS}

  def keep(wave):
    for e in wave.evaluations:
      found[dict(e.run.overrides)[NAME]].append(e.metrics["target/balanced_accuracy"])

  runs = [
    dataclasses.replace(run, overrides=((NAME, decay),))
    for decay in DECAYS
    for run in encoder_runs(setup)
  ]
  train_all(Grid(setup), runs, keep)
  return [100 * float(np.mean(scores)) for scores in found.values()]


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--data", required=True, help="folder of the sets")
  parser.add_argument("--steps", type=int, default=600)
  parser.add_argument("sets", nargs="+")
  args = parser.parse_args()
  rows = {}
  for name in args.sets:
    rows[name] = left_out(Path(args.data) / f"{name}.npz", args.steps)
  rows["mean"] = np.mean(list(rows.values()), axis=0)
  print("| set | " + " | ".join(f"{decay:g}" for decay in DECAYS) + " |")
  print("| --- |" + " ---: |" * len(DECAYS))
  for name, scores in rows.items():
    print(f"| {name} | " + " | ".join(f"{s:.1f}" for s in scores) + " |")


if __name__ == "__main__":
  main()
