"""Tensors out of a downloaded PyTorch file, without PyTorch and without running it.

A ``.pth`` file is a pickle with numbers beside it, in a zip archive (since PyTorch 1.6)
or one behind the other, and a pickle can call any function there is. Here it is read by
`data_prep._machine`, which calls none.
"""

from __future__ import annotations

from collections.abc import Mapping
import math
import os
import pathlib
from typing import Any
import zipfile

import numpy as np

from data_prep._machine import (
  PLAIN,
  Bounded,
  Call,
  Global,
  Persistent,
  Refused,
  read_pickle,
)
from mer_dg.data.archive import few, reason
from mer_dg.data.dataset import DataError

# Where published files keep their tensors; the first that is there counts.
CONTAINERS = ("state_dict", "model_state_dict")
# Tensors may share numbers, but all of them are not much more than the file.
SHARED = 4

# Storages and dtypes by the name of PyTorch. NumPy has no bfloat16: see `_array`.
_DTYPES = {
  "DoubleStorage": "<f8",
  "FloatStorage": "<f4",
  "HalfStorage": "<f2",
  "BFloat16Storage": "bfloat16",
  "LongStorage": "<i8",
  "IntStorage": "<i4",
  "ShortStorage": "<i2",
  "CharStorage": "i1",
  "ByteStorage": "u1",
  "BoolStorage": "?",
  "ComplexFloatStorage": "<c8",
  "ComplexDoubleStorage": "<c16",
  "uint16": "<u2",
  "uint32": "<u4",
  "uint64": "<u8",
}
_MAGIC = 0x1950A86A20F9469CFC6C  # First of the pickles of an old file.


_NOTED = (
  "torch.storage UntypedStorage",
  "torch.serialization _get_layout",
  "torch.nn.parameter Parameter",
  "numpy dtype",
  "numpy ndarray",
  "numpy.core.multiarray scalar",
  "numpy.core.multiarray _reconstruct",
  "numpy._core.multiarray scalar",
  "numpy._core.multiarray _reconstruct",
)


def _known(name: str) -> str | None:
  """Our name of what a checkpoint may mention; it is never called.

  Tensors, and what training scripts leave beside them (an accuracy as a number of
  NumPy, a counter, a device); anything else is a file that was made for something else.
  """
  if name in PLAIN:
    return PLAIN[name]
  module, _, attribute = name.partition(" ")
  rebuilds = module == "torch._utils" and attribute.startswith("_rebuild_")
  plain = module == "torch" and attribute.isidentifier()  # A dtype, a storage, a size.
  return attribute if rebuilds or plain or name in _NOTED else None


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Names and tensors of a PyTorch checkpoint, as NumPy arrays.

  Tensors, plain Python values and their containers are read. A file that mentions
  anything else is refused; nothing in it is ever called. PyTorch is not needed.

  Args:
    path: A file of ``torch.save``, of any age: a mapping with the tensors under
      ``state_dict`` or ``model_state_dict``, or the tensors themselves.

  Returns:
    ``{name: array}``; bfloat16 as float32.

  Raises:
    FileNotFoundError: If there is no such file.
    DataError: If the file is no PyTorch file, asks for anything but tensors and
      plain values, describes more than it holds, has a tensor of a dtype that NumPy
      lacks, or no tensors where they are looked for.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file.")
  try:
    return _read(path)
  except DataError:
    raise
  except Refused as error:
    raise DataError(
      f"{path}: refused. It is damaged or asks for more than tensors and plain "
      f"values, which is how a file runs code on your computer; nothing was "
      f"executed. Reason: {reason(error)}"
    ) from error
  except Exception as error:  # A damaged file can raise anything.
    what = f"{type(error).__name__}: {reason(error)}"
    raise DataError(f"{path}: not a readable PyTorch file ({what}).") from error


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  content, storages = (_zip if zipfile.is_zipfile(path) else _old)(path)
  if isinstance(content, Mapping):
    for name in CONTAINERS:
      if name in content:
        content = content[name]
        break
  if not isinstance(content, Mapping) or not content:
    raise DataError(f"{path}: no mapping of tensors, but {type(content).__name__}.")
  others = [str(n)[:100] for n, t in content.items() if not _is_tensor(t)]
  if others:
    raise DataError(
      f"{path}: expected tensors, or a mapping of them under one of {CONTAINERS}; "
      f"these are none: {few(others)}."
    )
  left = SHARED * path.stat().st_size
  made = {}
  for name, tensor in content.items():
    where = f"{path}: tensor {str(name)[:100]!r}"
    made[str(name)] = array = _array(where, tensor, storages, left)
    left -= array.nbytes
  return made


# --- the two forms of the file -------------------------------------------------------


def _zip(path: pathlib.Path) -> tuple[Any, dict[str, bytes]]:
  """The pickle, and the numbers by their key."""
  with zipfile.ZipFile(path) as archive:
    found = [n for n in archive.namelist() if n.endswith("/data.pkl")]
    if len(found) != 1:
      raise DataError(f"{path}: a zip archive, but not of PyTorch.")
    folder = found[0].removesuffix("data.pkl")
    packed = [i.filename for i in archive.infolist() if i.compress_type]
    if packed:  # torch.save never does; a few bytes could stand for gigabytes.
      raise DataError(f"{path}: {packed[0][:100]!r} in it is compressed.")
    info = archive.getinfo(found[0])
    with archive.open(info) as file:
      content = read_pickle(Bounded(file, info.file_size), _known)
    if f"{folder}byteorder" in archive.namelist():
      order = archive.read(f"{folder}byteorder")
      if order != b"little":
        raise DataError(f"{path}: byte order {order[:10]!r}, expected little.")
    data = f"{folder}data/"
    keys = [n for n in archive.namelist() if n.startswith(data)]
    return content, {n.removeprefix(data): archive.read(n) for n in keys}


def _old(path: pathlib.Path) -> tuple[Any, dict[str, bytes]]:
  """As `_zip`: five pickles, then length and bytes of each storage."""
  with path.open("rb") as raw:
    file = Bounded(raw, path.stat().st_size)
    parts = [read_pickle(file, _known) for _ in range(5)]
    magic, version, system, content, keys = parts
    if magic != _MAGIC or version != 1001:
      raise ValueError("the magic number is another one")
    if not system.get("little_endian", True):
      raise DataError(f"{path}: written on a big-endian machine.")
    sizes: dict[Any, int] = {}
    _item_sizes(content, sizes)
    storages = {}
    for key in keys:
      if not isinstance(key, str):
        raise ValueError("a storage without a name")
      count = int.from_bytes(file.read(8), "little")
      storages[key] = file.read(count * sizes.get(key, 1))
    return content, storages


def _item_sizes(content: Any, sizes: dict[Any, int]) -> None:
  """Bytes per number of every storage mentioned, wherever that is."""
  seen, waiting = set(), [content]
  while waiting:
    value = waiting.pop()
    if id(value) in seen:
      continue
    if isinstance(value, Persistent):
      kind, key = _storage(value)
      sizes[key] = _item_size(kind)
    elif isinstance(value, Call):
      waiting += [value.args, value.state]
    elif isinstance(value, (dict, list, tuple)):
      seen.add(id(value))  # All are alive, so no other object has its id.
      waiting += value.values() if isinstance(value, dict) else value


def _storage(value: Any) -> tuple[Any, str]:
  """Type and key of the storage that a tensor refers to."""
  _, kind, key, *_ = value.id
  if not isinstance(key, str):  # The hash of anything else could take for ever.
    raise ValueError("a storage without a name")
  return kind, key


def _item_size(kind: Any) -> int:
  name = kind.name if isinstance(kind, Global) else ""
  dtype = _DTYPES.get(name)
  return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize if dtype else 1


# --- tensors -------------------------------------------------------------------------


def _is_tensor(value: Any) -> bool:
  return isinstance(value, Call) and value.name.startswith("_rebuild_")


def _array(where: str, tensor: Call, storages: Mapping[str, bytes], limit: int):
  """A copy that owns its memory; bfloat16, which NumPy lacks, as float32."""
  if tensor.name == "_rebuild_parameter" and isinstance(tensor.args[0], Call):
    tensor = tensor.args[0]
  if tensor.name not in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
    kind = tensor.name.removeprefix("_rebuild_").replace("_", " ")
    raise DataError(f"{where} is a {kind}, which is not read.")
  storage, offset, shape, stride, *rest = tensor.args
  kind, key = _storage(storage)
  name = rest[2].name if tensor.name.endswith("v3") else kind.name
  if name not in _DTYPES:
    raise DataError(f"{where} is of {name.removesuffix('Storage')}, which is not read.")
  dtype = np.dtype("<u2" if _DTYPES[name] == "bfloat16" else _DTYPES[name])
  numbers = np.frombuffer(storages[key], dtype) if storages[key] else np.empty(0, dtype)
  shape, stride = _numbers(shape), _numbers(stride)
  last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
  count = math.prod(shape)
  if min((offset, *shape, *stride)) < 0 or (count and last >= len(numbers)):
    raise DataError(f"{where} reaches beyond its numbers.")
  if count * dtype.itemsize > limit or count > len(numbers):
    raise DataError(
      f"{where} is refused: its shape {shape} is larger than the numbers it is made of."
    )
  if not count:
    return np.empty(shape, dtype)
  steps = [s * dtype.itemsize for s in stride]
  view = np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps)
  if _DTYPES[name] == "bfloat16":  # The upper half of a float32.
    view = (view.astype("<u4") << 16).view(np.float32)
  return np.array(view)


def _numbers(values: Any) -> tuple[int, ...]:
  if isinstance(values, Call):  # torch.Size
    (values,) = values.args
  return tuple(int(v) for v in values)
