"""Methods: a page each, on one seam; which terms, with which weights and memory."""

from mer_dg.methods import fused, heads, mer, mm
from mer_dg.methods.method import (
  Method,
  build_method,
  check_number,
  check_recipe,
  logged,
  merge_recipes,
)
from mer_dg.methods.registry import (
  SETTINGS,
  SPECS,
  numbers_of,
  options_of,
  recipes,
  register,
)
from mer_dg.methods.term import (
  Context,
  MethodError,
  Moment,
  Number,
  Spec,
  Term,
  Transformation,
  scale_parts,
  transformation,
)

for _file in (
  fused,
  heads,
  mer,
  mm,
):
  register(_file.SPEC)

__all__ = [
  "SETTINGS",
  "SPECS",
  "Context",
  "Method",
  "MethodError",
  "Moment",
  "Number",
  "Spec",
  "Term",
  "Transformation",
  "build_method",
  "check_number",
  "check_recipe",
  "logged",
  "merge_recipes",
  "numbers_of",
  "options_of",
  "recipes",
  "register",
  "scale_parts",
  "transformation",
]
