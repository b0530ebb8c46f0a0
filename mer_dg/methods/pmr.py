"""PMR (Fan et al., CVPR 2023): the weaker modality is pulled to its class prototypes.

``alpha CE(-|z - mu_k|)`` of the modality whose prototypes tell the label worst. The
public code recomputes prototypes once an epoch, from the first tenth of the batches;
here they are moving means over every step's rows, so that no extra pass is needed (our
choice). With more than two modalities the weakest one counts; the paper's entropy
regulariser is not in the public script and not here.
"""

import jax
import jax.numpy as jnp

from mer_dg.losses import prototype_cross_entropy
from mer_dg.methods.term import WEIGHT, Hyperparameter, Spec, Term, needs_two

_FAR = 1e4  # Where a class has no prototype yet: no row is near it.


def make(task, options):
  del options
  needs_two(task, "pmr")
  classes = task.num_classes

  def init(key, task, params):
    del key, params
    zeros = {m: jnp.zeros((classes, d)) for m, d in task.width.items()}
    return {}, {"mean": zeros, "seen": {m: jnp.zeros(classes, bool) for m in zeros}}

  def loss(outputs, batch, ctx):
    label, values, scores = batch["label"], [], []
    for m in task.modalities:
      z, seen = outputs.embeddings[m], ctx.memory["seen"][m]
      mean = jnp.where(seen[:, None], ctx.memory["mean"][m], _FAR)
      rows = batch["present"][m] & seen[label]
      values.append(prototype_cross_entropy(z, label, mean, where=rows))
      near = jax.nn.softmax(-_distance(jax.lax.stop_gradient(z), mean))
      own = jnp.take_along_axis(near, label[:, None], axis=1)[:, 0]
      scores.append(jnp.sum(jnp.where(rows, own, 0.0)))
    weak = jnp.argmin(jnp.stack(scores))
    aux = {"z": jax.lax.stop_gradient(outputs.embeddings), "batch": batch}
    aux |= {f"pmr/weak/{m}": 1.0 * (weak == i) for i, m in enumerate(task.modalities)}
    return jnp.stack(values)[weak], aux

  def update(memory, aux, params, ctx):
    del params
    label, present = aux["batch"]["label"], aux["batch"]["present"]
    mean, seen = {}, {}
    for m in task.modalities:
      one_hot = jax.nn.one_hot(label, classes) * present[m][:, None]
      count = one_hot.sum(axis=0)
      new = one_hot.T @ aux["z"][m] / jnp.maximum(count, 1)[:, None]
      keep = jnp.where(memory["seen"][m], ctx.hyper["decay"], 0.0)
      keep = jnp.where(count > 0, keep, 1.0)[:, None]
      mean[m] = keep * memory["mean"][m] + (1 - keep) * new
      seen[m] = memory["seen"][m] | (count > 0)
    return {"mean": mean, "seen": seen}

  return Term(loss, init, update)


def _distance(z, mean):
  """Euclidean distances ``[B, K]``."""
  square = jnp.sum(z**2, 1)[:, None] + jnp.sum(mean**2, 1)[None, :] - 2 * z @ mean.T
  return jnp.sqrt(jnp.maximum(square, 0.0))


SPEC = Spec(
  "pmr",
  make,
  {
    "weight": WEIGHT._replace(search=(0.1, 3.0)),
    "decay": Hyperparameter(0.9, 0.0, 1.0),  # Of the prototypes, per step.
  },
  recipes={"pmr": {"pmr": {}}},
)
