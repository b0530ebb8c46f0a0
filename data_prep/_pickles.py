"""Tables out of pickles that nobody has to trust.

A pickle is a program: it names functions of installed packages and calls them. Here it
is given none. Every global it may name is replaced by a stand-in of ours that only
remembers its arguments; a global that is not on the list ends the reading before
anything is called. Afterwards our own code rebuilds arrays and columns from what was
remembered, so that neither pandas nor the unpickling code of NumPy ever sees a byte of
the file (a forged dtype can make the latter read arbitrary addresses).
"""

from __future__ import annotations

import os
import pathlib
import pickle
from typing import Any

import numpy as np

from mer_dg.data.dataset import DataError


class Refused(pickle.UnpicklingError):
  """The pickle names a global that is not on the list."""


class StandIn:
  """Takes the place of an allowed global and remembers what the pickle gives it."""

  name = ""

  def __init__(self, *args: Any):
    self.args: Any = args
    self.state: Any = None

  def __setstate__(self, state: Any) -> None:
    self.state = state


def _stand_in(name: str) -> type[StandIn]:
  return type(name.rpartition(".")[2], (StandIn,), {"name": name})


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
  """What ``_codecs.encode`` does to the bytes of a protocol-2 pickle, and no more."""
  if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
    raise Refused(f"_codecs.encode called with {type(text).__name__}, {encoding!r}")
  return text.encode("latin1")


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
_ALLOWED: dict[str, Any] = {
  alias: _stand_in(name) for name, aliases in _NAMES.items() for alias in aliases
}
_ALLOWED |= {"_codecs encode": _latin1}


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    found = _ALLOWED.get(f"{module} {name}")
    if found is None:
      raise Refused(f"it asks for {module}.{name}")
    return found


def load_plain(path: str | os.PathLike) -> Any:
  """Reads a pickle of containers, numbers, strings and NumPy arrays.

  Args:
    path: The file.

  Returns:
    Dicts, lists, tuples, numbers, strings, bytes and arrays; a data frame comes back
    as ``{column: array}``.

  Raises:
    DataError: No such file, not a pickle, or one that asks for a global that is not on
      the list; the message names the file and the global. Nothing has been called then.

  Example:
    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.pkl"
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
    with path.open("rb") as file:
      return _rebuild(_Unpickler(file).load())
  except Refused as error:
    raise DataError(
      f"{path}: refused, {error}; only plain containers, numbers, strings, NumPy "
      "arrays and data frames of these are read. Nothing in the file was executed. If "
      "you trust it, save it as .csv."
    ) from error
  except OSError as error:
    raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
  except Exception as error:  # A damaged pickle can raise anything.
    raise DataError(f"{path}: not a readable pickle ({error!r}).") from error


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


# --- from stand-ins to arrays and columns --------------------------------------------


def _rebuild(value: Any) -> Any:
  """The value with every stand-in replaced by what it stood for."""
  if isinstance(value, dict):
    return {_rebuild(k): _rebuild(v) for k, v in value.items()}
  if isinstance(value, (list, tuple, set, frozenset)):
    return type(value)(_rebuild(v) for v in value)
  if not isinstance(value, StandIn):
    return value
  build = _BUILDERS.get(value.name)
  if build is None:
    raise Refused(f"it holds a {value.name} where none belongs")
  return build(value)


def _dtype(value: Any) -> np.dtype:
  """A dtype of numbers or strings (or of objects), from its name and byte order."""
  if not isinstance(value, StandIn) or value.name != "numpy.dtype":
    raise Refused("an array without a dtype")
  order = value.state[1] if value.state else "="
  dtype = np.dtype(str(value.args[0]))
  if dtype.kind not in "biufUSO":
    raise Refused(f"it holds an array of {dtype}")
  # "|" is the order of what has none (bytes, objects).
  return dtype if order in "|=" else dtype.newbyteorder(order)


def _filled(dtype: np.dtype, shape: Any, data: Any, fortran: Any) -> np.ndarray:
  shape = tuple(int(n) for n in shape)
  order = "F" if fortran else "C"
  if dtype.kind != "O":
    if not isinstance(data, (bytes, bytearray)):
      raise Refused(f"it holds an array whose data are a {type(data).__name__}")
    return np.frombuffer(bytes(data), dtype).reshape(shape, order=order)
  if not isinstance(data, list):
    raise Refused("it holds an array of objects that is no list")
  array = np.empty(len(data), object)
  for i, item in enumerate(data):  # Not array[:] = data: items may be sequences.
    array[i] = _rebuild(item)
  return array.reshape(shape, order=order)


def _array(value: StandIn) -> np.ndarray:
  """numpy._reconstruct(ndarray, (0,), b"b") with state, as arrays are pickled."""
  _, shape, dtype, fortran, data = value.state
  return _filled(_dtype(dtype), shape, data, fortran)


def _frombuffer(value: StandIn) -> np.ndarray:
  data, dtype, shape, order = value.args
  return _filled(_dtype(dtype), shape, data, order == "F")


def _scalar(value: StandIn) -> Any:
  dtype, data = value.args
  return _filled(_dtype(dtype), (1,), data, False)[0].item()


def _index(value: StandIn) -> Any:
  """An index as an array; a row index that only counts is not looked into."""
  state = dict(value.args[1])
  if "data" in state:
    return _rebuild(state["data"])
  return np.arange(state["start"], state["stop"], state["step"])


def _slice(value: StandIn) -> slice:
  return slice(*value.args)


def _frame(value: StandIn) -> dict[str, np.ndarray]:
  """Columns of a data frame, whichever pandas wrote it."""
  manager = value.state.get("_mgr", value.state.get("_data"))
  if isinstance(manager.state, tuple):  # Up to pandas 1.2, and as a fallback after.
    parts = manager.state[3]["0.14.1"]
    axes = parts["axes"]
    blocks = [(b["values"], b["mgr_locs"]) for b in parts["blocks"]]
  else:
    blocks = [block.args[:2] for block in manager.args[0]]
    axes = manager.args[1]
  names = list(_rebuild(axes[0]))
  columns: dict[int, np.ndarray] = {}
  for values, places in blocks:
    values, places = _rebuild(values), _rebuild(places)
    for column, place in zip(values, np.arange(len(names))[places], strict=True):
      columns[int(place)] = column
  return {str(name): columns[i] for i, name in enumerate(names)}


_BUILDERS = {
  "numpy._reconstruct": _array,
  "numpy._frombuffer": _frombuffer,
  "numpy.scalar": _scalar,
  "numpy.dtype": _dtype,
  "builtins.slice": _slice,
  "pandas._new_Index": _index,
  "pandas.DataFrame": _frame,
}
