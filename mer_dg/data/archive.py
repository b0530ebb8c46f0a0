"""Arrays out of an ``.npz`` file that nobody has to trust.

Headers are checked against what is there before a byte of memory is asked for, and
whatever goes wrong is a `DataError` that names file and array.
"""

from __future__ import annotations

from collections.abc import Iterable
import math
import os
import pathlib
from typing import Any
import zipfile

import numpy as np

from mer_dg.data.dataset import DataError

# Measured arrays do not shrink a hundredfold; what does, beyond this many bytes, is
# taken for a file made to fill the memory. An uncompressed file is as large as it is.
UNQUESTIONED, RATIO = 2**28, 100
_STORED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


class Archive:
  """An open ``.npz`` file; a context manager.

  Args:
    path: The file.

  Attributes:
    keys: Names of the arrays, in the order of the file.

  Raises:
    DataError: No such file, or no ``.npz`` file.

  Example:
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.npz"
    >>> np.savez(path, x=np.arange(3))
    >>> with Archive(path) as archive:
    ...   archive.keys, archive.read("x")
    (['x'], array([0, 1, 2]))
  """

  def __init__(self, path: str | os.PathLike):
    self._path = path = pathlib.Path(path)
    if not path.is_file():
      raise DataError(f"{path}: no such file.")
    try:
      with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
          raise DataError(
            f"{path}: a single array, not an .npz file (see numpy.savez)."
          )
      self._zip = zipfile.ZipFile(path)
      self._limit = max(UNQUESTIONED, RATIO * path.stat().st_size)
    except DataError:
      raise
    except Exception as error:
      raise DataError(f"{path}: not an .npz file ({reason(error)}).") from None
    self._members: dict[str, zipfile.ZipInfo] = {}
    for info in self._zip.infolist():
      key = info.filename.removesuffix(".npy")
      if key in self._members:
        raise DataError(f"{path}: {key!r} is there twice.")
      self._members[key] = info
    self.keys = list(self._members)
    self._taken = 0

  def __enter__(self) -> Archive:
    return self

  def __exit__(self, *exception: object) -> None:
    self._zip.close()

  def read(self, key: str) -> np.ndarray:
    """One array.

    Raises:
      DataError: It is missing, damaged, encrypted, holds Python objects, or is larger
        than this file has a reason to be; or than this machine's memory.
    """
    where = f"{self._path}: {key!r}"
    if key not in self._members:
      raise DataError(f"{where} is missing; the file has {few(self.keys)}.")
    info = self._members[key]
    if info.flag_bits & 1:
      raise DataError(f"{where} is encrypted.")
    if info.compress_type not in _STORED:
      raise DataError(f"{where} is compressed in a way that NumPy does not write.")
    self._taken += info.file_size
    if self._taken > self._limit:
      raise DataError(
        f"{where} is refused: with it, {_size(self._taken)} come out of a file of "
        f"{_size(self._path.stat().st_size)}. If that is right, write the file without "
        "compression (numpy.savez)."
      )
    if self._taken > _memory():
      raise DataError(
        f"{where} is refused: with it, the arrays take {_size(self._taken)}, and this "
        f"machine has {_size(_memory())} of memory."
      )
    try:
      with self._zip.open(info) as file:
        return _array(file, info.file_size, where)
    except DataError:
      raise
    except Exception as error:  # A hostile file can raise anything.
      raise DataError(f"{where} is damaged ({reason(error)}).") from None


def read_arrays(path: str | os.PathLike, keys: Iterable[str]) -> dict[str, np.ndarray]:
  """Some arrays of an ``.npz`` file.

  Raises:
    DataError: As `Archive` and `Archive.read`.
  """
  with Archive(path) as archive:
    return {key: archive.read(key) for key in keys}


def _array(file: Any, size: int, where: str) -> np.ndarray:
  """The array of a member of ``size`` bytes, whose header may lie."""
  version = np.lib.format.read_magic(file)
  if version not in _HEADERS:
    raise DataError(f"{where} is of the unknown format version {version}.")
  shape, fortran, dtype = _HEADERS[version](file)
  if dtype.hasobject:
    raise DataError(
      f"{where} holds Python objects (a pickle), which are never loaded. Store "
      "numbers, or strings of a fixed-width dtype such as numpy.array(names)."
    )
  left = size - file.tell()
  promised = math.prod(shape) * dtype.itemsize
  if promised != left or min(shape, default=0) < 0:
    raise DataError(
      f"{where} is damaged: its header promises {dtype} {shape}, {promised} bytes, but "
      f"{left} are there."
    )
  data = np.empty(left, np.uint8)
  view: Any = data.data
  at = 0
  while at < left:
    count = file.readinto(view[at : at + 2**24])
    if not count:
      raise DataError(f"{where} is cut short.")
    at += count
  if not left:  # A view of nothing has no item size to go by.
    return np.empty(shape, dtype, order="F" if fortran else "C")
  if dtype.kind == "b":
    data = data != 0  # Other bytes than 0 and 1 are no booleans to NumPy.
  return data.view(dtype).reshape(shape, order="F" if fortran else "C")


def _memory() -> int:
  """Bytes of memory of this machine; where it does not say, no limit."""
  try:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (AttributeError, ValueError, OSError):
    return 2**63


def _size(count: int) -> str:
  return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def reason(error: BaseException) -> str:
  """What went wrong, in one short line."""
  words = " ".join(str(getattr(error, "strerror", None) or error).split())
  return words[:120] or type(error).__name__


def few(names: Iterable[Any], limit: int = 8) -> str:
  """A list of names for a message, however many there are.

  Example:
    >>> few("abc", 2)
    "['a', 'b'] and 1 more"
  """
  names = list(names)
  more = f" and {len(names) - limit} more" if len(names) > limit else ""
  return f"{names[:limit]}{more}"
