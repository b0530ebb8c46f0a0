"""The methods there are: ours, one line each, and what users add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mer_dg.contracts import Registry
from mer_dg.methods.term import Hyperparameter, MethodError, Spec

# {term: fields}: what a config writes down.
Recipe = Mapping[str, Mapping[str, Any]]

SPECS = Registry("term")  # `Spec` by the name of its term.
# Groups of a recipe that are no terms: fields of the config that belong to the method.
SETTINGS = ("network", "optimizer")


def register(spec: Spec, *, replace: bool = False) -> Spec:
  """Adds a term and its recipes to the methods that configs may name.

  Ours and a user's alike: from a config file, a notebook or a package. The same file
  read again replaces what it registered before.

  Args:
    spec: What a method's file holds.
    replace: Whether to replace a term or recipe of the same name from another file.

  Returns:
    ``spec``.

  Raises:
    MethodError: A name that exists, or a spec that contradicts itself; says which.
  """
  _check(spec)
  taken = {r: s.name for s in SPECS.values() for r in s.recipes if s.name != spec.name}
  for recipe in spec.recipes:
    if recipe in taken and not replace:
      raise MethodError(
        f"the method {recipe!r} exists already (term {taken[recipe]!r}); choose "
        "another name, or register it with replace=True."
      )
  try:
    SPECS.add(spec.name, spec, maker=spec.make, replace=replace)
  except ValueError as error:
    raise MethodError(str(error)) from error
  return spec


def recipes() -> dict[str, dict[str, dict[str, Any]]]:
  """All recipes with every field written out, for a config to show and to change."""
  found: dict[str, dict[str, dict[str, Any]]] = {}
  for spec in list(SPECS.values()):
    for method, recipe in spec.recipes.items():
      found[method] = {
        group: dict(fields) if group in SETTINGS else _written_out(group, fields)
        for group, fields in recipe.items()
      }
  return found


def terms_of(recipe: Recipe) -> dict[str, Mapping[str, Any]]:
  """The terms of a recipe: the fused loss is one unless another stands in for it.

  Example:
    >>> from mer_dg.methods import terms_of
    >>> terms_of({"unimodal": {}, "network": {"fusion": "late"}})
    {'fused': {}, 'unimodal': {}}
    >>> terms_of({"md": {}})
    {'md': {}}
  """
  terms = {k: v for k, v in recipe.items() if k not in SETTINGS}
  replaced = any("fused" in SPECS[term].replaces for term in terms)
  return terms if replaced else {"fused": {}, **terms}


def _written_out(term: str, fields: Mapping[str, Any]) -> dict[str, Any]:
  options = options_of(term, fields)
  numbers = {k: n.default for k, n in hyperparameters_of(term, fields, ()).items()}
  return {**options, **numbers, **fields}


def options_of(term: str, fields: Mapping[str, Any]) -> dict[str, Any]:
  """The options of a term under some fields, defaults filled in."""
  return {k: fields.get(k, v[0]) for k, v in SPECS[term].options.items()}


def hyperparameters_of(
  term: str, fields: Mapping[str, Any], modalities
) -> dict[str, Hyperparameter]:
  """The numeric hyperparameters that a term has, given its options.

  Args:
    term: A name in `SPECS`.
    fields: Its fields in a recipe; only options are looked at.
    modalities: Names of the modalities.
  """
  spec = SPECS[term]
  declared = spec.hyperparameters
  if not isinstance(declared, Mapping):
    declared = declared(options_of(term, fields))
  numbers = dict(declared)
  if spec.per_modality_weight:
    numbers |= {f"weight_{m}": Hyperparameter(1.0, 0.0, 1e4) for m in modalities}
  return numbers


def _check(spec: Spec) -> None:
  for name in (spec.name, *spec.recipes):
    if not name.replace("_", "").isalnum() or name in SETTINGS:
      raise MethodError(
        f"{name!r} names no term or method: letters, digits and '_', not {SETTINGS}."
      )
  both = {} if callable(spec.hyperparameters) else spec.hyperparameters
  if shared := sorted(set(spec.options) & set(both)):
    raise MethodError(f"term {spec.name!r}: {shared} are options and numbers.")
  for name, number in both.items():
    for value in (number.default, *(number.search or ())):
      if not number.low <= value <= number.high:
        raise MethodError(
          f"term {spec.name!r}: {name}={value} lies outside of its own range "
          f"[{number.low}, {number.high}]."
        )
