"""Tables out of pickles that nobody has to trust.

`data_prep._machine` reads them without calling anything: every global on the list below
becomes a note of what it was given, any other ends the reading. Afterwards our own code
rebuilds arrays and columns from those notes, so that neither pandas nor the unpickling
code of NumPy ever sees a byte of the file (a forged dtype can make the latter read
arbitrary addresses).
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from data_prep._machine import PLAIN, Bounded, Call, Refused, read_pickle
from mer_dg.data.archive import reason
from mer_dg.data.dataset import DataError

# What is rebuilt may have so many bytes and entries in all, and per byte of the file:
# something that stands in the file once can be referred to a million times.
BASE, PER_BYTE = 2**16, 4

# Exactly what data frames (pandas 0.2x to 3) and NumPy arrays consist of.
_NAMES = {
  "numpy.ndarray": ("numpy ndarray",),
  "numpy.dtype": ("numpy dtype",),
  "numpy._reconstruct": (
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
  ),
  "numpy.scalar": (
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
  ),
  "numpy._frombuffer": (
    "numpy.core.numeric _frombuffer",
    "numpy._core.numeric _frombuffer",
  ),
  "builtins.slice": ("builtins slice", "__builtin__ slice"),
  "pandas.DataFrame": ("pandas.core.frame DataFrame", "pandas DataFrame"),
  "pandas.BlockManager": (
    "pandas.core.internals.managers BlockManager",
    "pandas.core.internals BlockManager",
  ),
  "pandas._unpickle_block": ("pandas._libs.internals _unpickle_block",),
  "pandas._new_Index": (
    "pandas.core.indexes.base _new_Index",
    "pandas.indexes.base _new_Index",
  ),
  "pandas.Index": (
    "pandas.core.indexes.base Index",
    "pandas.indexes.base Index",
    "pandas Index",
  ),
  "pandas.RangeIndex": (
    "pandas.core.indexes.range RangeIndex",
    "pandas.indexes.range RangeIndex",
    "pandas RangeIndex",
  ),
  "pandas.Int64Index": (
    "pandas.core.indexes.numeric Int64Index",
    "pandas.indexes.numeric Int64Index",
  ),
}
_ALLOWED = {alias: name for name, aliases in _NAMES.items() for alias in aliases}
_ALLOWED |= PLAIN


def load_plain(path: str | os.PathLike) -> Any:
  """Reads a pickle of containers, numbers, strings and NumPy arrays.

  Args:
    path: The file.

  Returns:
    Dicts, lists, tuples, numbers, strings, bytes and arrays; a data frame comes back
    as ``{column: array}``.

  Raises:
    DataError: No such file, not a pickle, one that asks for a global that is not on
      the list (the message names it), or one that describes more than it holds: a few
      bytes can stand for any number of entries. Nothing has been called then.

  Example:
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.pkl"
    >>> import pickle
    >>> _ = path.write_bytes(pickle.dumps({"x": np.arange(3)}))
    >>> load_plain(path)
    {'x': array([0, 1, 2])}
    >>> _ = path.write_bytes(pickle.dumps(print))
    >>> load_plain(path)
    Traceback (most recent call last):
    mer_dg.data.dataset.DataError: ...a.pkl: refused, it asks for builtins.print; ...
  """
  path = pathlib.Path(path).expanduser()
  try:
    size = path.stat().st_size
    with path.open("rb") as file:
      content = read_pickle(Bounded(file, size), _ALLOWED.get)
    return _Builder(BASE + PER_BYTE * size).rebuild(content)
  except Refused as error:
    raise DataError(
      f"{path}: refused, {error}; only plain containers, numbers, strings, NumPy "
      "arrays and data frames of these are read. Nothing in the file was executed. If "
      "you trust it, save it as .csv."
    ) from error
  except OSError as error:
    raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
  except Exception as error:  # A damaged pickle can raise anything.
    what = f"{type(error).__name__}: {reason(error)}"
    raise DataError(f"{path}: not a readable pickle ({what}).") from error


def load_table(path: str | os.PathLike) -> dict[str, list[Any]]:
  """The columns of a pickled data frame: ``{name: values}``.

  Args:
    path: The file, written by ``DataFrame.to_pickle``.

  Returns:
    One list of Python numbers and strings per column, in the order of the file.

  Raises:
    DataError: As `load_plain`; or the file holds no table.
  """
  table = load_plain(path)
  if not isinstance(table, dict) or not all(
    isinstance(k, str) and isinstance(v, np.ndarray) and v.ndim == 1
    for k, v in table.items()
  ):
    raise DataError(f"{path}: holds a {type(table).__name__}, not a table.")
  columns = {name: values.tolist() for name, values in table.items()}
  if len({len(values) for values in columns.values()}) > 1:
    raise DataError(f"{path}: the columns of the table differ in length.")
  return columns


# --- from notes to arrays and columns ------------------------------------------------


class _Builder:
  """Replaces every `Call` by what it stands for, and counts."""

  def __init__(self, limit: int):
    self._left = limit

  def _spend(self, cost: int) -> None:
    self._left -= cost
    if self._left < 0:
      raise Refused("a few of its bytes stand for any number of entries")

  def rebuild(self, value: Any) -> Any:
    self._spend(1)
    if isinstance(value, dict):
      return {self.rebuild(k): self.rebuild(v) for k, v in value.items()}
    if type(value) in (list, tuple, set, frozenset):
      return type(value)(self.rebuild(v) for v in value)
    if value is None or isinstance(value, (str, bytes, bytearray, int, float)):
      return value
    build = _BUILDERS.get(getattr(value, "name", "")) if type(value) is Call else None
    if build is None:
      name = getattr(value, "name", type(value).__name__)
      raise Refused(f"it holds a {name} where none belongs")
    return build(self, value)

  def _dtype(self, value: Any) -> np.dtype:
    """A dtype of numbers or strings (or of objects), from its name and byte order."""
    if not isinstance(value, Call) or value.name != "numpy.dtype":
      raise Refused("an array without a dtype")
    name, order = value.args[0], value.state[1] if value.state else "="
    if not isinstance(name, str) or not isinstance(order, str):
      raise Refused("a dtype without a name")
    dtype = np.dtype(name)
    if dtype.kind not in "biufUSO":
      raise Refused(f"it holds an array of {dtype}")
    # "|" is the order of what has none (bytes, objects).
    return dtype if order in "|=" else dtype.newbyteorder(order)

  def _filled(self, dtype: np.dtype, shape: Any, data: Any, fortran: Any) -> np.ndarray:
    shape = tuple(int(n) for n in shape)
    order = "F" if fortran else "C"
    self._spend(max(shape, default=0))  # Rows of nothing take time, too.
    if dtype.kind != "O":
      if not isinstance(data, (bytes, bytearray)):
        raise Refused(f"it holds an array whose data are a {type(data).__name__}")
      self._spend(len(data))
      return np.frombuffer(bytes(data), dtype).reshape(shape, order=order)
    if not isinstance(data, list):
      raise Refused("it holds an array of objects that is no list")
    self._spend(len(data))
    array = np.empty(len(data), object)
    for i, item in enumerate(data):  # Not array[:] = data: items may be sequences.
      array[i] = self.rebuild(item)
    return array.reshape(shape, order=order)

  def array(self, value: Call) -> np.ndarray:
    """numpy._reconstruct(ndarray, (0,), b"b") with state, as arrays are pickled."""
    _, shape, dtype, fortran, data = value.state
    return self._filled(self._dtype(dtype), shape, data, fortran)

  def frombuffer(self, value: Call) -> np.ndarray:
    data, dtype, shape, order = value.args
    return self._filled(self._dtype(dtype), shape, data, order == "F")

  def scalar(self, value: Call) -> Any:
    dtype, data = value.args
    return self._filled(self._dtype(dtype), (1,), data, False)[0].item()

  def index(self, value: Call) -> Any:
    """An index as an array."""
    state = value.args[1]
    if not isinstance(state, dict):
      raise Refused("an index without its fields")
    if "data" in state:
      return self.rebuild(state["data"])
    counted = range(state["start"], state["stop"], state["step"])
    self._spend(8 * len(counted))
    return np.array(counted)

  def places(self, value: Call) -> Any:
    return slice(*value.args)

  def frame(self, value: Call) -> dict[str, np.ndarray]:
    """Columns of a data frame, whichever pandas wrote it."""
    manager = value.state.get("_mgr", value.state.get("_data"))
    if isinstance(manager.state, tuple):  # Up to pandas 1.2, and as a fallback after.
      parts = manager.state[3]["0.14.1"]
      axes = parts["axes"]
      blocks = [(b["values"], b["mgr_locs"]) for b in parts["blocks"]]
    else:
      blocks = [block.args[:2] for block in manager.args[0]]
      axes = manager.args[1]
    names = list(self.rebuild(axes[0]))  # The row index, axes[1], is not looked into.
    columns: dict[int, np.ndarray] = {}
    for values, places in blocks:
      values, places = self.rebuild(values), self.rebuild(places)
      for column, place in zip(values, np.arange(len(names))[places], strict=True):
        columns[int(place)] = column
    return {str(name): columns[i] for i, name in enumerate(names)}


_BUILDERS = {
  "numpy._reconstruct": _Builder.array,
  "numpy._frombuffer": _Builder.frombuffer,
  "numpy.scalar": _Builder.scalar,
  "numpy.dtype": _Builder._dtype,
  "builtins.slice": _Builder.places,
  "pandas._new_Index": _Builder.index,
  "pandas.DataFrame": _Builder.frame,
}
