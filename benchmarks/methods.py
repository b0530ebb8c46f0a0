"""Cost of a step of every method, relative to plain fusion.

  python -m benchmarks.methods
  python -m benchmarks.methods --methods=erm,sam,mer_kde+mm

Three domains x 32 rows, two modalities of --width numbers, MLP encoders (hidden 256),
embeddings and projections of 128, classifier 128. A step is one of --steps inside one
compiled program. Each method takes turns with plain fusion, and its ratio is the median
over --rounds of the ratio of CPU times within a round, so that other load on the
machine hits both sides. Compilation is the CPU time of the first call, tracing
included, no cache. Prints the column of docs/methods.md.
"""

import argparse
import os
import statistics
import time

DOMAINS, ROWS, CLASSES, WIDTH = 3, 32, 8, 128
MODALITIES = ("a", "b")


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--width", type=int, default=512, help="Inputs per modality.")
  parser.add_argument("--methods", default="", help="Names, with commas; none is all.")
  arguments = parser.parse_args()
  os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
  os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

  from mer_dg.experiments.hosts import device_name
  from mer_dg.methods import merge_recipes, recipes

  known = recipes()
  names = [n for n in arguments.methods.split(",") if n]
  names = names or [*known, "heads+md", "mer_kde+mm"]
  make = lambda name: make_program(name, merge_recipes(name, known), arguments)
  plain, compiling = make("erm")
  print(f"{device_name()}, {arguments.steps} steps, {arguments.rounds} rounds.")
  print(f"Plain fusion: {1e3 * cpu(plain) / arguments.steps:.2f} ms of CPU a step.\n")
  print("| method | step / plain fusion | compiling, s |\n| --- | ---: | ---: |")
  for name in names:
    program, compiling = make(name)
    rounds = [(cpu(program), cpu(plain)) for _ in range(arguments.rounds)]
    ratio = statistics.median(a / b for a, b in rounds)
    print(f"| `{name}` | {ratio:.2f} | {compiling:.1f} |", flush=True)


def cpu(call) -> float:
  """Seconds over all threads of the process: steadier than a clock on the wall."""
  start = time.process_time()
  call()
  return time.process_time() - start


def make_program(name: str, recipe, arguments):
  """A call that takes ``--steps`` steps, warm, and the seconds of its first one."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from mer_dg.contracts import InputSpec, Task
  from mer_dg.methods import build_method
  from mer_dg.networks import make_network
  from mer_dg.training.state import make_hyper, make_state
  from mer_dg.training.step import make_train_step

  batch, width = DOMAINS * ROWS, arguments.width
  network = make_network(
    {m: InputSpec("vector", (width,)) for m in MODALITIES},
    num_classes=CLASSES, hidden_dim=256, embedding_dim=WIDTH, projection_dim=WIDTH,
    **recipe.get("network", {}),
  )  # fmt: skip
  # Past the warm-up of whatever has one.
  horizon = dict(schedule="constant", total_steps=10 * arguments.steps)
  task = Task(
    MODALITIES, CLASSES, DOMAINS, batch, horizon["total_steps"],
    tuple(network.widths.values()), network.fused_width, network.projection_width,
    domain_rows=ROWS,
  )  # fmt: skip
  method = build_method(name, recipe, task)
  hyper = make_hyper(network, method, {"lr": 1e-3, "weight_decay": 1e-4})
  scale = {"center": np.zeros(width), "inv_scale": np.ones(width)}
  scaling = dict.fromkeys(MODALITIES, scale)
  state = make_state(network, method, seed=0, scaling=scaling, hyper=hyper, **horizon)
  state = state.replace(step=jnp.int32(horizon["total_steps"] // 2))
  step = make_train_step(network, method, **horizon)
  rng = np.random.default_rng(0)
  draw = lambda: jnp.asarray(rng.normal(size=(batch, width)), jnp.float32)
  rows = {
    "inputs": {m: draw() for m in MODALITIES},
    "present": {m: jnp.ones(batch, bool) for m in MODALITIES},
    "label": jnp.asarray(rng.integers(0, CLASSES, batch), jnp.int32),
    "domain": jnp.arange(batch) // ROWS,
    "index": jnp.arange(batch),
    "mask": jnp.ones(batch, bool),
  }

  @jax.jit
  def steps(state):
    body = lambda s, i: step(s, rows, jax.random.fold_in(s.key, i))
    return jax.lax.scan(body, state, jnp.arange(arguments.steps))

  run = lambda: jax.block_until_ready(steps(state))
  return run, cpu(run)


if __name__ == "__main__":
  main()
