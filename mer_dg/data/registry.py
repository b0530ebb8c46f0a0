"""Datasets that users add, by the name that ``config.data.name`` gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mer_dg.contracts import Registry
from mer_dg.data.dataset import Dataset

REGISTERED = Registry("dataset")


def register_dataset(
  name: str,
  load: Callable[[Mapping[str, Any]], Dataset],
  *,
  replace: bool = False,
) -> None:
  """Adds a dataset that configs may name.

  Args:
    name: Its name.
    load: ``config.data -> Dataset``, for example through `make_dataset`; ``path`` is
      what the user gave.
    replace: Whether it may replace one that another file registered.

  Raises:
    ValueError: For a name that exists.
  """
  REGISTERED.add(name, load, replace=replace)
