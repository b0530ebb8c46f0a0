"""OGM-GE (Peng et al., CVPR 2022): the better modality's encoder learns more slowly.

``k_m = 1 - tanh(alpha rho_m)`` where modality m predicts better (``rho_m > 1``), else
1, times the gradient of its encoder, plus noise of the gradient's own deviation on
convolution kernels, as the public code has it (the paper scales the noise with the
modulated gradient). Scores are sums of label probabilities; with three modalities
``rho_m = s_m / min_j s_j``. The published head is linear and split by modality; ours is
not, so heads beside it measure: they are trained on detached embeddings, and nothing
else is.
"""

import jax
import jax.numpy as jnp

from mer_dg.contracts import named_key
from mer_dg.losses import cross_entropy, ogm_coefficients
from mer_dg.methods.term import (
  WEIGHT,
  Hyperparameter,
  Spec,
  Term,
  needs_two,
  scale_parts,
  transformation,
)


def make(task, options):
  del options
  needs_two(task, "ogm_ge")

  def loss(outputs, batch, ctx):
    label, rows = batch["label"], batch["present"]
    logits = ctx.model.heads(ctx.params, jax.lax.stop_gradient(outputs.embeddings))
    value, scores = jnp.float32(0.0), {}
    for m in task.modalities:
      value += cross_entropy(logits[m], label, where=rows[m])
      p = jax.nn.softmax(jax.lax.stop_gradient(logits[m]))
      chosen = jnp.take_along_axis(p, label[:, None], axis=1)[:, 0]
      scores[m] = jnp.sum(jnp.where(rows[m], chosen, 0.0))
    factors = ogm_coefficients(scores, alpha=ctx.hyper["alpha"])
    aux = {"factors": factors} | {f"ogm/{m}": k for m, k in factors.items()}
    return value, aux

  def transform(hyper):
    def update(grads, state, params, *, gradient, aux, key, model, **_):
      del params
      factors = {f"encoder/{m}": k for m, k in aux["factors"].items()}
      grads = scale_parts(grads, model, factors)
      parts = model.parts(grads["net"])
      noise = _noise(key, gradient["net"], parts, factors)
      net = jax.tree.map(lambda g, e: g + hyper["noise"] * e, grads["net"], noise)
      return {**grads, "net": net}, state

    return transformation(update)

  return Term(loss, transform=transform)


def _noise(key, grads, parts, encoders):
  """Normal noise with the deviation of each convolution kernel's gradient."""

  def leaf(path, g, part):
    if part not in encoders or g.ndim < 3:
      return jnp.zeros_like(g)
    own = named_key(key, jax.tree_util.keystr(path))
    return (jnp.std(g) + 1e-8) * jax.random.normal(own, g.shape, g.dtype)

  return jax.tree.map_with_path(leaf, grads, parts)


SPEC = Spec(
  "ogm_ge",
  make,
  {
    "weight": WEIGHT,  # Of the heads that measure.
    "alpha": Hyperparameter(0.3, 0.0, 1e3, search=(0.1, 1.0)),
    "noise": Hyperparameter(1.0, 0.0, 1e3),
  },
  recipes={"ogm_ge": {"ogm_ge": {}}},
  off={"weight": 0.0, "alpha": 0.0, "noise": 0.0},
)
