"""Everything a run is at one step: a pytree that can be stacked over runs."""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine")


class TrainState(struct.PyTreeNode):
  """State of a run; the step maps one to the next.

  Attributes:
    step: int32 scalar, steps taken.
    key: Key of the run; every random draw is a function of it and the step.
    params: Trainable parameters.
    constants: Other collections of the network, such as its input scaling.
    opt_state: State of the optimiser.
    method_state: State of the method's terms.
    hyper: ``{"optimizer": {"lr", "weight_decay"}, "method": {term: {...}}}`` as
      float32 scalars; array values, so that vmapped runs may differ in them.
  """

  step: jax.Array
  key: jax.Array
  params: Any
  constants: Any
  opt_state: optax.OptState
  method_state: Any
  hyper: Any

  @property
  def variables(self) -> dict[str, Any]:
    """What the network takes as ``variables``."""
    return {"params": self.params, **self.constants}


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


def make_state(network, method, *, seed, scaling, hyper, schedule, total_steps):
  """The state before the first step.

  Args:
    network: A `Network`.
    method: A `Method`.
    seed: int32 scalar; may be traced, so that it can be vmapped.
    scaling: Input scaling fitted on the source training rows; a modality that it
      leaves out keeps the network's own, the identity.
    hyper: As in `TrainState`.
    schedule: As in `make_optimizer`.
    total_steps: As in `make_optimizer`.

  Returns:
    A `TrainState`.
  """
  key = jax.random.key(seed)
  variables = dict(network.init(run_keys(key).init))
  params = variables.pop("params")
  hyper = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), hyper)
  optimizer = make_optimizer(
    hyper["optimizer"], schedule=schedule, total_steps=total_steps
  )
  return TrainState(
    step=jnp.int32(0),
    key=key,
    params=params,
    constants={**variables, "scaling": {**variables["scaling"], **scaling}},
    opt_state=optimizer.init(params),
    method_state=method.init_state(),
    hyper=hyper,
  )
