"""A method: named terms with weights; what the step asks all of them together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mer_dg.contracts import Task, named_key
from mer_dg.methods import registry
from mer_dg.methods.registry import SETTINGS, Recipe
from mer_dg.methods.term import (
  Context,
  Hyperparameter,
  MethodError,
  Moment,
  Term,
  Transformation,
  transformation,
)


@dataclasses.dataclass(frozen=True)
class Method:
  """A training objective made of terms.

  Attributes:
    name: As in the config and in records.
    terms: ``{term name: Term}``.
    hyper: ``{term name: {number: float}}``, the default numeric hyperparameters;
      training keeps them in its state so that runs may differ.
    options: ``{term name: {option: value}}``, the static choices.
    task: What it was built for.
  """

  name: str
  terms: Mapping[str, Term]
  hyper: dict[str, dict[str, float]]
  options: dict[str, dict[str, Any]]
  task: Task

  @property
  def joint(self) -> tuple[str, ...]:
    """The terms that the main gradient is taken of."""
    return tuple(name for name, term in self.terms.items() if term.joint)

  @property
  def averages(self) -> bool:
    """Whether a term chooses the parameters that are evaluated."""
    return any(term.eval_params for term in self.terms.values())

  @property
  def watches(self) -> bool:
    """Whether a term wants to see evaluations."""
    return any(term.on_eval for term in self.terms.values())

  def init(self, key: jax.Array, params: Any) -> tuple[dict, dict]:
    """``({term: own parameters}, {term: memory})`` before the first step.

    Args:
      key: Key of the run's initial values.
      params: Of the network.
    """
    own, memory = {}, {}
    for name, term in self.terms.items():
      own[name], memory[name] = term.init(named_key(key, name), self.task, params)
      _check_own(name, own[name], params)
    return own, memory

  def loss(
    self, params, outputs, batch, memory, moment: Moment, only: Collection[str] = ()
  ):
    """Weighted sum of the terms.

    Args:
      params: ``{net, terms}``.
      outputs: `Outputs` of the network on the batch.
      batch: The batch.
      memory: ``{term: memory}``.
      moment: The step.
      only: Terms to sum; none named is those of `joint`.

    Returns:
      ``(sum, {term: (value before weighting, aux)})``, float32 scalars.

    Raises:
      MethodError: If a term does not return ``(scalar, dict)``, while tracing.
    """
    if unknown := [name for name in only if name not in self.terms]:
      raise MethodError(
        f"method {self.name!r}: a transformation asks for the gradient of {unknown}, "
        f"but the method has the terms {tuple(self.terms)}. Add them to its recipe."
      )
    found, total = {}, jnp.float32(0.0)
    for name, term in self.terms.items():
      if only and name not in only:
        continue
      context = _context(name, params, memory, moment)
      value, aux = _checked(name, term.loss(outputs, batch, context))
      found[name] = value, aux
      if term.joint or only:
        total += moment.hyper[name].get("weight", 1.0) * value
    return total, found

  def logged(self, found: Mapping[str, tuple[jax.Array, dict]]) -> dict[str, jax.Array]:
    """What is logged of a step: ``loss/<term>`` before weighting, scalars of aux.

    A name that an earlier term has already is logged as ``<term>/<name>``.
    """
    metrics = {}
    for name, (value, aux) in found.items():
      if "weight" in self.hyper[name]:
        metrics[f"loss/{name}"] = value
      scalar = lambda v: isinstance(v, jax.Array) and v.shape == ()
      own = {k: v for k, v in aux.items() if scalar(v)}
      metrics |= {f"{name}/{k}" if k in metrics else k: v for k, v in own.items()}
    return metrics

  def optimizer(self, hyper, base: optax.GradientTransformation) -> Transformation:
    """``base`` with what the terms put around and before it, in their order."""
    whole = optax.with_extra_args_support(base)
    for name, term in self.terms.items():
      if term.optimizer is not None:
        whole = _for_term(name, term.optimizer(hyper[name], whole))
    before = [
      _for_term(name, term.transform(hyper[name]))
      for name, term in self.terms.items()
      if term.transform is not None
    ]
    return optax.with_extra_args_support(optax.chain(*before, whole))

  def update(self, memory, found, params, moment: Moment) -> dict:
    """Memory of all terms after a step.

    Args:
      memory: Before it.
      found: As `loss` returned it.
      params: ``{net, terms}`` after it.
      moment: The step.

    Raises:
      MethodError: If the structure of a memory changes.
    """
    new = {}
    for name, term in self.terms.items():
      context, aux = _context(name, params, memory, moment), found[name][1]
      after = term.update(memory[name], aux, params["net"], context)
      new[name] = _kept(name, memory[name], after)
    return new

  def eval_params(self, params: Any, memory: Mapping[str, Any]) -> Any:
    """Parameters of the network that are evaluated.

    Raises:
      MethodError: If a term chooses what is not like ``params``.
    """
    for name, term in self.terms.items():
      if term.eval_params is not None:
        chosen = term.eval_params(params, memory[name])
        if changed := _changed(params, chosen):
          raise MethodError(
            f"the parameters that term {name!r} chooses are not the network's: "
            f"{changed}."
          )
        return chosen
    return params

  def on_eval(self, memory: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict:
    """Memory of all terms after an evaluation; only ``val/...`` is shown to them."""
    seen = {k: v for k, v in metrics.items() if k.startswith("val/")}
    new = dict(memory)
    for name, term in self.terms.items():
      if term.on_eval is not None:
        new[name] = _kept(name, memory[name], term.on_eval(memory[name], seen))
    return new


def _context(name: str, params, memory, moment: Moment) -> Context:
  return Context(
    params=params["net"],
    own=params["terms"][name],
    memory=memory[name],
    hyper=moment.hyper[name],
    step=moment.step,
    key=named_key(moment.key, name),
    model=moment.model,
  )


def build_method(name: str, recipe: Recipe, task: Task) -> Method:
  """Builds the method of a recipe.

  Args:
    name: Its name, for messages and records.
    recipe: ``{term: {option or number: value}}``; what is left out takes the defaults.
      The term ``fused`` is there unless another one replaces it.
    task: The static facts of the task.

  Returns:
    The method.

  Raises:
    MethodError: Unknown term or field, an option that is not allowed or does not fit
      the task, a number out of range, two terms that both choose what is evaluated or
      stand in for the fused loss; the message names field, value, allowed set.

  Example:
    >>> from mer_dg.contracts import Task
    >>> task = Task(("a",), num_classes=2, num_domains=1, num_samples=4,
    ...             total_steps=1, widths=(8,), fused_width=8, projection_width=8)
    >>> build_method("erm", {}, task).hyper
    {'fused': {'weight': 1.0}}
  """
  check_recipe(name, recipe, task.modalities)
  terms, hyper, options = {}, {}, {}
  instead = [t for t in registry.terms_of(recipe) if registry.SPECS[t].replaces]
  if len(instead) > 1:
    raise MethodError(
      f"method {name!r}: {' and '.join(instead)} each stand in for the fused loss; "
      "keep one of them."
    )
  for term, fields in registry.terms_of(recipe).items():
    options[term] = registry.options_of(term, fields)
    numbers = registry.hyperparameters_of(term, fields, task.modalities)
    hyper[term] = {k: float(fields.get(k, n.default)) for k, n in numbers.items()}
    try:
      terms[term] = registry.SPECS[term].make(task, options[term])
    except ValueError as error:
      raise MethodError(f"config.recipes.{name}.{term}: {error}") from error
  choosers = [term for term in terms if terms[term].eval_params is not None]
  if len(choosers) > 1:
    raise MethodError(
      f"method {name!r}: {' and '.join(choosers)} both choose the parameters that are "
      "evaluated; keep one of them."
    )
  return Method(name, terms, hyper, options, task)


def check_recipe(name: str, recipe: Recipe, modalities=None) -> None:
  """Raises a `MethodError` for anything in a recipe that is not allowed.

  Args:
    name: Name of the recipe, for messages.
    recipe: The recipe. What its groups ``network`` and ``optimizer`` hold is checked
      with the config.
    modalities: Names that ``weight_<modality>`` may use; None while they are not
      known lets any name pass.
  """
  if not isinstance(recipe, Mapping):
    raise MethodError(f"config.recipes.{name}={recipe!r} must be a group of terms.")
  for term, fields in recipe.items():
    where = f"config.recipes.{name}.{term}"
    if not isinstance(fields, Mapping):
      raise MethodError(f"{where}={fields!r} must be a group of fields.")
    if term in SETTINGS:
      continue
    if term not in registry.SPECS:
      raise MethodError(f"{where}: {term!r} is not one of {tuple(registry.SPECS)}.")
    _check_fields(where, term, fields, modalities)


def _check_fields(where: str, term: str, fields: Mapping, modalities) -> None:
  spec = registry.SPECS[term]
  for field in (f for f in fields if f in spec.options):
    if fields[field] not in spec.options[field]:
      raise MethodError(
        f"{where}.{field}={fields[field]!r} is not one of {spec.options[field]}."
      )
  if modalities is None:
    modalities = [f.removeprefix("weight_") for f in fields if f.startswith("weight_")]
  numbers = registry.hyperparameters_of(term, fields, modalities)
  for field, value in fields.items():
    if field in numbers:
      check_hyperparameter(f"{where}.{field}", value, numbers[field])
    elif field not in spec.options:
      chosen = ", ".join(
        f"{k}={v!r}" for k, v in registry.options_of(term, fields).items()
      )
      raise MethodError(
        f"{where}.{field}={fields[field]!r}: no such field"
        f"{f' with {chosen}' if chosen else ''}; there are "
        f"{(*spec.options, *numbers)}."
      )


def check_hyperparameter(field: str, value: Any, number: Hyperparameter) -> None:
  """Raises a `MethodError` unless ``value`` is a number in the range of ``number``."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise MethodError(f"{field}={value!r} must be a number.")
  if not number.low <= value <= number.high:
    raise MethodError(f"{field}={value!r} must lie in [{number.low}, {number.high}].")


def merge_recipes(names: str, recipes: Mapping[str, Recipe]) -> dict[str, dict]:
  """The recipe of ``"a+b"``: the terms of ``a`` and those of ``b``.

  Args:
    names: Names of recipes, joined by ``+``.
    recipes: ``{name: recipe}``.

  Raises:
    MethodError: A part that no recipe has, that adds nothing, or two parts that want
      something else of one field; the message names them.

  Example:
    >>> merge_recipes("x+y", {"x": {"mer": {"weight": 2}}, "y": {"unimodal": {}}})
    {'mer': {'weight': 2}, 'unimodal': {}}
  """
  parts = names.split("+")
  for part in parts:
    if part not in recipes:
      raise MethodError(f"method {part!r} is not one of {tuple(recipes)}.")
  for i, part in enumerate(parts if len(parts) > 1 else ()):
    others = parts[:i] + parts[i + 1 :]
    if _within(recipes[part], _merged(names, others, recipes)):
      raise MethodError(f"method {names!r}: {part!r} adds nothing to {others}.")
  return _merged(names, parts, recipes)


def _merged(names: str, parts: Collection[str], recipes) -> dict[str, dict]:
  merged: dict[str, dict] = {}
  for part in parts:
    for group, fields in recipes[part].items():
      own = merged.setdefault(group, {})
      for field, value in fields.items():
        if own.setdefault(field, value) != value:
          raise MethodError(
            f"method {names!r}: {part!r} wants {group}.{field}={value!r}, another part "
            f"{own[field]!r}. Write a recipe that has what is meant."
          )
  return merged


def _within(small: Recipe, large: Recipe) -> bool:
  return all(
    group in large and dict(fields).items() <= dict(large[group]).items()
    for group, fields in small.items()
  )


def _for_term(name: str, inner: Transformation) -> Transformation:
  """``inner``, told of its own term alone."""
  inner = optax.with_extra_args_support(inner)

  def update(
    updates, state, params=None, *, found, step_key, aux=None, key=None, **extra
  ):
    del aux, key  # Those of a term around this one.
    own = dict(aux=found[name][1], key=named_key(step_key, name))
    shared = dict(found=found, step_key=step_key)
    return inner.update(updates, state, params, **own, **shared, **extra)

  return transformation(update, inner.init)


def _checked(name: str, result: Any) -> tuple[jax.Array, dict]:
  if not (isinstance(result, tuple) and len(result) == 2):
    raise MethodError(f"term {name!r} must return (value, aux), not {type(result)}.")
  value, aux = result
  if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
    raise MethodError(
      f"term {name!r} must return a float scalar, not "
      f"{jnp.result_type(value)}{list(jnp.shape(value))}."
    )
  if not isinstance(aux, Mapping):
    raise MethodError(f"term {name!r} must return a dict of aux, not {type(aux)}.")
  return value, dict(aux)


def _check_own(name: str, own: Any, params: Any) -> None:
  if not isinstance(own, Mapping):
    raise MethodError(f"own parameters of term {name!r} must be a dict, not {own!r}.")
  if shared := sorted(set(own) & set(params)):
    raise MethodError(
      f"term {name!r} has parameters {shared}, names of the network's; rename them."
    )


def _kept(name: str, old: Any, new: Any) -> Any:
  """``new`` with the very types of ``old``; others would compile the step again."""
  if changed := _changed(old, new):
    raise MethodError(
      f"the memory of term {name!r} changes: {changed}; names, shapes and dtypes must "
      "stay."
    )
  return jax.tree.map(lambda a, b: jnp.asarray(b, jnp.result_type(a)), old, new)


def _changed(old: Any, new: Any) -> str:
  """The first difference of two trees in structure, shape or dtype; "" for none."""

  def kinds(tree):
    return {
      jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
      for path, leaf in jax.tree.leaves_with_path(tree)
    }

  was, now = kinds(old), kinds(new)
  for place in was | now:
    if was.get(place) != now.get(place):
      found = [kind.get(place, "not there") for kind in (was, now)]
      return f"{place or 'it'} was {found[0]} and is now {found[1]}"
  trees = jax.tree.structure(old), jax.tree.structure(new)
  return "" if trees[0] == trees[1] else f"it was {trees[0]} and is now {trees[1]}"
