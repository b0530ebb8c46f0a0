"""Pieces that several methods share, each written once."""

import itertools

import jax
import jax.numpy as jnp

from mer_dg.contracts import named_key
from mer_dg.entropy import unit_sphere
from mer_dg.losses import (
  cross_entropy,
  entropy_weights,
  masked_mean,
  shared_specific_distance,
  supervised_contrastive,
  translation_distance,
)
from mer_dg.methods.term import SHARE, Hyperparameter, whole_rows
from mer_dg.networks import init_mlp, mlp

_PROJECTION = 128


def needs_domains(task, method: str) -> None:
  """Raises a ValueError for a task with one source domain."""
  if task.num_domains < 2:
    raise ValueError(f"{method} needs two source domains, not {task.num_domains}.")


def needs_rows(task, method: str) -> None:
  """Raises a ValueError where a batch has one row of each domain."""
  if task.domain_rows == 1:
    raise ValueError(
      f"{method} needs two rows of a source domain in a batch, not 1: "
      f"config.batch_size must be at least {2 * task.num_domains}."
    )


def needs_halves(task, method: str) -> None:
  """Raises a ValueError for embeddings that have no two halves."""
  if odd := {m: d for m, d in task.width.items() if d % 2}:
    raise ValueError(f"{method} halves the embeddings; their widths {odd} are odd.")


# Translators between all modalities, and projectors of the shared halves (SimMMDG).


SHARED_AND_SPECIFIC = {
  "translation": Hyperparameter(0.1, 0.0, 1e3, search=(0.01, 1.0)),
  "contrast": Hyperparameter(3.0, 0.0, 1e3, search=(0.1, 5.0)),
  "split": Hyperparameter(0.7, 0.0, 1e3, search=(0.01, 1.0)),
  "temperature": Hyperparameter(0.1, 1e-3, 1e3),
}


def _hidden(task) -> int:
  """As wide as published where embeddings are."""
  return 2048 if max(task.widths) >= 512 else 128


def init_translators(key, task) -> dict:
  own, hidden = {}, _hidden(task)
  for a, b in itertools.permutations(task.modalities, 2):
    widths = (task.width[a], hidden, hidden, task.width[b])
    own[f"translate_{a}_{b}"] = init_mlp(named_key(key, f"{a}/{b}"), widths)
  return own


def translate(own, z, key) -> dict:
  """``{(a, b): [B, D_b]}`` of all ordered pairs of ``z``."""
  pairs = itertools.permutations(z, 2)
  params, name = (lambda a, b: own[f"translate_{a}_{b}"]), "{}/{}".format
  return {
    (a, b): mlp(params(a, b), z[a], dropout=0.5, key=named_key(key, name(a, b)))
    for a, b in pairs
  }


def init_projectors(key, task) -> dict:
  hidden = _hidden(task)
  widths = {m: (d // 2, hidden, hidden, _PROJECTION) for m, d in task.width.items()}
  return {f"project_{m}": init_mlp(named_key(key, m), w) for m, w in widths.items()}


def project_shared(own, z) -> dict:
  """Projections of the first halves, unit rows ``{m: [B, 128]}``."""
  half = lambda x: x[:, : x.shape[1] // 2]
  return {
    m: unit_sphere(mlp(own[f"project_{m}"], half(x), normalize=True))
    for m, x in z.items()
  }


def shared_and_specific(own, z, batch, key, *, temperature, shown=None) -> dict:
  """The three losses of SimMMDG; translators see ``shown`` in the place of ``z``."""
  rows, label = whole_rows(batch), batch["label"]
  translated = translate(own, z if shown is None else shown, key)
  shared = project_shared(own, z)
  contrast = supervised_contrastive(shared, label, temperature=temperature, where=rows)
  return {
    "translation": translation_distance(translated, z, where=rows),
    "contrast": contrast,
    "split": shared_specific_distance(z, where=rows),
  }


# Averages of weights.


def ema_share(beta, step):
  """Share of the new weights, with bias warm-up; t counts from 1."""
  t = step + 1.0
  return 1.0 - jnp.minimum(beta, (1 + t) / (10 + t))


def sma_share(start, step):
  """Share of the new weights in a uniform mean from step ``start`` on."""
  return 1.0 / jnp.maximum(step + 1.0 - start, 1.0)


def average(mean, params, share):
  blend = lambda a, p: ((1 - share) * a + share * p).astype(p.dtype)
  return jax.tree.map(blend, mean, params)


# Schedules.


# Shares of training: before a term starts, and over which it then ramps up.
RAMP = {"start": SHARE, "ramp": SHARE}


def ramp(ctx, task):
  """0 before the term starts, 1 after its ramp."""
  # In steps, and a ramp of at least one: a share would round to either side of 0.
  since = ctx.step + 1 - ctx.hyper["start"] * task.total_steps
  length = jnp.maximum(ctx.hyper["ramp"] * task.total_steps, 1.0)
  return jnp.clip(since / length, 0.0, 1.0)


# Domains.


def by_domain(batch, num_domains: int, rows=None):
  """bool ``[S, B]``: the rows (all, or ``rows``) of each source domain."""
  rows = batch["mask"] if rows is None else rows
  return (batch["domain"][None, :] == jnp.arange(num_domains)[:, None]) & rows[None, :]


def domain_risks(logits, batch, num_domains: int):
  """Cross-entropy of each source domain, 0 without rows, and which have some."""
  member = by_domain(batch, num_domains)
  risk = lambda rows: cross_entropy(logits, batch["label"], where=rows)
  return jax.vmap(risk)(member), member.any(axis=1)


def distance_of_domains(distance, features: str, outputs, batch, modalities):
  """``distance(z, where)`` of the fused feature, or its mean over modalities."""
  if features == "fused":
    return distance(outputs.fused, whole_rows(batch))
  each = [distance(outputs.embeddings[m], batch["present"][m]) for m in modalities]
  return jnp.mean(jnp.stack(each))


SCOPES = ("batch", "per_domain", "per_class", "per_class_and_domain")


def over_groups(each, batch, where, scope: str, task):
  """``each(rows)`` of the rows in ``where``, or its mean over groups of them.

  Groups of at least two rows count; of classes, by the number of their rows.
  """
  if scope == "batch":
    return each(where)
  domain, label = batch["domain"], batch["label"]
  group, count = {
    "per_domain": (domain, task.num_domains),
    "per_class": (label, task.num_classes),
    "per_class_and_domain": (
      label * task.num_domains + domain,
      task.num_classes * task.num_domains,
    ),
  }[scope]
  rows = (group[None, :] == jnp.arange(count)[:, None]) & where[None, :]  # [G, B]
  size = jnp.sum(rows, axis=-1)
  weight = jnp.where(size >= 2, 1 if scope == "per_domain" else size, 0)
  return jax.tree.map(lambda v: masked_mean(v, weight), jax.vmap(each)(rows))


# Gradients.


def agree(c, d, c_gives_way, model):
  """``c + d``; where a modality's conflict, one is projected away from the other.

  Args:
    c: Gradient of the network.
    d: Another one.
    c_gives_way: ``{m: bool scalar}``, which one is projected, over encoder and head.
    model: Says what belongs to which part.
  """
  parts = jax.tree.leaves(model.parts(c))
  leaves, tree = jax.tree.flatten(jax.tree.map(jnp.add, c, d))
  c, d = jax.tree.leaves(c), jax.tree.leaves(d)
  for m, gives in c_gives_way.items():
    place = [i for i, p in enumerate(parts) if p in (f"encoder/{m}", f"head/{m}")]
    onto = [jnp.where(gives, d[i], c[i]) for i in place]
    dot = sum(jnp.vdot(c[i], d[i]) for i in place)
    square = jnp.maximum(sum(jnp.vdot(g, g) for g in onto), 1e-12)
    for i, g in zip(place, onto, strict=True):
      leaves[i] -= jnp.minimum(dot, 0.0) / square * g
  return jax.tree.unflatten(tree, leaves)


# Discriminators: a branch for each modality, one classifier behind all of them.


def branch_width(task) -> int:
  return 512 if max(task.widths) >= 512 else 128


def init_discriminator(key, task, name: str, classes: int, *, deep: bool) -> dict:
  hidden = branch_width(task)
  widths = (hidden, hidden // 2, classes) if deep else (hidden, classes)
  own = {name: init_mlp(named_key(key, name), widths)}
  for m, d in task.width.items():
    own[f"{name}_{m}"] = init_mlp(named_key(key, f"{name}/{m}"), (d, hidden))
  return own


def discriminate(own, name: str, m: str, z, key):
  """Logits ``[B, classes]``; dropout 0.5 behind the branch."""
  h = jax.nn.relu(mlp(own[f"{name}_{m}"], z))
  kept = jax.random.bernoulli(named_key(key, f"{name}/{m}"), 0.5, h.shape)
  return mlp(own[name], jnp.where(kept, 2 * h, 0), normalize=True)


# Predictions.


def unimodal_losses(logits, batch, modalities) -> dict:
  """Cross-entropy of each head over the rows that have its modality."""
  label, present = batch["label"], batch["present"]
  return {m: cross_entropy(logits[m], label, where=present[m]) for m in modalities}


def accuracy(outputs, batch):
  """Of the full input, for losses that stand in for the fused one."""
  correct = jnp.argmax(outputs.logits, axis=-1) == batch["label"]
  return masked_mean(correct, batch["mask"])


def entropy_of(logits):
  """Shannon entropy of each row of softmax probabilities, in nats."""
  log_p = jax.nn.log_softmax(logits)
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def of_label(values, label):
  """``values[i, label[i]]``."""
  return jnp.take_along_axis(values, label[:, None], axis=1)[:, 0]


def weighted_heads(logits, label, here, temperature):
  """``(mean_i sum_j w_ij CE_ij, mean_j mean_i H_ij)``; ``here`` is bool [B, heads]."""
  seen = zip(logits.items(), here.T, strict=True)
  logits = {head: jnp.where(rows[:, None], v, 0) for (head, v), rows in seen}
  weights = entropy_weights(logits, temperature=temperature) * here
  weights /= jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1e-12)
  nll = [-of_label(jax.nn.log_softmax(v), label) for v in logits.values()]
  entropy = [entropy_of(v) for v in logits.values()]
  mean = jax.vmap(masked_mean, in_axes=1)(jnp.stack(entropy, axis=1), here)
  total = jnp.sum(weights * jnp.stack(nll, axis=1), axis=1)
  return masked_mean(total, here[:, -1]), jnp.mean(mean)
