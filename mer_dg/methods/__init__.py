"""Methods: which terms, with which weights, with what extra state."""

from mer_dg.methods.method import (
  Method,
  MethodError,
  build_method,
  check_recipe,
  merge_recipes,
  numeric_fields,
)
from mer_dg.methods.term import (
  Context,
  Control,
  Numeric,
  Task,
  Term,
  TermSpec,
  stateless,
)
from mer_dg.methods.terms import TERMS

__all__ = [
  "TERMS",
  "Context",
  "Control",
  "Method",
  "MethodError",
  "Numeric",
  "Task",
  "Term",
  "TermSpec",
  "build_method",
  "check_recipe",
  "merge_recipes",
  "numeric_fields",
  "stateless",
]
