"""Step time with the MER term over step time without it.

  python benchmarks/step_overhead.py

Batch 48 (3 domains x 16), 128-dimensional embeddings and projections, MLP encoders on
vectors of --width numbers, 2 and 3 modalities. The steps (erm, kde on embeddings, the
released logdet on embeddings and on projections) take turns; a step is timed as one of
--steps inside one compiled program, and a ratio is the median over rounds of the ratio
within a round, so that other load on the machine hits both sides. Ratios are of wall
time / of CPU time over all threads.
"""

import argparse
import os
import statistics
import time

METHODS = {
  "erm": {},
  "kde": {"mer": {"estimator": "kde", "normalize": "unit", "apply_to": "embedding"}},
  "logdet": {"mer": {"estimator": "logdet", "apply_to": "embedding"}},
  "logdet, projected": {"mer": {"estimator": "logdet", "apply_to": "projector"}},
}
BATCH, WIDTH = 48, 128


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=30)
  parser.add_argument("--rounds", type=int, default=21)
  parser.add_argument("--width", type=int, default=1024, help="Inputs per modality.")
  arguments = parser.parse_args()
  os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

  from mer_dg.experiments.hosts import device_name

  print(f"Device: {device_name()}. Batch {BATCH}, embeddings {WIDTH}.\n")
  others = [m for m in METHODS if m != "erm"]
  print(f"| modalities | erm, ms/step | {' | '.join(f'{m} / erm' for m in others)} |")
  print("|---:" * (2 + len(others)) + "|")
  for modalities in (2, 3):
    programs = {m: make_program(m, modalities, arguments) for m in METHODS}
    times: dict[str, list[tuple[float, float]]] = {m: [] for m in METHODS}
    for _ in range(arguments.rounds):
      for method, program in programs.items():
        wall, cpu = time.perf_counter(), time.process_time()
        program()
        times[method].append((time.perf_counter() - wall, time.process_time() - cpu))
    ratio = lambda m, i, t=times: statistics.median(
      a[i] / b[i] for a, b in zip(t[m], t["erm"], strict=True)
    )
    cells = [f"{ratio(m, 0):.2f} / {ratio(m, 1):.2f}" for m in others]
    erm = 1e3 * statistics.median(wall for wall, _ in times["erm"]) / arguments.steps
    print(f"| {modalities} | {erm:.2f} | {' | '.join(cells)} |", flush=True)


def make_program(method: str, modalities: int, arguments):
  """A call that takes ``--steps`` steps, compiled and warm."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from mer_dg.contracts import InputSpec, Task
  from mer_dg.methods import build_method
  from mer_dg.networks import make_network
  from mer_dg.training.state import make_hyper, make_state
  from mer_dg.training.step import make_train_step

  names = tuple(f"m{i}" for i in range(modalities))
  network = make_network(
    {m: InputSpec("vector", (arguments.width,)) for m in names},
    num_classes=8,
    embedding_dim=WIDTH,
    projection_dim=WIDTH,
  )
  widths = (WIDTH,) * modalities
  task = Task(names, 8, 3, BATCH, arguments.steps, widths, sum(widths), WIDTH)
  built = build_method(method, METHODS[method], task)
  horizon = dict(schedule="constant", total_steps=arguments.steps)
  hyper = make_hyper(network, built, {"lr": 1e-3, "weight_decay": 1e-4})
  scale = {"center": np.zeros(arguments.width), "inv_scale": np.ones(arguments.width)}
  scaling = dict.fromkeys(names, scale)
  state = make_state(network, built, seed=0, scaling=scaling, hyper=hyper, **horizon)
  step = make_train_step(network, built, **horizon)
  rng = np.random.default_rng(0)
  batch = {
    "inputs": {
      m: jnp.asarray(rng.normal(size=(BATCH, arguments.width)), jnp.float32)
      for m in names
    },
    "present": {m: jnp.ones(BATCH, bool) for m in names},
    "label": jnp.asarray(rng.integers(0, 8, BATCH), jnp.int32),
    "domain": jnp.arange(BATCH) // 16,
    "index": jnp.arange(BATCH),
    "mask": jnp.ones(BATCH, bool),
  }

  @jax.jit
  def steps(state):
    body = lambda s, i: step(s, batch, jax.random.fold_in(s.key, i))
    return jax.lax.scan(body, state, jnp.arange(arguments.steps))

  run = lambda: jax.block_until_ready(steps(state))
  run()
  return run


if __name__ == "__main__":
  main()
