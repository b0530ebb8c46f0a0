"""The pure training step and the pure evaluation, for one run.

Both vmap over the state; neither branches on values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mer_dg.data.arrays import Arrays, gather_batch, sample_batch
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


def make_predict(network):
  """Returns ``(variables, batch) -> Outputs`` in evaluation mode."""

  def predict(variables, batch):
    outputs, _ = network.apply(
      variables, batch["inputs"], batch["present"], train=False, key=None
    )
    return outputs

  return predict


def make_block(network):
  """Returns ``(variables, batch) -> (logits, missing, embeddings, present)``.

  In evaluation mode. ``missing`` is ``{m: logits}`` of the same rows with modality m
  taken away, ``{}`` for a single modality. Embeddings are fused again; no encoder runs
  twice.
  """
  predict = make_predict(network)

  def block(variables, batch):
    outputs, present = predict(variables, batch), batch["present"]
    names = network.modalities if len(network.modalities) > 1 else ()
    none = jnp.zeros_like(batch["mask"])
    missing = {
      m: network.fuse(variables, outputs.embeddings, {**present, m: none})
      for m in names
    }
    return outputs.logits, missing, outputs.embeddings, present

  return block


def make_summary(network, measure, inspect, repair, *, inspected: int = 256):
  """Returns the summary of an evaluation from the outputs on all its rows.

  Args:
    network: A `Network`.
    measure: ``(logits [n, K], missing {m: [n, K]}, repaired [n, K], label [n],
      domain [n], where [n]) -> metrics``; see `make_block` for ``missing``.
      ``repaired`` are logits with each modality from the row that ``repair`` says.
    inspect: ``(embeddings {m: [b, D]}, present {m: [b]}) -> metrics``; it is shown
      the source rows among the first ones.
    repair: ``(label [n], domain [n], where [n]) -> {m: int [n]}``, where ``where`` are
      the source rows; the others must stay as they are.
    inspected: How many rows ``inspect`` is shown.

  Returns:
    ``(variables, outputs, label, domain, where) -> metrics``; ``outputs`` is
    ``(logits, missing, embeddings, present)``, all with the leading axes
    ``[blocks, block]``.
  """

  def summary(variables, outputs, label, domain, where) -> Metrics:
    blocks = label.shape
    flat = lambda a: a.reshape(-1, *a.shape[2:])
    logits, missing, embeddings, present = jax.tree.map(flat, outputs)
    label, domain, where = map(flat, (label, domain, where))
    source = where & (domain >= 0)
    repaired = logits
    if len(network.modalities) > 1:
      partners = repair(label, domain, source)

      def fuse(rows):
        take = lambda values: {m: values[m][rows[m]] for m in network.modalities}
        return network.fuse(variables, take(embeddings), take(present))

      # In blocks, like the encoders: a fusion may be wide.
      in_blocks = jax.tree.map(lambda a: a.reshape(blocks), partners)
      repaired = flat(jax.lax.map(fuse, in_blocks))
    metrics = measure(logits, missing, repaired, label, domain, where)
    shown = {m: p[:inspected] & source[:inspected] for m, p in present.items()}
    return metrics | inspect({m: z[:inspected] for m, z in embeddings.items()}, shown)

  return summary


def make_evaluate(network, summary):
  """Returns ``(arrays, rows, domain, mask, variables) -> metrics`` for a set of rows.

  Args:
    network: A `Network`.
    summary: From `make_summary`.

  Returns:
    The evaluation of data that lies on the device; ``rows``, ``domain`` and
    ``mask`` are ``[blocks, block]``. Embeddings of all rows are held at once.
  """
  block = make_block(network)

  def evaluate(arrays: Arrays, rows, domain, mask, variables) -> Metrics:
    def one_block(place):
      batch = gather_batch(arrays, *place)
      return block(variables, batch), batch["label"]

    outputs, label = jax.lax.map(one_block, (rows, domain, mask))
    return summary(variables, outputs, label, domain, mask)

  return evaluate


def _gathered(arrays: Arrays, rows, domain, mask):
  return (gather_batch(arrays, *b) for b in zip(rows, domain, mask, strict=True))


def make_streamed_evaluate(
  network,
  summary,
  *,
  batches: Callable[..., Iterable[Any]] = _gathered,
  inputs: Callable[[Any], Any] = lambda batch: batch["inputs"],
):
  """`make_evaluate` for data that stays on the host; same arguments and metrics.

  Not to be jitted: one block at a time goes to the device.

  Args:
    network: A `Network`.
    summary: From `make_summary`.
    batches: ``(data, rows, domain, mask) -> batches``, one per block; ``data`` is
      the first argument of the evaluation.
    inputs: ``batch -> inputs`` of the network, run on the device.
  """
  plain, summarize = make_block(network), jax.jit(summary)
  block = jax.jit(lambda v, batch: plain(v, {**batch, "inputs": inputs(batch)}))

  def evaluate(data, rows, domain, mask, variables) -> Metrics:
    found = [  # The batch's own mask: a row that could not be read drops out.
      (block(variables, batch), batch["label"], batch["mask"])
      for batch in batches(data, rows, domain, mask)
    ]
    outputs, label, mask = jax.tree.map(lambda *blocks: jnp.stack(blocks), *found)
    return summarize(variables, outputs, label, domain, mask)

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
