"""A method: named terms with weights, static words and state."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mer_dg.methods.term import Context, Numeric, Task, Term
from mer_dg.methods.terms import PER_MODALITY_WEIGHT, TERMS

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
  """

  name: str
  terms: Mapping[str, Term]
  hyper: dict[str, dict[str, float]]

  def init_state(self) -> dict[str, Any]:
    """State of all terms before the first step."""
    return {name: term.init_state() for name, term in self.terms.items()}

  def loss(self, outputs, batch, *, hyper, state, step, key, fuse, unimodal):
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

    Returns:
      ``(loss, (new_state, logged))``: float32 scalar, the next state, and
      scalars to log, among them ``loss/<term>`` before weighting.
    """
    total, new_state, logged = jnp.float32(0.0), {}, {}
    for i, (name, term) in enumerate(self.terms.items()):
      context = Context(
        hyper=hyper[name],
        state=state[name],
        step=step,
        key=jax.random.fold_in(key, i),
        fuse=fuse,
        unimodal=unimodal,
      )
      value, new_state[name], extra = term.loss(outputs, batch, context)
      total += hyper[name]["weight"] * value
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
    MethodError: Unknown term or field, a word that is not allowed, a number
      out of range; the message names field, value and allowed set.

  Example:
    >>> task = Task(("a",), num_classes=2, num_domains=1, num_samples=4,
    ...             total_steps=1)
    >>> build_method("erm", {}, task).hyper
    {'fused': {'weight': 1.0}}
  """
  check_recipe(name, recipe, task.modalities)
  recipe = {"fused": {}, **recipe}
  terms, hyper = {}, {}
  for term, fields in recipe.items():
    spec = TERMS[term]
    options = {
      k: fields.get(k, allowed[0]) for k, allowed in spec.options.items()
    }
    numeric = _numeric(term, task.modalities)
    hyper[term] = {k: float(fields.get(k, n.default)) for k, n in numeric.items()}
    terms[term] = spec.make(task, options)
  return Method(name, terms, hyper)


def check_recipe(name: str, recipe: Recipe, modalities=()) -> None:
  """Raises a `MethodError` for anything in a recipe that is not allowed."""
  for term, fields in recipe.items():
    where = f"config.recipes.{name}.{term}"
    if term not in TERMS:
      raise MethodError(f"{where}: {term!r} is not one of {tuple(TERMS)}.")
    spec, numeric = TERMS[term], _numeric(term, modalities)
    for field, value in fields.items():
      if field in spec.options:
        if value not in spec.options[field]:
          raise MethodError(
            f"{where}.{field}={value!r} is not one of {spec.options[field]}."
          )
      elif field in numeric:
        _check_number(f"{where}.{field}", value, numeric[field])
      else:
        known = (*spec.options, *numeric)
        raise MethodError(f"{where}: unknown field {field!r}; it has {known}.")


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


def _numeric(term: str, modalities) -> dict[str, Numeric]:
  numeric = dict(TERMS[term].numeric)
  if term in PER_MODALITY_WEIGHT:
    numeric |= {f"weight_{m}": Numeric(1.0, 0.0, 1e4) for m in modalities}
  return numeric


def _check_number(field: str, value, spec: Numeric) -> None:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise MethodError(f"{field}={value!r} must be a number.")
  if not spec.low <= value <= spec.high:
    raise MethodError(f"{field}={value!r} must lie in [{spec.low}, {spec.high}].")
