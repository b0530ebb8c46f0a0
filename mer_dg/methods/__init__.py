"""Methods: a page each, on one seam; which terms, with which weights and memory."""

from mer_dg.methods import (
  average,
  fused,
  heads,
  md,
  mer,
  mixup,
  mm,
  ogm_ge,
  pmr,
  rna,
  sam,
  simmmdg,
  swad,
)
from mer_dg.methods.method import (
  Method,
  build_method,
  check_number,
  check_recipe,
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
  md,
  mer,
  mm,
  mixup,
  rna,
  simmmdg,
  ogm_ge,
  pmr,
  sam,
  average,
  swad,
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
  "merge_recipes",
  "numbers_of",
  "options_of",
  "recipes",
  "register",
  "scale_parts",
  "transformation",
]
