"""The pure training step of one run: it vmaps over the state, branches on no value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np
import optax

from mer_dg.data.arrays import Arrays, sample_batch
from mer_dg.data.sampling import Pool
from mer_dg.methods import Method, Moment
from mer_dg.training.state import TrainState, run_keys, whole_optimizer

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Any, jax.Array], tuple[TrainState, Metrics]]


def make_train_step(
  network, method: Method, *, schedule: str, total_steps: int
) -> Step:
  """Returns ``(state, batch, key) -> (state, metrics)``.

  Args:
    network: A `Network`; the seam is all the step knows of it.
    method: The training objective.
    schedule: Learning-rate schedule, see `make_optimizer`.
    total_steps: Its horizon.

  Returns:
    The step: pure, and vmappable over its first argument.
  """

  def train_step(state: TrainState, batch, key):
    _check_batch(batch)
    net_key, method_key = jax.random.split(key)
    rates = state.hyper["network"]
    model = network.model(state.model_state, rates, net_key)
    moment = Moment(state.hyper["method"], state.step, method_key, model)

    def objective(params, only=()):
      variables = {"params": params["net"], **state.model_state}
      outputs, moved = network.apply(
        variables, batch["inputs"], batch["present"],
        train=True, key=net_key, rates=rates,
      )  # fmt: skip
      loss, found = method.loss(params, outputs, batch, state.memory, moment, only)
      return loss, (found, moved)

    def grad_fn(params, only=()):
      return jax.grad(objective, has_aux=True)(params, tuple(only))[0]

    whole = jax.value_and_grad(objective, has_aux=True)
    (loss, (found, moved)), grads = whole(state.params)
    optimizer = whole_optimizer(
      method, state.hyper, schedule=schedule, total_steps=total_steps
    )
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.params,
      gradient=grads, grad_fn=grad_fn, found=found, step_key=method_key,
      step=state.step, model=model,
    )  # fmt: skip
    params = optax.apply_updates(state.params, updates)
    new_state = state.replace(
      step=state.step + 1,
      params=params,
      model_state={**state.model_state, **moved},
      opt_state=opt_state,
      memory=method.update(state.memory, found, params, moment),
    )
    metrics = {
      "loss": loss,
      "grad_norm": optax.tree.norm(grads),
      **method.logged(found),
    }
    return new_state, metrics

  return train_step


def _check_batch(batch) -> None:
  """Raises an AssertionError, while tracing, for what no loss would complain about."""
  masks = [batch["mask"], *batch["present"].values()]
  rows = [*masks, batch["label"], batch["domain"]]
  chex.assert_type(masks, bool)
  chex.assert_type([batch["label"], batch["domain"]], int)
  chex.assert_rank(rows, 1)
  chex.assert_equal_shape_prefix([*rows, *batch["inputs"].values()], 1)


def make_resident_chunk(step: Step, *, per_domain: int, length: int):
  """Returns ``(arrays, pool, state) -> (state, metrics)`` over ``length`` steps.

  Batches are drawn inside the compiled program. Metrics are stacked over steps,
  ``[length]`` each.
  """

  def chunk(arrays: Arrays, pool: Pool, state: TrainState):
    keys = run_keys(state.key)

    def body(state, _):
      batch = sample_batch(arrays, keys.order, state.step, pool, per_domain)
      return step(state, batch, jax.random.fold_in(keys.step, state.step))

    return jax.lax.scan(body, state, length=length)

  return chunk


def first_nonfinite(metrics, start: int) -> tuple[int, str] | None:
  """First step and metric that is not finite in metrics stacked over steps.

  Args:
    metrics: ``{name: [length]}`` host arrays of steps ``start + 1 ...``.
    start: Steps taken before.

  Returns:
    ``(step, name)``, terms before their sum, or None if all are finite.

  Example:
    >>> first_nonfinite({"loss": np.array([0, np.nan])}, start=10)
    (12, 'loss')
  """
  worst = None
  for name in sorted(metrics, key=lambda n: (not n.startswith("loss/"), n)):
    bad = np.flatnonzero(~np.isfinite(metrics[name]))
    if bad.size and (worst is None or start + int(bad[0]) + 1 < worst[0]):
      worst = (start + int(bad[0]) + 1, name)
  return worst
