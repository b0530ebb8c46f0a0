"""The pure training step and the pure evaluation, for one run.

Both vmap over the state; neither branches on values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mer_dg.data.arrays import Arrays, gather_batch, sample_batch
from mer_dg.data.sampling import Pool
from mer_dg.methods import Method
from mer_dg.training.state import TrainState, make_optimizer, run_keys

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
    net_key, method_key = jax.random.split(key)

    def loss_fn(params):
      variables = {"params": params, **state.constants}
      outputs, new_constants = network.apply(
        variables, batch["inputs"], batch["present"], train=True, key=net_key
      )
      fuse_key = jax.random.fold_in(net_key, 1)
      loss, (method_state, logged) = method.loss(
        outputs,
        batch,
        hyper=state.hyper["method"],
        state=state.method_state,
        step=state.step,
        key=method_key,
        fuse=lambda z, present: network.fuse(
          variables, z, present, train=True, key=fuse_key
        ),
        unimodal=lambda z: network.unimodal(variables, z),
      )
      return loss, (new_constants, method_state, logged)

    (loss, (new_constants, method_state, logged)), grads = jax.value_and_grad(
      loss_fn, has_aux=True
    )(state.params)
    optimizer = make_optimizer(
      state.hyper["optimizer"], schedule=schedule, total_steps=total_steps
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **logged}
    new_state = state.replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      constants={**state.constants, **new_constants},
      opt_state=opt_state,
      method_state=method_state,
    )
    return new_state, metrics

  return train_step


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


def make_predict(network):
  """Returns ``(variables, batch) -> Outputs`` in evaluation mode."""

  def predict(variables, batch):
    outputs, _ = network.apply(
      variables, batch["inputs"], batch["present"], train=False, key=None
    )
    return outputs

  return predict


def make_summary(measure, inspect):
  """Returns ``(logits, label, domain, where, embeddings, present) -> metrics``.

  Args:
    measure: ``(logits [n, K], label [n], domain [n], where [n]) -> metrics``.
    inspect: ``(embeddings {m: [b, D]}, present {m: [b]}) -> metrics``; it is shown
      the source rows among the first b rows.

  Returns:
    The summary of an evaluation from the outputs on all its rows; the first four
    arguments may have any number of leading axes, ``embeddings`` and ``present``
    are those of the first block.
  """

  def summary(logits, label, domain, where, embeddings, present) -> Metrics:
    flat = (label.reshape(-1), domain.reshape(-1), where.reshape(-1))
    metrics = measure(logits.reshape(-1, logits.shape[-1]), *flat)
    source = flat[1][: len(next(iter(present.values())))] >= 0
    return metrics | inspect(embeddings, {m: p & source for m, p in present.items()})

  return summary


def make_evaluate(network, summary):
  """Returns ``(arrays, rows, mask, domain, variables) -> metrics`` for a set of rows.

  Args:
    network: A `Network`.
    summary: From `make_summary`.

  Returns:
    The evaluation of data that lies on the device; ``rows``, ``mask`` and
    ``domain`` are ``[blocks, block]``.
  """
  predict = make_predict(network)

  def evaluate(arrays: Arrays, rows, mask, domain, variables) -> Metrics:
    def one_block(block):
      batch = gather_batch(arrays, *block)
      return predict(variables, batch).logits, batch["label"]

    logits, label = jax.lax.map(one_block, (rows, domain, mask))
    first = gather_batch(arrays, rows[0], domain[0], mask[0])
    embeddings = predict(variables, first).embeddings
    return summary(logits, label, domain, mask, embeddings, first["present"])

  return evaluate


def make_streamed_evaluate(network, summary):
  """`make_evaluate` for data that stays on the host; same arguments and metrics.

  Not to be jitted: one block at a time goes to the device.
  """
  predict, summarize = jax.jit(make_predict(network)), jax.jit(summary)

  def evaluate(arrays: Arrays, rows, mask, domain, variables) -> Metrics:
    batches = (gather_batch(arrays, *b) for b in zip(rows, domain, mask, strict=True))
    logits, label, inspected = [], [], []
    for batch in batches:
      outputs = predict(variables, batch)
      inspected = inspected or [outputs.embeddings, batch["present"]]
      logits.append(outputs.logits)
      label.append(batch["label"])
    return summarize(jnp.stack(logits), np.stack(label), domain, mask, *inspected)

  return evaluate


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
