"""The seam: what a term of a method may be, and what it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import types
from typing import Any, NamedTuple

import jax
import optax

from mer_dg.contracts import Batch, Model, Outputs, Task

Transformation = optax.GradientTransformationExtraArgs


class MethodError(ValueError):
  """A method names something that does not exist, or does what it must not."""


class Context(NamedTuple):
  """What a term may use besides the network's outputs and the batch.

  Attributes:
    params: Parameters of the network, those that gradients are taken at.
    own: The term's own parameters, as its ``init`` made them; they train with the rest.
    memory: What it remembers; read in ``loss``, replaced by ``update``.
    hyper: Its numeric hyperparameters, ``{name: float32 scalar}``. They may differ
      between vmapped runs.
    step: int32 scalar, steps taken so far.
    key: PRNG key of this term and this step. It is named after the term: adding another
      term changes nobody's draws.
    model: The network as pure functions of parameters.
  """

  params: Any
  own: Any
  memory: Any
  hyper: Mapping[str, jax.Array]
  step: jax.Array
  key: jax.Array
  model: Model


class Moment(NamedTuple):
  """One step, for all terms alike; `Context` is one term's share of it.

  Attributes:
    hyper: ``{term: {number: float32 scalar}}``.
    step: int32 scalar, steps taken so far.
    key: PRNG key of the step.
    model: The network.
  """

  hyper: Mapping[str, Mapping[str, jax.Array]]
  step: jax.Array
  key: jax.Array
  model: Model


def _no_loss(outputs: Outputs, batch: Batch, ctx: Context):
  del outputs, batch, ctx
  return jax.numpy.float32(0.0), {}


def _nothing(key: jax.Array, task: Task, params: Any):
  del key, task, params
  return {}, {}


def _same(memory, aux, params, ctx):
  del aux, params, ctx
  return memory


class Term(NamedTuple):
  """One additive piece of an objective, with its own parameters and memory.

  Whatever is a loss is ``loss``; whatever is not a loss is an optax transformation;
  whatever is averaged is ``eval_params``.

  Attributes:
    loss: ``(outputs, batch, ctx) -> (value, aux)``: a float32 scalar, finite for every
      mask, and a dict. Pure; its weight is applied by the method. Scalars in ``aux``
      are logged under their keys; the rest is for ``update`` and ``transform``.
    init: ``(key, task, params) -> (own parameters, memory)`` from those of the network.
      Own parameters are a dict and live under ``params["terms"][name]``.
    update: ``(memory, aux, params, ctx) -> memory`` after the optimiser's step, with
      the network's new parameters; moving averages, prototypes, scores.
    transform: ``hyper -> optax.GradientTransformationExtraArgs``, put before the
      optimiser. Its ``update`` also gets ``aux`` and ``key`` of the term, ``step``,
      ``model``, ``gradient`` (the main one, before any transformation) and
      ``grad_fn(params, only=names)``: the gradient of these terms (none named is the
      whole sum) at parameters ``{net, terms}``.
    optimizer: ``(hyper, optimizer) -> optimizer``, for what has to stand around the
      optimiser instead of before it; the same arguments reach its ``update``.
    eval_params: ``(params, memory) -> params`` of the network that is evaluated; at
      most one term of a method has it.
    on_eval: ``(memory, metrics) -> memory`` after each evaluation; pure. ``metrics``
      are those of source validation (``val/...``) at the parameters that train.
    joint: False leaves the term out of the sum that the main gradient is taken of; its
      ``transform`` takes its gradient where it wants it. It is logged all the same.
  """

  loss: Callable[[Outputs, Batch, Context], tuple[jax.Array, dict]] = _no_loss
  init: Callable[[jax.Array, Task, Any], tuple[Any, Any]] = _nothing
  update: Callable[[Any, dict, Any, Context], Any] = _same
  transform: Callable[[Mapping], Transformation] | None = None
  optimizer: Callable[[Mapping, Transformation], Transformation] | None = None
  eval_params: Callable[[Any, Any], Any] | None = None
  on_eval: Callable[[Any, Mapping], Any] | None = None
  joint: bool = True


class Hyperparameter(NamedTuple):
  """A numeric hyperparameter.

  Attributes:
    default: Its value where a recipe leaves it out.
    low: Bounds of the closed range that it may lie in.
    high: Upper bound.
    search: ``(low, high)`` of a search, drawn log-uniformly; None is not searched.
  """

  default: float
  low: float
  high: float
  search: tuple[float, float] | None = None


WEIGHT = Hyperparameter(1.0, 0.0, 1e4)  # Above this range it is a typo.
SHARE = Hyperparameter(0.0, 0.0, 1.0)


class Spec(NamedTuple):
  """One file of this room, as a config sees it.

  Attributes:
    name: Of the term, in recipes and logs.
    make: ``(task, options) -> Term``; raises a ValueError for options that do not fit
      the task.
    hyperparameters: ``{name: Hyperparameter}``, or a function from options to that,
      where they depend on options. A term with a loss has ``weight``.
    options: ``{name: allowed values}``; the first one is the default.
    recipes: ``{method: {term: fields}}``; beside terms a recipe may have groups
      ``network`` and ``optimizer``, fields of the config that belong to the method.
    replaces: Terms that this one stands in for; a method that has it does not pay for
      them.
    per_modality_weight: Whether there are numbers ``weight_<modality>``, too, 1 by
      default.
    off: Numbers that make it plain fusion, bit for bit; None if nothing does.
  """

  name: str
  make: Callable[[Task, Mapping[str, Any]], Term]
  hyperparameters: (
    Mapping[str, Hyperparameter]
    | Callable[[Mapping[str, Any]], Mapping[str, Hyperparameter]]
  ) = types.MappingProxyType({})
  options: Mapping[str, tuple[Any, ...]] = types.MappingProxyType({})
  recipes: Mapping[str, Mapping[str, Mapping[str, Any]]] = types.MappingProxyType({})
  replaces: tuple[str, ...] = ()
  per_modality_weight: bool = False
  off: Mapping[str, float] | None = types.MappingProxyType({"weight": 0.0})


def transformation(
  update: Callable[..., tuple[Any, Any]],
  init: Callable[[Any], Any] = lambda _: optax.EmptyState(),
) -> Transformation:
  """A transformation from ``(updates, state, params, **extra) -> (updates, state)``.

  Example:
    >>> from mer_dg.methods.term import transformation
    >>> halve = transformation(lambda g, state, params, **_: (0.5 * g, state))
    >>> print(halve.update(jnp.float32(3.0), halve.init(None), None)[0])
    1.5
  """
  parts: Any = (init, update)  # Optax declares fewer arguments.
  return Transformation(*parts)


def scale_parts(tree: Any, model: Model, factors: Mapping[str, jax.Array]) -> Any:
  """``tree`` (like ``{net, terms}``) with parts of the network times a factor.

  Args:
    tree: Gradients or updates.
    model: Says what belongs to which part.
    factors: ``{part: scalar}``; parts that are not named stay as they are.
  """
  scaled = jax.tree.map(
    lambda part, g: g * factors[part].astype(g.dtype) if part in factors else g,
    model.parts(tree["net"]),
    tree["net"],
  )
  return {**tree, "net": scaled}


def whole_rows(batch: Batch) -> jax.Array:
  """bool ``[B]``: rows that have every modality."""
  return functools.reduce(jax.numpy.logical_and, batch["present"].values())


def needs_two(task: Task, method: str) -> None:
  """Raises a ValueError for a task with one modality."""
  if len(task.modalities) < 2:
    raise ValueError(f"{method} needs two modalities, not {task.modalities} alone.")
