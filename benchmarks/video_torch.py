"""The EPIC V+A+F MER-DG step beside the same step in PyTorch, in one run.

For ``python -m benchmarks.video --peer``; the layer stacks are those of the parity
tests. Both sides have the same weights and float32 inputs that lie on the device
already: the three encoders with trunks that get no gradient, layer4, dropout,
projectors, classifier, cross-entropy and kernel entropy of the projections on the unit
sphere, Adam with coupled L2; batch norms use running statistics. PyTorch gets
channels-last tensors, autocast in bfloat16, fused Adam and cuDNN's search on a GPU, and
`torch.compile`. Ours is the training step of `main.py`, which also selects by masks of
present modalities (all are), computes accuracy and norm of the gradient, and decays the
unimodal heads, which no term of this loss reads. TFLOP/s are clips/s times the
operations that XLA counts in our step before it optimises, for both sides.

First, at a tiny size and without dropout, the losses of three steps of both must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import gc
import math
import time

import jax
import numpy as np
import torch

from benchmarks._video_sides import (
  Peer,
  make_problem,
  our_steps,
  random_rows,
  torch_device,
  torch_steps,
)

# Dense products in TFLOP/s, from the vendor's data sheets: bfloat16, TF32, float32.
# The first name that is part of the device's counts.
PEAKS = {
  "H200": (989.0, 495.0, 67.0),
  "H100 PCIe": (756.0, 378.0, 51.0),
  "H100 80GB HBM3": (989.0, 495.0, 67.0),
  "A100": (312.0, 156.0, 19.5),
  "L40S": (362.0, 183.0, 91.6),
}
# Of the check: small inputs, small encoders, and steps and a decay that move the loss.
TINY_SHAPES = {"video": (8, 48, 40, 3), "audio": (40, 56, 1), "flow": (2, 48, 40, 2)}
TINY = dict(
  depths=(1, 1, 1, 1),
  width=8,
  projector_dim=32,
  optimizer=dict(lr=3e-3, weight_decay=1e-2),
)
TINY_BATCH, TINY_STEPS = 6, 3
TOLERANCE = 1e-3


@contextlib.contextmanager
def precision(tf32: bool) -> Iterator[None]:
  """Float32 products of both sides in TF32 where a GPU has it, or in float32."""
  before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
  torch.set_float32_matmul_precision("high" if tf32 else "highest")
  torch.backends.cudnn.allow_tf32 = tf32
  try:
    # XLA's default on a GPU is TF32.
    with jax.default_matmul_precision("default" if tf32 else "highest"):
      yield
  finally:
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def check_same() -> tuple[list[float], list[float]]:
  """Losses of a few steps of both sides at a tiny size, ours and PyTorch's.

  Raises:
    RuntimeError: If a pair of them differs by more than `TOLERANCE` (relative).
  """
  problem = make_problem(dtype="float32", shapes=TINY_SHAPES, dropout=False, **TINY)
  rows = random_rows(problem, TINY_BATCH)
  with precision(tf32=False):
    model = Peer(problem)
    ours, _ = our_steps(model, problem, *rows)
    theirs = torch_steps(model, problem, *rows)
    found = [[run(1) for _ in range(TINY_STEPS)] for run in (ours, theirs)]
  if not np.allclose(*found, rtol=TOLERANCE, atol=0):
    raise RuntimeError(
      f"ours and PyTorch's losses are {found[0]} and {found[1]} at equal weights and "
      "inputs: these are not the same step, so their times are not comparable."
    )
  return found[0], found[1]


def take_turns(
  contenders: Sequence[Callable[[int], float]], *, rounds: int, steps: int
) -> np.ndarray:
  """Seconds per step ``[rounds, contenders]``; who is first changes every round."""
  for run in contenders:
    run(2)  # Compiles, searches algorithms, fills the allocators.
  seconds = np.zeros((rounds, len(contenders)))
  for r in range(rounds):
    order = range(len(contenders))
    for i in order if r % 2 == 0 else reversed(order):
      began = time.perf_counter()
      loss = contenders[i](steps)
      seconds[r, i] = (time.perf_counter() - began) / steps
      if not math.isfinite(loss):
        raise RuntimeError(f"the loss of contender {i} is {loss} in round {r}.")
  return seconds


def peak_tflops(device_kind: str, dtype: str, tf32: bool) -> float:
  """Peak of a known device for what a row multiplies; nan for another device."""
  column = 0 if dtype == "bfloat16" else 1 if tf32 else 2
  found = (peaks[column] for name, peaks in PEAKS.items() if name in device_kind)
  return next(found, math.nan)


def format_row(batch: int, dtype: str, seconds, gflop: float, peak: float) -> str:
  """A row of the table: rates as median (range) over the rounds."""
  rates = batch / seconds  # [rounds, 2]

  def spread(values) -> str:
    return f"{np.median(values):.4g} ({values.min():.4g} to {values.max():.4g})"

  cells = [str(batch), dtype, *map(spread, rates.T), spread(rates[:, 0] / rates[:, 1])]
  for rate in np.median(rates, axis=0):
    achieved = rate * gflop / 1e3
    share = "unknown" if math.isnan(peak) else f"{100 * achieved / peak:.1f} %"
    cells += [f"{achieved:.3g}", share]
  return f"| {' | '.join([*cells, f'{gflop:.4g}'])} |"


def compare(args) -> None:
  """Checks, times and prints; ``args`` are those of `benchmarks.video`."""
  if args.peak_tflops and len(args.peak_tflops) != len(args.dtypes):
    raise SystemExit(
      f"--peak_tflops={args.peak_tflops} must name one peak for each of {args.dtypes}."
    )
  device, kind = torch_device(), jax.devices()[0].device_kind
  torch.backends.cudnn.benchmark = True
  words = [kind, f"JAX {jax.__version__}", f"PyTorch {torch.__version__}"]
  words += [f"torch.compile: {args.compile}", "channels last, autocast in bfloat16"]
  if device.type == "cuda":
    words.append(f"cuDNN {torch.backends.cudnn.version()} with benchmark=True")
    words.append(f"TF32 in float32 rows: {'yes' if args.tf32 else 'no'}")
  words.append(f"{args.rounds} rounds of {args.steps} steps, in turns")
  print("; ".join(words))
  ours, theirs = check_same()
  print(f"same step: losses {ours} (ours), {theirs} (PyTorch) at a tiny size\n")
  print(
    "| batch | dtype | ours, clips/s | PyTorch, clips/s | ours / PyTorch | "
    "ours, TFLOP/s | of peak | PyTorch, TFLOP/s | of peak | GFLOP per clip |\n"
    f"|---:|---|{'---:|' * 8}"
  )
  for batch in args.batches:
    for i, dtype in enumerate(args.dtypes):
      peak = peak_tflops(kind, dtype, args.tf32)
      peak = args.peak_tflops[i] if args.peak_tflops else peak
      with precision(args.tf32):
        seconds, gflop = _measure(args, batch, dtype)
      print(format_row(batch, dtype, seconds, gflop, peak), flush=True)
      gc.collect()
      if device.type == "cuda":
        torch.cuda.empty_cache()


def _measure(args, batch: int, dtype: str) -> tuple[np.ndarray, float]:
  """Seconds per step of both sides, and GFLOP per clip."""
  problem = make_problem(dtype=dtype, depths=args.depths, width=args.width)
  rows, model = random_rows(problem, batch), Peer(problem)
  ours, gflop = our_steps(model, problem, *rows)
  theirs = torch_steps(model, problem, *rows, compiled=args.compile)
  return take_turns([ours, theirs], rounds=args.rounds, steps=args.steps), gflop
