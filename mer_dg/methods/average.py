"""Averages of weights that are evaluated in place of the last: `ema` and `sma`.

``ema``: ``mean <- beta mean + (1 - beta) theta`` with the bias warm-up
``min(beta, (1 + t) / (10 + t))``, t from 1 (methods.md 4.18). ``sma``: the uniform mean
of the weights from step ``start`` on, that of the step itself included (Arpit et al.,
Ensemble of Averages, 2022).
"""

import jax
import jax.numpy as jnp

from mer_dg.methods.term import Number, Spec, Term


def make(task, options):
  def init(key, task, params):
    del key, task
    return {}, params

  def share_of_new(step, hyper):
    t = step + 1.0
    if options["kind"] == "ema":
      return 1.0 - jnp.minimum(hyper["beta"], (1 + t) / (10 + t))
    since = t - jnp.round(hyper["start"] * task.total_steps)
    return 1.0 / jnp.maximum(since, 1.0)

  def update(mean, aux, params, ctx):
    del aux
    new = share_of_new(ctx.step, ctx.hyper)
    return jax.tree.map(
      lambda a, p: ((1 - new) * a + new * p).astype(p.dtype), mean, params
    )

  return Term(init=init, update=update, eval_params=lambda params, mean: mean)


SPEC = Spec(
  "average",
  make,
  lambda options: (
    {"beta": Number(0.999, 0.0, 1.0)}
    if options["kind"] == "ema"
    else {"start": Number(0.2, 0.0, 1.0)}
  ),
  options={"kind": ("ema", "sma")},
  recipes={
    "ema": {"average": {"kind": "ema"}},
    "sma": {"average": {"kind": "sma"}},
  },
  off={},
)
