"""Every field of a config with its default and meaning, for ``--help`` and the docs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
import dataclasses
import inspect
import textwrap
from typing import Any

from mer_dg.experiments.config import Config, fields_of


def described(group: Any = None, prefix: str = "") -> Iterator[tuple[str, str, str]]:
  """``(name, default, meaning)`` of the fields of a config, in order.

  Meanings are the comments in the source, where the fields are checked, else what the
  check allows.

  Args:
    group: A group of fields; by default a whole `Config`.
    prefix: Put before the names.

  Example:
    >>> {name: default for name, default, _ in described()}["optimizer.schedule"]
    "'cosine'"
  """
  group = Config() if group is None else group
  comments = _comments(type(group))
  for field in dataclasses.fields(group):
    name, value = prefix + field.name, getattr(group, field.name)
    if dataclasses.is_dataclass(value):
      yield from described(value, f"{name}.")
    else:
      # Of the recipes, which are pages: docs/methods.md and config.json have them.
      default = repr(value) if name != "recipes" else "those of mer_dg/methods"
      allowed = fields_of(type(group))[field.name](None)
      yield name, default, comments[field.name] or allowed


def help_text() -> str:
  """The fields as `--help` shows them, 80 columns wide."""
  lines = ["fields of the config, with their defaults:", ""]
  wrap = lambda text, first: textwrap.wrap(
    text, 80, initial_indent=first, subsequent_indent="    ", break_on_hyphens=False
  )
  for name, default, meaning in described():
    lines += [*wrap(f"--config.{name}={default}", "  "), *wrap(meaning, "    ")]
  return "\n".join(lines)


def _comments(kind: type) -> dict[str, str]:
  """The comment lines above each field of a class."""
  source = inspect.getsource(kind)
  lines, found = source.splitlines(), {}
  (node,) = ast.parse(source).body
  for field in (n for n in ast.walk(node) if isinstance(n, ast.AnnAssign)):
    above: list[str] = []
    for line in reversed(lines[: field.lineno - 1]):
      if not line.strip().startswith("# "):
        break
      above.insert(0, line.strip()[2:])
    found[ast.unparse(field.target)] = " ".join(above)
  return found
