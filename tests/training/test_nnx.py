"""A model of Flax NNX in our step, through ``split`` and ``merge``."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mer_dg
from mer_dg.contracts import Network, Outputs, Task
from mer_dg.methods import build_method, merge_recipes, recipes
from mer_dg.training.state import make_hyper, make_state
from mer_dg.training.step import make_train_step
from tests import factories
from tests.factories import CLASSES, DOMAINS, ROWS, WIDTHS

Z, P, STEPS = 4, 3, 30


class Towers(nnx.Module):
  """What a user of NNX has: an encoder, a head and a projector a modality."""

  def __init__(self, rngs):
    each = lambda d, out: nnx.Linear(d, out, rngs=rngs)
    self.encoder = nnx.Dict({m: each(d, Z) for m, d in WIDTHS.items()})
    self.projector = nnx.Dict({m: each(Z, P) for m in WIDTHS})
    self.head = nnx.Dict({m: each(Z, CLASSES) for m in WIDTHS})
    self.classifier = each(Z * len(WIDTHS), CLASSES)
    self.dropout = nnx.Dropout(0.1)

  def fuse(self, z, present, *, train=False, key=None):
    kept = [jnp.where(present[m][:, None], z[m], 0) for m in WIDTHS]
    fused = jnp.concatenate(kept, axis=1)
    rngs = None if key is None else nnx.Rngs(dropout=key)
    return fused, self.classifier(
      self.dropout(fused, deterministic=not train, rngs=rngs)
    )

  def __call__(self, inputs, present, **how):
    z = {}
    for m in WIDTHS:
      here = present[m][:, None]
      x = jnp.where(here, inputs[m], 0)  # What stands in a missing row is anything.
      z[m] = jnp.where(here, jnp.tanh(self.encoder[m](x)), 0)
    fused, logits = self.fuse(z, present, **how)
    projected = {m: self.projector[m](z[m]) for m in WIDTHS}
    return Outputs(z, projected, self.heads(z), fused, logits)

  def heads(self, z):
    return {m: self.head[m](z[m]) for m in WIDTHS}


GRAPH, START = nnx.split(Towers(nnx.Rngs(0)), nnx.Param)


def _network():
  """The seam around it: every function merges the parameters that it is given."""
  of = lambda variables: nnx.merge(GRAPH, variables["params"], copy=True)

  def apply(variables, inputs, present, *, train, key=None, rates=None):
    return of(variables)(inputs, present, train=train, key=key), {}

  def fuse(variables, z, present, *, train=False, key=None, rates=None):
    return of(variables).fuse(z, present, train=train, key=key)[1]

  def parts(params):
    def label(path, _):
      names = [str(getattr(part, "key", part)) for part in path]
      return f"{names[0]}/{names[1]}" if names[1] in WIDTHS else "fusion"

    return jax.tree_util.tree_map_with_path(label, params)

  init = lambda key, batch=None: {"params": START, "scaling": {}}
  heads = lambda variables, z: of(variables).heads(z)
  return Network(
    tuple(WIDTHS), init, apply, fuse, heads, parts, {},
    dict.fromkeys(WIDTHS, Z), Z * len(WIDTHS), P,
  )  # fmt: skip


def _trained(name, batch, steps):
  network = _network()
  task = Task(
    network.modalities, CLASSES, DOMAINS, num_samples=ROWS, total_steps=STEPS,
    widths=(Z,) * len(WIDTHS), fused_width=network.fused_width, projection_width=P,
  )  # fmt: skip
  method = build_method(name, merge_recipes(name, recipes()), task)
  horizon = dict(schedule="constant", total_steps=STEPS)
  hyper = make_hyper(network, method, {"lr": 0.05, "weight_decay": 0.0})
  state = make_state(network, method, seed=0, scaling={}, hyper=hyper, **horizon)
  step = factories.quick_jit(make_train_step(network, method, **horizon))
  losses = []
  for t in range(steps):
    state, metrics = step(state, batch, jax.random.key(t))
    losses.append(float(metrics["loss"]))
  return nnx.merge(GRAPH, state.params["net"]), losses


def test_plain_fusion_is_the_cross_entropy_of_the_module():
  batch = factories.tiny_batch()
  key = jax.random.split(jax.random.key(0))[0]  # Of the forward pass of the step.
  out = nnx.merge(GRAPH, START)(batch["inputs"], batch["present"], train=True, key=key)
  expected = mer_dg.cross_entropy(out.logits, batch["label"], where=batch["mask"])
  _, (loss,) = _trained("erm", batch, 1)
  assert loss == pytest.approx(float(expected), rel=1e-6)


def test_both_remedies_train_the_module():
  batch = factories.tiny_batch()
  trained, losses = _trained("mer_kde+mm", batch, STEPS)
  assert np.isfinite(losses).all()
  out = trained(batch["inputs"], batch["present"])
  hit = out.logits.argmax(axis=1) == batch["label"]
  assert hit[batch["mask"]].mean() > 0.85
  before, after = jax.tree.leaves(START), jax.tree.leaves(nnx.state(trained, nnx.Param))
  assert all((a != b).any() for a, b in zip(before, after, strict=True))
