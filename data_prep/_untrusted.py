"""Tensors out of a downloaded PyTorch file, without running anything in it.

A ``.pth`` file is a pickle, and a pickle can call any function there is.
"""

from __future__ import annotations

from collections.abc import Mapping
import contextlib
import os
import pathlib
import pickle
from typing import Any

import numpy as np

from mer_dg.data.dataset import DataError

# Where published files keep their tensors; the first that is there counts.
CONTAINERS = ("state_dict", "model_state_dict")

# What a number or an array of NumPy beside the weights (an accuracy, say) is made of.
# They are not needed, so they are read as inert stand-ins and NumPy never sees them.
_INERT = (
  "numpy.core.multiarray.scalar",
  "numpy._core.multiarray.scalar",
  "numpy.core.multiarray._reconstruct",
  "numpy._core.multiarray._reconstruct",
  "numpy.dtype",
  "numpy.ndarray",
)


class _Inert:
  """Swallows whatever a pickle gives it."""

  def __init__(self, *args: Any):
    del args

  def __setstate__(self, state: Any) -> None:
    del state


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Names and tensors of a PyTorch checkpoint, as NumPy arrays.

  Tensors, plain Python values and their containers are read. Anything else in the
  file stops the reading before it is called.

  Args:
    path: A file of ``torch.save``, of any age: a mapping with the tensors under
      ``state_dict`` or ``model_state_dict``, or the tensors themselves.

  Raises:
    ImportError: Without PyTorch.
    FileNotFoundError: If there is no such file.
    DataError: If the file is no PyTorch file, asks for anything but tensors and
      plain values, or holds no tensors where they are looked for.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file.")
  content = _load(path)
  if isinstance(content, Mapping):
    for name in CONTAINERS:
      if name in content:
        content = content[name]
        break
  torch = _torch()
  if not isinstance(content, Mapping) or not content:
    raise DataError(f"{path}: no mapping of tensors, but {type(content).__name__}.")
  others = [str(n) for n, t in content.items() if not isinstance(t, torch.Tensor)]
  if others:
    raise DataError(
      f"{path}: expected tensors, or a mapping of them under one of {CONTAINERS}; "
      f"these are none: {others[:8]}."
    )
  return {str(name): _array(tensor) for name, tensor in content.items()}


def _load(path: pathlib.Path) -> Any:
  """``torch.load`` that executes nothing, with errors a user can act on."""
  torch = _torch()
  allowed = [(_Inert, name) for name in _INERT]
  with contextlib.ExitStack() as stack:
    stack.enter_context(torch.serialization.safe_globals(allowed))
    try:
      return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
      # What follows in PyTorch's message is how to load it nevertheless.
      reason = str(error).replace("\n", " ").partition("Please file an issue")[0]
      *_, reason = reason.rpartition("WeightsUnpickler error:")
      raise DataError(
        f"{path}: refused. It is damaged or asks for more than tensors and plain "
        f"values, which is how a file runs code on your computer; nothing was "
        f"executed. Reason: {reason.strip()[:200]}"
      ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
      reason = str(error).partition("\n")[0][:200]
      raise DataError(f"{path}: not a readable PyTorch file ({reason}).") from error


def _array(tensor) -> np.ndarray:
  """A copy that owns its memory; bfloat16, which NumPy lacks, as float32."""
  tensor = tensor.detach()
  if str(tensor.dtype) == "torch.bfloat16":
    tensor = tensor.float()
  return np.array(tensor.numpy())


def _torch():
  try:
    import torch
  except ImportError as error:
    raise ImportError(
      "Reading a .pth file needs PyTorch, which nothing else here does: "
      "pip install torch (the CPU build will do)."
    ) from error
  return torch
