"""Everything a run is at one step: a pytree that can be stacked over runs."""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import optax

from mer_dg.contracts import named_key

SCHEDULES = ("constant", "cosine")


class TrainState(struct.PyTreeNode):
  """State of a run; the step maps one to the next.

  Attributes:
    step: int32 scalar, steps taken.
    key: Key of the run; every random draw is a function of it and the step.
    params: Trainable parameters, ``{"net": of the network, "terms": {term: own}}``.
    model_state: Other collections of the network: input scaling, running statistics.
    opt_state: State of the optimiser, transformations of terms included.
    memory: ``{term: what it remembers}``.
    hyper: ``{"optimizer": {"lr", "weight_decay"}, "network": {rate of dropout},
      "method": {term: {...}}}`` as float32 scalars; array values, so that vmapped runs
      may differ in them.
  """

  step: jax.Array
  key: jax.Array
  params: Any
  model_state: Any
  opt_state: optax.OptState
  memory: Any
  hyper: Any

  @property
  def variables(self) -> dict[str, Any]:
    """What the network takes as ``variables``: the parameters that train."""
    return {"params": self.params["net"], **self.model_state}


class RunKeys(NamedTuple):
  """The independent random streams of a run."""

  init: jax.Array
  order: jax.Array
  step: jax.Array


def run_keys(key: jax.Array) -> RunKeys:
  """Streams of a run: initial weights, data order, noise inside the step.

  They depend on the seed alone, so that methods are compared on the same
  initial weights and the same batches.
  """
  return RunKeys(*(jax.random.fold_in(key, i) for i in range(3)))


def evaluated(state: TrainState, method) -> dict[str, Any]:
  """``variables`` that are evaluated: the method may average parameters."""
  params = method.eval_params(state.params["net"], state.memory)
  return {"params": params, **state.model_state}


def judge(state: TrainState, method, measure, rows, *, remember, choose):
  """The state after its terms saw an evaluation, and the metrics of its records.

  Args:
    state: Of one run, or stacked over runs.
    method: Its `Method`.
    measure: ``(variables, rows) -> metrics``.
    rows: A list of what is measured; terms see the first.
    remember: ``(memory, metrics) -> memory``, `Method.on_eval`, compiled.
    choose: ``state -> variables`` that are evaluated.

  Returns:
    ``(state, metrics of each of rows)``.
  """
  if method.watches:
    seen = measure(state.variables, rows[0])
    state = state.replace(memory=remember(state.memory, seen))
    if not method.averages:
      return state, [seen, *(measure(state.variables, other) for other in rows[1:])]
  variables = choose(state)
  return state, [measure(variables, own) for own in rows]


def make_optimizer(hyper, *, schedule: str, total_steps: int):
  """Adam with coupled L2, as the reference code has it (not AdamW).

  Args:
    hyper: ``{"lr", "weight_decay"}``; scalars, possibly traced.
    schedule: "constant" or "cosine" (to 0 at ``total_steps``).
    total_steps: Horizon of the schedule, static.

  Returns:
    An optax transformation whose state has the same structure for every
    ``hyper``.
  """
  if schedule == "cosine":
    decay = optax.cosine_decay_schedule(1.0, total_steps)
  elif schedule == "constant":
    decay = optax.constant_schedule(1.0)
  else:
    raise ValueError(f"schedule={schedule!r} is not one of {SCHEDULES}.")
  return optax.chain(
    optax.add_decayed_weights(hyper["weight_decay"]),
    optax.scale_by_adam(),
    optax.scale_by_schedule(decay),
    optax.scale_by_learning_rate(hyper["lr"]),
  )


def make_hyper(network, method, optimizer) -> dict[str, dict]:
  """The default numeric hyperparameters of a run, as `TrainState` holds them.

  Args:
    network: A `Network`.
    method: A `Method`.
    optimizer: ``{"lr", "weight_decay"}``.
  """
  return {
    "optimizer": {k: float(optimizer[k]) for k in ("lr", "weight_decay")},
    "network": dict(network.rates),
    "method": {term: dict(numbers) for term, numbers in method.hyper.items()},
  }


def whole_optimizer(method, hyper, *, schedule: str, total_steps: int):
  """The optimiser with what the terms of the method put before and around it."""
  base = make_optimizer(hyper["optimizer"], schedule=schedule, total_steps=total_steps)
  return method.optimizer(hyper["method"], base)


def make_state(
  network,
  method,
  *,
  seed,
  scaling,
  hyper,
  schedule,
  total_steps,
  variables=None,
):
  """The state before the first step.

  Args:
    network: A `Network`.
    method: A `Method`.
    seed: int32 scalar; may be traced, so that it can be vmapped.
    scaling: Input scaling fitted on the source training rows, of which the network
      takes what it has; a modality that it leaves out keeps the network's own, the
      identity.
    hyper: As in `TrainState`, see `make_hyper`.
    schedule: As in `make_optimizer`.
    total_steps: As in `make_optimizer`.
    variables: Of the network, if others than its own initial ones.

  Returns:
    A `TrainState`.
  """
  key = jax.random.key(seed)
  init_key = run_keys(key).init
  variables = dict(network.init(init_key) if variables is None else variables)
  net = variables.pop("params")
  # Copies: memory that starts as the parameters must not share their buffers, which the
  # step is given to reuse. With a dtype: a Python number would compile the step twice.
  own, memory = jax.tree.map(
    lambda a: jnp.array(a, jnp.result_type(a)),
    method.init(named_key(init_key, "terms"), net),
  )
  fitted = {
    m: {k: scaling.get(m, own)[k] for k in own}
    for m, own in variables["scaling"].items()
  }
  hyper = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), hyper)
  params = {"net": net, "terms": own}
  optimizer = whole_optimizer(method, hyper, schedule=schedule, total_steps=total_steps)
  return TrainState(
    step=jnp.int32(0),
    key=key,
    params=params,
    model_state={**variables, "scaling": fitted},
    opt_state=optimizer.init(params),
    memory=memory,
    hyper=hyper,
  )
