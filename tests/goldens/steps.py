"""Two fixed training steps of every recipe: loss, gradient norm, checksum.

  python -m tests.goldens.steps  # writes tests/goldens/steps.json anew

Goldens change only in a commit that says why the numbers change.
"""

import json
import pathlib

import jax
import numpy as np

from mer_dg.contracts import InputSpec, Task
from mer_dg.methods import build_method, merge_recipes, recipes
from mer_dg.networks import make_network
from mer_dg.training.state import make_hyper, make_state
from mer_dg.training.step import make_train_step
from tests.factories import quick_jit

PATH = pathlib.Path(__file__).with_name("steps.json")
SPECS = {
  "video": InputSpec("vector", (6,)),
  "audio": InputSpec("sequence", (8, 4), masked=True),
  "flow": InputSpec("vector", (5,)),
}
CLASSES, DOMAINS, ROWS, STEPS = 4, 3, 24, 2
# Recipes as they stand, and with every row strong enough to be mixed.
ACTIVE = {"mm": {"threshold": 0.0}, "mm_alternate": {"fraction": 1.0}}
# Ill-conditioned: only a program as users compile it has the digits of the file.
ROUGH = "logdet", "cmrf"


def cases() -> dict[str, dict]:
  """``{name: recipe}`` of all recipes there are, and of some compositions."""
  known = recipes()
  names = [*known, "mer_kde+mm", "heads+mer_logdet"]
  found = {name: merge_recipes(name, known) for name in names}
  for name, fields in ACTIVE.items():
    recipe = merge_recipes(name, known)
    found[f"{name} (all rows)"] = recipe | {"mm": recipe["mm"] | fields}
  return found


def batch(seed: int) -> dict:
  """Rows of every kind: whole, with a modality missing, padding."""
  rng = np.random.default_rng(seed)
  x = lambda *shape: rng.normal(size=(ROWS, *shape)).astype(np.float32)
  sequence = x(8, 4)
  lengths = rng.integers(1, 9, size=ROWS)
  sequence[..., -1] = np.arange(8)[None] < lengths[:, None]
  mask = np.arange(ROWS) < ROWS - 2
  present = {m: mask & (rng.random(ROWS) < 0.9) for m in SPECS}
  present["video"] = mask  # Nobody is without everything.
  return {
    "inputs": {"video": x(6), "audio": sequence, "flow": x(5)},
    "present": present,
    "label": rng.integers(CLASSES, size=ROWS).astype(np.int32),
    "domain": np.arange(ROWS, dtype=np.int32) % DOMAINS,
    "index": np.arange(ROWS, dtype=np.int32),
    "mask": mask,
  }


def measure(name: str) -> dict[str, list[float]]:
  """Loss and gradient norm of each step, and two checksums of the parameters."""
  recipe = cases()[name]
  network = make_network(
    SPECS, num_classes=CLASSES, embedding_dim=8, hidden_dim=16, classifier_dim=16,
    projector_dim=16, projection_dim=8, **recipe.get("network", {}),
  )  # fmt: skip
  task = Task(
    tuple(SPECS), CLASSES, DOMAINS, num_samples=ROWS, total_steps=STEPS,
    widths=(8, 8, 8), fused_width=24, projection_width=8,
  )  # fmt: skip
  method = build_method("golden", recipe, task)
  horizon = dict(schedule="cosine", total_steps=10)
  state = make_state(
    network, method, seed=0, scaling={},
    hyper=make_hyper(network, method, {"lr": 1e-2, "weight_decay": 1e-3}),
    **horizon,
  )  # fmt: skip
  jit = jax.jit if any(word in name for word in ROUGH) else quick_jit
  step = jit(make_train_step(network, method, **horizon))
  losses, norms = [], []
  for i in range(STEPS):
    state, metrics = step(state, batch(i), jax.random.key(i))
    losses.append(float(metrics["loss"]))
    norms.append(float(metrics["grad_norm"]))
  leaves = [
    np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(state.params["net"])
  ]
  flat = np.concatenate(leaves)
  sums = [np.abs(flat).sum(), flat @ np.cos(np.arange(flat.size))]
  return {"loss": losses, "grad_norm": norms, "params": [float(s) for s in sums]}


def main() -> None:
  found = {name: measure(name) for name in cases()}
  PATH.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  main()
