"""A network of matrices, and terms run on it un-jitted: for hand calculations."""

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.contracts import Model, Outputs, Task
from mer_dg.losses import cross_entropy
from mer_dg.methods import SPECS, Context, hyperparameters_of, options_of

MODALITIES = ("b", "a")
ROWS, WIDTH, CLASSES = 8, 8, 3
TASK = Task(
  MODALITIES, CLASSES, num_domains=2, num_samples=ROWS, total_steps=10,
  widths=(WIDTH, WIDTH), fused_width=2 * WIDTH, projection_width=5,
)  # fmt: skip


def draw(*shape, seed=0, scale=1.0):
  values = scale * np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def near(found, expected, tolerance=1e-5):
  """Rounding of sums in another order."""
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
  jax.tree.map(close, found, expected)


def make_params(seed=0):
  shapes = {"fusion": (2 * WIDTH, CLASSES)}
  for m in MODALITIES:
    shapes |= {f"encoder_{m}": (4, WIDTH), f"head_{m}": (WIDTH, CLASSES)}
    shapes[f"projector_{m}"] = (WIDTH, 5)
  return {
    name: draw(*shape, seed=[seed, i], scale=0.5)
    for i, (name, shape) in enumerate(shapes.items())
  }


def make_batch(seed=0, mask=None, **present):
  mask = np.ones(ROWS, bool) if mask is None else mask
  return {
    "inputs": {m: draw(ROWS, 4, seed=[seed, i]) for i, m in enumerate(MODALITIES)},
    "present": {m: jnp.asarray(mask & present.get(m, True)) for m in MODALITIES},
    "label": jnp.arange(ROWS) % CLASSES,
    "domain": jnp.arange(ROWS) // (ROWS // 2),
    "index": jnp.arange(ROWS),
    "mask": jnp.asarray(mask),
  }


def heads(params, embeddings):
  return {m: z @ params[f"head_{m}"] for m, z in embeddings.items()}


def _joined(embeddings, present):
  parts = [jnp.where(present[m][:, None], embeddings[m], 0) for m in MODALITIES]
  return jnp.concatenate(parts, axis=1)


def fuse(params, embeddings, present, key=None, *, train=False):
  return _joined(embeddings, present) @ params["fusion"]


def apply(params, batch, key=None, *, train=False):
  present, z = batch["present"], {}
  for m in MODALITIES:
    z[m] = batch["inputs"][m] @ params[f"encoder_{m}"]
    z[m] = jnp.where(present[m][:, None], z[m], 0)
  return Outputs(
    z,
    {m: z[m] @ params[f"projector_{m}"] for m in MODALITIES},
    heads(params, z),
    _joined(z, present),
    fuse(params, z, present),
  )


def parts(params):
  return {name: name.replace("_", "/") for name in params}


MODEL = Model(MODALITIES, apply, fuse, heads, parts)


class Run:
  """A term with its own parameters, memory and numbers, at one step."""

  def __init__(self, name, task=TASK, *, step=0, key=1, options=None, **numbers):
    options = options_of(name, options or {})
    self.term = SPECS[name].make(task, options)
    declared = hyperparameters_of(name, options, task.modalities)
    self.hyper = {k: jnp.float32(n.default) for k, n in declared.items()}
    self.hyper |= {k: jnp.float32(v) for k, v in numbers.items()}
    self.params, self.step = make_params(), step
    self.own, self.memory = self.term.init(jax.random.key(0), task, self.params)
    self.key = jax.random.key(key)

  def context(self, params=None, own=None):
    return Context(
      self.params if params is None else params,
      self.own if own is None else own,
      self.memory, self.hyper, jnp.int32(self.step), self.key, MODEL,
    )  # fmt: skip

  def loss(self, batch, params=None, own=None, outputs=None):
    """``(value, aux)``; of the parameters, or of outputs made by hand."""
    context = self.context(params, own)
    outputs = apply(context.params, batch, train=True) if outputs is None else outputs
    return self.term.loss(outputs, batch, context)

  def gradient(self, batch):
    """Of the value in the parameters of the network."""
    return jax.grad(lambda params: self.loss(batch, params)[0])(self.params)

  def update(self, aux, params=None):
    params = self.params if params is None else params
    self.memory = self.term.update(self.memory, aux, params, self.context(params))
    self.step += 1


def unimodal(params, batch):
  """The sum of the heads' cross-entropies."""
  logits = apply(params, batch).unimodal_logits
  rows = batch["present"]
  return sum(
    cross_entropy(logits[m], batch["label"], where=rows[m]) for m in MODALITIES
  )
