"""AGM (Li et al., ICCV 2023), `agm`: a modality ahead of its running optimum learns
less.

The fused logits are the sum over modalities of their Shapley values phi_m, with the
fused classifier on every coalition (the empty one counts 0). The gradient that arrives
at phi_m is multiplied by ``exp(alpha min(tau_m - rho_m, 7))``, where ``rho_m = exp(M /
(M - 1) (s_m - mean s))``, ``s_m`` is the mean log-probability that phi_m gives to the
label, and ``tau_m`` the same of the running means of s.

As in the original, the coefficient acts on the unimodal output; the value is that of
plain fusion. The cap of 7 is that of one public benchmark, the authors have 10 in one
script and none elsewhere. That benchmark puts the negative log-likelihood in the place
of s, which damps the worse modality, scales encoder gradients, and leaves ``f(only m)``
out of the Shapley value: not here. 2^M - 1 passes of the fused classifier, so up to six
modalities. Scores are those of rows that have every modality.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.losses import cross_entropy, masked_mean
from mer_dg.methods import _parts
from mer_dg.methods.term import (
  WEIGHT,
  Hyperparameter,
  Spec,
  Term,
  needs_two,
  whole_rows,
)

_CAP = 7.0


def make(task, options):
  del options
  needs_two(task, "agm")
  if len(task.modalities) > 6:
    raise ValueError(f"agm tries 2^M coalitions; {len(task.modalities)} are too many.")
  coalitions, shares = shapley(len(task.modalities))

  def init(key, task, params):
    del key, params
    return {}, {"mean": jnp.zeros(len(task.modalities)), "count": jnp.float32(0.0)}

  def loss(outputs, batch, ctx):
    def value_of(here):
      here = {m: here[i] for i, m in enumerate(task.modalities)}
      logits = ctx.model.fuse(ctx.params, outputs.embeddings, here, train=True)
      some = jnp.any(jnp.stack(list(here.values())), axis=0)
      return jnp.where(some[:, None], logits, 0.0)

    present = jnp.stack([batch["present"][m] for m in task.modalities])  # [M, B]
    inside = jnp.asarray(coalitions)[:, :, None] & present[None]
    phi = jnp.tensordot(jnp.asarray(shares), jax.vmap(value_of)(inside), axes=1)
    rows, label = whole_rows(batch), batch["label"]
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(phi))  # [M, B, K]
    score = jax.vmap(lambda v: masked_mean(_parts.of_label(v, label), rows))(log_p)
    factor, memory = damping(ctx.memory, score, rows.any(), ctx.hyper["alpha"])
    # 0 in value; in the gradient the rest of what each phi_m is to get.
    rest = jnp.tensordot(factor - 1, phi - jax.lax.stop_gradient(phi), axes=1)
    value = cross_entropy(outputs.logits + rest, label, where=batch["mask"])
    aux = {"memory": memory, "accuracy": _parts.accuracy(outputs, batch)}
    return value, aux | {f"agm/{m}": factor[i] for i, m in enumerate(task.modalities)}

  return Term(loss, init, lambda memory, aux, params, ctx: aux["memory"])


def damping(memory, score, some, alpha):
  """``(factors [M], new running means)`` of scores [M]."""
  count = memory["count"] + some
  mean = memory["mean"] + some * (score - memory["mean"]) / jnp.maximum(count, 1.0)
  size = score.shape[0]
  # The bound keeps infinity minus infinity out; the cap is long reached there.
  ratio = lambda s: jnp.exp(jnp.clip(size / (size - 1) * (s - s.mean()), -20.0, 20.0))
  lead = jnp.where(some, ratio(mean) - ratio(score), 0.0)
  factor = jnp.exp(alpha * jnp.minimum(lead, _CAP))
  return factor, {"mean": mean, "count": count}


def shapley(size: int) -> tuple[np.ndarray, np.ndarray]:
  """Coalitions bool [C, M] but the empty one, and weights [M, C] of their values."""
  every = np.array(list(itertools.product([False, True], repeat=size)))[1:]
  ways = lambda k: math.factorial(k) * math.factorial(size - k - 1)
  # A coalition with m is added to one of a member less, one without is subtracted.
  share = lambda s, m: ways(s.sum() - 1) if s[m] else -ways(s.sum())
  shares = [[share(s, m) for s in every] for m in range(size)]
  shares = np.array(shares) / math.factorial(size)
  return every, shares.astype(np.float32)


SPEC = Spec(
  "agm",
  make,
  {"weight": WEIGHT, "alpha": Hyperparameter(0.1, 0.0, 1e3, search=(0.01, 1.0))},
  recipes={"agm": {"agm": {}}},
  replaces=("fused",),
  off={"weight": 1.0, "alpha": 0.0},
)
