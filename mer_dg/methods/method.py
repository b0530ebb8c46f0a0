"""A method: named terms with weights, static words and state."""

from __future__ import annotations

from collections.abc import Collection, Mapping
import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp

from mer_dg.methods.term import Context, Numeric, Task, Term
from mer_dg.methods.terms import TERMS

# {term: {option or number: value}}: what a config writes down.
Recipe = Mapping[str, Mapping[str, Any]]


class MethodError(ValueError):
  """A recipe names something that does not exist or lies out of range."""


@dataclasses.dataclass(frozen=True)
class Method:
  """A training objective made of terms.

  Attributes:
    name: As in the config and in records.
    terms: ``{term name: Term}``.
    hyper: ``{term name: {number: float}}``, the default numeric
      hyperparameters; training keeps them in its state so that runs may differ.
    words: ``{term name: {option: value}}``, the static choices.
  """

  name: str
  terms: Mapping[str, Term]
  hyper: dict[str, dict[str, float]]
  words: dict[str, dict[str, Any]]

  def init_state(self) -> dict[str, Any]:
    """State of all terms before the first step."""
    return {name: term.init_state() for name, term in self.terms.items()}

  @property
  def ahead(self) -> tuple[str, ...]:
    """Terms that are taken after an inner step, see `Term.inner_step`."""
    return tuple(name for name, term in self.terms.items() if term.inner_step)

  def inner_lr(self, hyper) -> jax.Array:
    """Length of the inner step of the terms of ``ahead``."""
    lengths = [hyper[name][self.terms[name].inner_step] for name in self.ahead]
    return sum(lengths[1:], lengths[0])

  def control(self, *, hyper, state, step) -> tuple[dict, dict]:
    """What the terms ask of a step, all requests together.

    Args:
      hyper: As in `loss`.
      state: As in `loss`, before the step.
      step: As in `loss`.

    Returns:
      ``({term: factor}, {modality: learns})``; see `Control`.
    """
    factors: dict[str, jax.Array] = {}
    learns: dict[str, jax.Array] = {}
    for name, term in self.terms.items():
      if term.control is None:
        continue
      asked = term.control(hyper[name], state[name], step)
      for other in (o for o in self.terms if o != name):
        factors[other] = factors.get(other, 1.0) * asked.others
      for m, flag in asked.learns.items():
        learns[m] = learns.get(m, True) & flag
    return factors, learns

  def loss(
    self,
    outputs,
    batch,
    *,
    hyper,
    state,
    step,
    key,
    fuse,
    unimodal,
    factors=types.MappingProxyType({}),
    only: Collection[str] | None = None,
  ):
    """Weighted sum of the terms.

    Args:
      outputs: `Outputs` of the network on the batch.
      batch: The batch.
      hyper: Numeric hyperparameters, shaped like ``self.hyper``.
      state: Method state, shaped like ``self.init_state()``.
      step: int32 scalar.
      key: PRNG key of this step.
      fuse: ``(embeddings, present) -> logits``.
      unimodal: ``embeddings -> {modality: logits}``.
      factors: ``{term: factor}`` from `control`; 1 where a term is not named.
      only: Terms to sum; None is all. The others keep their state.

    Returns:
      ``(loss, (new_state, logged))``: float32 scalar, the next state, and
      scalars to log, among them ``loss/<term>`` before weighting.
    """
    total, new_state, logged = jnp.float32(0.0), dict(state), {}
    for i, (name, term) in enumerate(self.terms.items()):
      if only is not None and name not in only:
        continue
      context = Context(
        hyper=hyper[name],
        state=state[name],
        step=step,
        key=jax.random.fold_in(key, i),
        fuse=fuse,
        unimodal=unimodal,
      )
      value, new_state[name], extra = term.loss(outputs, batch, context)
      weight = hyper[name]["weight"]
      total += (weight * factors[name] if name in factors else weight) * value
      logged |= {f"loss/{name}": value, **extra}
    return total, (new_state, logged)


def build_method(name: str, recipe: Recipe, task: Task) -> Method:
  """Builds the method of a recipe.

  Args:
    name: Its name, for messages and records.
    recipe: ``{term: {word or number: value}}``; what is left out takes the
      defaults of `TERMS`. The term ``fused`` is always there.
    task: The static facts of the task.

  Returns:
    The method.

  Raises:
    MethodError: Unknown term or field, a word that is not allowed or does not fit
      the task, a number out of range; the message names field, value, allowed set.

  Example:
    >>> task = Task(("a",), num_classes=2, num_domains=1, num_samples=4,
    ...             total_steps=1)
    >>> build_method("erm", {}, task).hyper
    {'fused': {'weight': 1.0}}
  """
  check_recipe(name, recipe, task.modalities)
  terms, hyper, words = {}, {}, {}
  for term, fields in {"fused": {}, **recipe}.items():
    words[term] = _options(term, fields)
    hyper[term] = {
      k: float(fields.get(k, n.default))
      for k, n in numeric_fields(term, fields, task.modalities).items()
    }
    try:
      terms[term] = TERMS[term].make(task, words[term])
    except ValueError as error:
      raise MethodError(f"config.recipes.{name}.{term}: {error}") from error
  return Method(name, terms, hyper, words)


def check_recipe(name: str, recipe: Recipe, modalities=None) -> None:
  """Raises a `MethodError` for anything in a recipe that is not allowed.

  Args:
    name: Name of the recipe, for messages.
    recipe: The recipe.
    modalities: Names that ``weight_<modality>`` may use; None while they are not
      known lets any name pass.
  """
  if not isinstance(recipe, Mapping):
    raise MethodError(f"config.recipes.{name}={recipe!r} must be a group of terms.")
  for term, fields in recipe.items():
    where = f"config.recipes.{name}.{term}"
    if term not in TERMS:
      raise MethodError(f"{where}: {term!r} is not one of {tuple(TERMS)}.")
    if not isinstance(fields, Mapping):
      raise MethodError(f"{where}={fields!r} must be a group of fields.")
    spec = TERMS[term]
    for field in (f for f in fields if f in spec.options):
      if fields[field] not in spec.options[field]:
        raise MethodError(
          f"{where}.{field}={fields[field]!r} is not one of {spec.options[field]}."
        )
    if modalities is None and spec.per_modality_weight:
      named = [f.removeprefix("weight_") for f in fields if f.startswith("weight_")]
      numeric = numeric_fields(term, fields, named)
    else:
      numeric = numeric_fields(term, fields, modalities or ())
    for field, value in fields.items():
      if field in numeric:
        _check_number(f"{where}.{field}", value, numeric[field])
      elif field in spec.only:
        option, values = spec.only[field]
        raise MethodError(
          f"{where}.{field}={value!r} has no effect with "
          f"{option}={_options(term, fields)[option]!r}; it belongs to {values}."
        )
      elif field not in spec.options:
        known = (*spec.options, *numeric)
        raise MethodError(f"{where}.{field}: no such field; the term has {known}.")


def numeric_fields(term: str, fields: Mapping, modalities) -> dict[str, Numeric]:
  """The numbers that a term has, given its words.

  Args:
    term: A name in `TERMS`.
    fields: Its fields in a recipe; only words are looked at.
    modalities: Names of the modalities.

  Example:
    >>> sorted(numeric_fields("mer", {"estimator": "kde"}, ["a"]))
    ['bandwidth', 'ramp', 'start', 'weight', 'weight_a']
  """
  spec, words = TERMS[term], _options(term, fields)
  numeric = {
    name: number
    for name, number in spec.numeric.items()
    if name not in spec.only or words[spec.only[name][0]] in spec.only[name][1]
  }
  if spec.per_modality_weight:
    numeric |= {f"weight_{m}": Numeric(1.0, 0.0, 1e4) for m in modalities}
  return numeric


def merge_recipes(names: str, recipes: Mapping[str, Recipe]) -> dict[str, dict]:
  """The recipe of ``"a+b"``: the terms of ``a``, then those of ``b`` over them.

  Raises:
    MethodError: A part that no recipe has; the message lists those there are.

  Example:
    >>> merge_recipes("x+y", {"x": {"mer": {"weight": 2}}, "y": {"unimodal": {}}})
    {'mer': {'weight': 2}, 'unimodal': {}}
  """
  merged: dict[str, dict] = {}
  for part in names.split("+"):
    if part not in recipes:
      raise MethodError(f"method {part!r} is not one of {tuple(recipes)}.")
    for term, fields in recipes[part].items():
      merged[term] = {**merged.get(term, {}), **fields}
  return merged


def _options(term: str, fields: Mapping) -> dict[str, Any]:
  return {k: fields.get(k, v[0]) for k, v in TERMS[term].options.items()}


def _check_number(field: str, value, spec: Numeric) -> None:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise MethodError(f"{field}={value!r} must be a number.")
  if not spec.low <= value <= spec.high:
    raise MethodError(f"{field}={value!r} must lie in [{spec.low}, {spec.high}].")
