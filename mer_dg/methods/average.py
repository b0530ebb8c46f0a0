"""Averages of weights that are evaluated in place of the last: `ema` and `sma`.

``ema``: ``mean <- beta mean + (1 - beta) theta`` with the bias warm-up
``min(beta, (1 + t) / (10 + t))``, t from 1 (methods.md 4.18). ``sma``: the uniform mean
of the weights from step ``start`` on, that of the step itself included (Arpit et al.,
Ensemble of Averages, 2022).
"""

import jax.numpy as jnp

from mer_dg.methods import _parts
from mer_dg.methods.term import Hyperparameter, Spec, Term


def make(task, options):
  def init(key, task, params):
    del key, task
    return {}, params

  def update(mean, aux, params, ctx):
    del aux
    if options["kind"] == "ema":
      share = _parts.ema_share(ctx.hyper["beta"], ctx.step)
    else:
      start = jnp.round(ctx.hyper["start"] * task.total_steps)
      share = _parts.sma_share(start, ctx.step)
    return _parts.average(mean, params, share)

  return Term(init=init, update=update, eval_params=lambda params, mean: mean)


SPEC = Spec(
  "average",
  make,
  lambda options: (
    {"beta": Hyperparameter(0.999, 0.0, 1.0)}
    if options["kind"] == "ema"
    else {"start": Hyperparameter(0.2, 0.0, 1.0)}
  ),
  options={"kind": ("ema", "sma")},
  recipes={
    "ema": {"average": {"kind": "ema"}},
    "sma": {"average": {"kind": "sma"}},
  },
  off={},
)
