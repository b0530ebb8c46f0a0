"""Trained networks per hour: the resident driver against a PyTorch loop.

  python benchmarks/grid.py                      # 1, 16, 128 and 1024 runs
  python benchmarks/grid.py --runs 16 --steps 200

The runs are those of the default experiment (configs/cooccurrence.py, plain fusion,
--steps updates each, evaluations left out on both sides). Peers, same network, batch
size, steps, optimiser and schedule, one run after another, every seed and held-out
domain its own run, as scripts of the field do:

* "DataLoader": one ``torch.utils.data.DataLoader`` per source domain, shuffled;
* "tensors": the same with the whole set as tensors and a permutation per epoch, on one
  thread, which is faster for networks of this size. This is more than scripts do.

Our time contains compilation (of a fresh program for each number of runs) and every
call; theirs the construction of models. A peer's time per run is measured on --peer
runs after a warm-up and multiplied: its runs are independent and alike. The numbers of
parameters are compared before anything is timed.
"""

import argparse
import itertools
import math
import os
import pathlib
import sys
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # configs/.

import jax
import numpy as np
from resident import make_runs, setup_of
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mer_dg.experiments.grid import Grid, WaveProgram
from mer_dg.experiments.hosts import device_name
from mer_dg.experiments.memory import wave_size
from mer_dg.experiments.setup import task_arrays
from mer_dg.networks import count_parameters


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--runs", type=int, nargs="+", default=[1, 16, 128, 1024])
  parser.add_argument("--steps", type=int, default=400)
  parser.add_argument("--peer", type=int, default=6, help="Runs of each peer.")
  arguments = parser.parse_args()
  jax.config.update("jax_enable_compilation_cache", False)  # Compile times are real.
  setup = setup_of(arguments.steps, max(arguments.runs), "erm")
  runs = make_runs(setup, max(arguments.runs))
  _same_size(setup)
  print(f"Device: {device_name()}; torch {torch.__version__}, erm, {arguments.steps}")
  print("steps a run.\n")
  peers = {}
  for name, batches, threads in (("DataLoader", _loader, 0), ("tensors", _tensors, 1)):
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    _train(setup, runs[0], batches)  # Warm-up.
    start = time.perf_counter()
    for run in runs[: arguments.peer]:
      _train(setup, run, batches)
    peers[name] = (time.perf_counter() - start) / min(arguments.peer, len(runs))
    torch.set_num_threads(before)
  print("| runs | ours, runs/h | " + " | ".join(f"{p}, runs/h" for p in peers), end="")
  print(" | " + " | ".join(f"ours / {p}" for p in peers) + " |")
  print("|" + " ---: |" * (2 + 2 * len(peers)))
  for count in arguments.runs:
    each = _ours(setup, runs[:count]) / count
    speeds = [f"{3600 / s:,.0f}" for s in (each, *peers.values())]
    ratios = [f"**{s / each:.1f}**" for s in peers.values()]
    print(f"| {count} | " + " | ".join(speeds + ratios) + " |", flush=True)


def _ours(setup, runs) -> float:
  """Seconds for all runs in waves, compilation included."""
  start = time.perf_counter()
  size = min(len(runs), wave_size(setup, "erm"))
  program = WaveProgram(Grid(setup), "erm", setup.tasks, size)
  for i in range(0, len(runs), size):
    state, pool, _ = program.begin(runs[i : i + size])
    state, _ = program.advance(state, pool, setup.config.total_steps)
    jax.block_until_ready(state)
  return time.perf_counter() - start


class Fused(nn.Module):
  """Two-layer encoders, concatenation, two-layer classifier with dropout."""

  def __init__(self, widths, network, num_classes: int):
    super().__init__()
    hidden, width = network.hidden_dim, network.embedding_dim
    self.encoders = nn.ModuleList(
      nn.Sequential(nn.Linear(w, hidden), nn.ReLU(), nn.Linear(hidden, width))
      for w in widths
    )
    self.classifier = nn.Sequential(
      nn.Linear(width * len(widths), network.classifier_dim),
      nn.ReLU(),
      nn.Dropout(network.dropout),
      nn.Linear(network.classifier_dim, num_classes),
    )

  def forward(self, inputs):
    z = [encode(x) for encode, x in zip(self.encoders, inputs, strict=True)]
    return self.classifier(torch.cat(z, dim=1))


def _model(setup) -> Fused:
  dataset = setup.dataset
  widths = [x.shape[1] for x in dataset.inputs.values()]
  return Fused(widths, setup.config.network, dataset.num_classes)


def _same_size(setup) -> None:
  """Both sides train the same number of parameters (unused projectors left out)."""
  counts = count_parameters(jax.eval_shape(setup.network().init, jax.random.key(0)))
  ours = sum(n for k, n in counts.items() if k == "fusion" or k.startswith("encoder"))
  theirs = sum(p.numel() for p in _model(setup).parameters())
  if ours != theirs:
    raise SystemExit(f"ours has {ours} parameters, theirs {theirs}")


def _train(setup, run, batches) -> None:
  """One run, as a script would do it."""
  torch.manual_seed(run.seed)
  config, task = setup.config, task_arrays(setup, run.task)
  sources = []
  for rows in setup.folds[run.task].train.values():
    scaled = []
    for m, x in setup.dataset.inputs.items():
      s = task.scaling[m]
      clip = config.network.input_clip
      z = np.clip((x[rows] - s["center"]) * s["inv_scale"], -clip, clip)
      scaled.append(torch.from_numpy(z.astype(np.float32)))
    label = torch.from_numpy(setup.dataset.label[rows].astype(np.int64))
    sources.append((*scaled, label))
  size, steps = setup.per_domain(run.task), config.total_steps
  model, optimizer = _model(setup), config.optimizer
  adam = torch.optim.Adam(
    model.parameters(), lr=optimizer.lr, weight_decay=optimizer.weight_decay
  )
  decay = lambda t: 0.5 * (1 + math.cos(math.pi * t / steps))
  schedule = torch.optim.lr_scheduler.LambdaLR(adam, decay)
  loss_fn = nn.CrossEntropyLoss()
  streams = [batches(source, size) for source in sources]
  model.train()
  for parts in itertools.islice(zip(*streams, strict=False), steps):
    *inputs, label = (torch.cat(columns) for columns in zip(*parts, strict=True))
    adam.zero_grad()
    loss_fn(model(inputs), label).backward()
    adam.step()
    schedule.step()


def _loader(source, size: int):
  loader = DataLoader(TensorDataset(*source), size, shuffle=True, drop_last=True)
  while True:
    yield from loader


def _tensors(source, size: int):
  count = len(source[-1])
  while True:
    order = torch.randperm(count)
    for start in range(0, count - size + 1, size):
      rows = order[start : start + size]
      yield [column[rows] for column in source]


if __name__ == "__main__":
  main()
