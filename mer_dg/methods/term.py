"""What a term of the training objective is, and what it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import types
from typing import Any, NamedTuple

import jax

# What a term returns: its value (a float32 scalar, finite for every mask), its
# next state and the scalars it logs.
TermResult = tuple[jax.Array, Any, dict[str, jax.Array]]


class Task(NamedTuple):
  """Static facts of a training task; runs that share them share a program.

  Attributes:
    modalities: Names, in the order of the config.
    num_classes: K.
    num_domains: S, the number of source domains.
    num_samples: N, the number of stable sample ids (for tables over samples).
    total_steps: Length of training, for schedules.
  """

  modalities: tuple[str, ...]
  num_classes: int
  num_domains: int
  num_samples: int
  total_steps: int


class Context(NamedTuple):
  """What a term may use besides the network's outputs and the batch.

  Attributes:
    hyper: This term's numeric hyperparameters, ``{name: float32 scalar}``.
      They may differ between vmapped runs.
    state: This term's state, as its ``init_state`` shaped it.
    step: int32 scalar, steps taken so far.
    key: PRNG key of this term and this step.
    fuse: ``(embeddings, present) -> logits`` with the current parameters.
    unimodal: ``embeddings -> {modality: logits}`` with the current heads.
  """

  hyper: Mapping[str, jax.Array]
  state: Any
  step: jax.Array
  key: jax.Array
  fuse: Callable[..., jax.Array]
  unimodal: Callable[..., dict[str, jax.Array]]


class Control(NamedTuple):
  """What a term asks of the rest of a step, before anything is computed.

  Attributes:
    others: float32 scalar, factor of all other terms.
    learns: ``{modality: bool scalar}``; an encoder (with its projector) for which it
      is False is left as it is, parameters and optimiser moments. Modalities that are
      not named learn.
  """

  others: jax.Array
  learns: Mapping[str, jax.Array]


class Term(NamedTuple):
  """A ready term: ``loss(outputs, batch, context) -> TermResult``.

  Attributes:
    init_state: ``() -> state``, a (possibly empty) pytree of arrays.
    loss: The pure function; the weight of the term is applied by the method.
    control: ``(hyper, state, step) -> Control``, with the term's own numbers and state
      before the step; or None for a term that asks nothing.
    inner_step: Name of the number that holds a step length; the term is then taken
      at the parameters after a gradient step of this length, by all other terms, on
      the encoders. "" takes it at the parameters themselves.
  """

  init_state: Callable[[], Any]
  loss: Callable[[Any, Any, Context], TermResult]
  control: Callable[[Mapping, Any, jax.Array], Control] | None = None
  inner_step: str = ""


class Numeric(NamedTuple):
  """A numeric hyperparameter: default and the closed range it may lie in."""

  default: float
  low: float
  high: float


class TermSpec(NamedTuple):
  """A kind of term, as the config sees it.

  Attributes:
    make: ``(task, options) -> Term`` for static ``options``.
    numeric: ``{name: Numeric}``; every term also has ``weight``.
    options: ``{name: allowed values}``; the first one is the default.
    only: ``{number: (option, values)}``: numbers that exist for these values of
      an option only. Elsewhere they would be without effect, hence an error.
    per_modality_weight: Whether the term also has the numbers
      ``weight_<modality>``, which default to 1.
  """

  make: Callable[[Task, Mapping[str, Any]], Term]
  numeric: Mapping[str, Numeric]
  options: Mapping[str, tuple[Any, ...]]
  only: Mapping[str, tuple[str, tuple[Any, ...]]] = types.MappingProxyType({})
  per_modality_weight: bool = False


def stateless(loss: Callable[[Any, Any, Context], tuple]) -> Term:
  """A term without state from ``loss -> (value, logged scalars)``."""

  def with_state(outputs, batch, context):
    value, logged = loss(outputs, batch, context)
    return value, context.state, logged

  return Term(init_state=lambda: (), loss=with_state)
