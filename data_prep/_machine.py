"""Reads pickles without running them, in bounded memory and time.

A pickle is a program for a small stack machine: it names functions of installed
packages and calls them. This is such a machine with nothing behind it. A call becomes a
`Call`, a note of what was asked for; containers, numbers and strings are what they are.
Python's own unpickler never sees the file, so neither do the classes it would build.

Nothing costs more than the file has bytes for: lengths are held against what is left,
and keys of dicts are plain, because the hash of a tuple that holds itself twice, a
hundred times over, is never finished.
"""

from __future__ import annotations

from collections.abc import Callable
import pickletools
from typing import IO, Any, NamedTuple

# Memory that objects may take, in bytes: so much in any case, and per byte of the file.
BASE, PER_BYTE = 2**29, 8
_SCALAR, _CONTAINER = 32, 100  # What one of them takes, about.
# Names of what is plain in itself, and ours for it; see `read_pickle`.
PLAIN = {
  "_codecs encode": "latin1",
  "builtins set": "set",
  "__builtin__ set": "set",
  "collections OrderedDict": "dict",
  "collections Counter": "dict",
}


class Refused(Exception):
  """The pickle asks for something that is not on the list."""


class Global(NamedTuple):
  """A name that the pickle may mention, by the name we know it under."""

  name: str


class Persistent(NamedTuple):
  """A reference to something beside the pickle (the numbers of a tensor)."""

  id: Any


class Call:
  """What a pickle wanted called."""

  def __init__(self, name: str, args: Any):
    self.name = name
    self.args: Any = args
    self.state: Any = None


class Bounded:
  """The next ``size`` bytes of a file; asking for more raises before it allocates."""

  def __init__(self, file: IO[bytes], size: int):
    self._file, self.left = file, size

  def read(self, count: int) -> bytes:
    if count > self.left:
      raise ValueError(f"cut short: {count} bytes promised, {self.left} left")
    data = self._file.read(count)
    self.left -= len(data)
    return data

  def readline(self) -> bytes:
    line = self._file.readline(self.left)
    self.left -= len(line)
    return line


def read_pickle(file: Bounded, allowed: Callable[[str], str | None]) -> Any:
  """What one pickle describes; the file is left after it.

  Args:
    file: Starts with the pickle.
    allowed: Turns "module name" into our name for it, or None: it is not on the list.
      What we call "dict", "set" or "latin1" is made at once; everything else becomes a
      `Call`.

  Returns:
    Plain containers, numbers, strings, `Call`, `Global` and `Persistent`. Containers
    may contain each other or themselves: whoever walks over them has to count, and
    nobody may hash, compare or print them.

  Raises:
    Refused: It mentions something else, or takes too much memory.
    ValueError: It is no whole pickle; or any other exception.
  """
  return _Machine(file, allowed).run()


class _Machine:
  def __init__(self, file: Bounded, allowed: Callable[[str], str | None]):
    self._file, self._allowed = file, allowed
    self._left = BASE + PER_BYTE * file.left
    self._stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}

  def run(self) -> Any:
    stack = self._stack
    file: Any = self._file  # It reads bytes and lines, which is all that is asked.
    for op, arg, _ in pickletools.genops(file):
      if op.name in _VALUES:
        self._spend(_SCALAR)
        stack.append(arg)
      elif op.name == "STOP":
        return stack.pop()
      elif op.name in _OPS:
        _OPS[op.name](self, arg)
      else:
        raise Refused(f"it uses {op.name}")
    raise ValueError("no end")  # genops raises before.

  def _spend(self, cost: int) -> None:
    self._left -= cost
    if self._left < 0:
      raise Refused("it would take far more memory than the file is large")

  def _push(self, value: Any) -> None:
    self._spend(_CONTAINER)
    self._stack.append(value)

  def _pop_mark(self) -> list[Any]:
    start = self._marks.pop()
    items = self._stack[start:]
    del self._stack[start:]
    return items

  # --- the operations, named as in pickletools ---

  def _mark(self, _) -> None:
    self._spend(_SCALAR)
    self._marks.append(len(self._stack))

  def _tuple(self, count: int) -> None:
    items = self._stack[-count:]
    if len(items) < count:
      raise ValueError("too few on the stack")
    del self._stack[-count:]
    self._push(tuple(items))

  def _extend(self, items: list[Any]) -> None:
    target = self._stack[-1]
    if type(target) is set:
      target.update(map(_key, items))
    elif type(target) is list:
      target.extend(items)
    else:
      raise Refused("it adds to what is no list")

  def _fill(self, items: list[Any]) -> None:
    target = self._stack[-1]
    if type(target) is not dict:
      raise Refused("it sets items of what is no dict")
    self._spend(_CONTAINER * len(items) // 2)
    for key, value in zip(items[::2], items[1::2], strict=True):
      target[_key(key)] = value

  def _put(self, place: int) -> None:
    if place > len(self._memo) + 1:  # Picklers count; some begin at 1.
      raise ValueError(f"memory cell {place} where {len(self._memo)} are in use")
    self._spend(_CONTAINER)
    self._memo[place] = self._stack[-1]

  def _get(self, place: int) -> None:
    self._spend(_SCALAR)
    self._stack.append(self._memo[place])

  def _global(self, name: str) -> None:
    known = self._allowed(name)
    if known is None:
      raise Refused(f"it asks for {'.'.join(name[:200].split(' ', 1))}")
    self._push(Global(known))

  def _stack_global(self, _) -> None:
    name, module = self._stack.pop(), self._stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
      raise ValueError("a global without a name")
    self._global(f"{module} {name}")

  def _reduce(self, _) -> None:
    args, function = self._stack.pop(), self._stack.pop()
    if not isinstance(function, Global) or not isinstance(args, tuple):
      raise Refused("it calls what is no function")
    make = _MADE.get(function.name)
    if make is not None:
      value = make(*args)
      self._spend(_CONTAINER * len(value))
      self._push(value)
    else:
      self._push(Call(function.name, args))

  def _newobj_ex(self, _) -> None:
    if self._stack.pop() != {}:
      raise Refused("it calls with keywords")
    self._reduce(None)

  def _build(self, _) -> None:
    state, target = self._stack.pop(), self._stack[-1]
    if isinstance(target, Call):
      target.state = state
    elif type(target) is not dict:  # Of an OrderedDict: attributes, not needed.
      raise Refused("it sets the state of what has none")


def _key(value: Any) -> Any:
  """A key whose hash takes no time and cannot be made to collide."""
  parts = value if type(value) is tuple else (value,)
  for part in parts:
    plain = part is None or isinstance(part, (str, bytes, float, Call))
    if not plain and not (isinstance(part, int) and abs(part) < 2**53):
      raise Refused(f"it has a {type(part).__name__} within a key")
  return value


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
  """What ``_codecs.encode`` does to the bytes of a protocol-2 pickle, and no more."""
  if not isinstance(text, str) or not isinstance(encoding, str):
    raise Refused("_codecs.encode called with what is no text")
  if encoding not in ("latin1", "latin-1"):
    raise Refused(f"_codecs.encode called with {encoding[:50]!r}")
  return text.encode("latin1")


def _dict(pairs: Any = ()) -> dict[Any, Any]:
  """An OrderedDict or Counter, of a dict or, in Python 2, of a list of items."""
  pairs = pairs.items() if type(pairs) is dict else pairs
  return {_key(key): value for key, value in pairs}


def _set(items: Any = ()) -> set[Any]:
  return set(map(_key, items))


_MADE: dict[str, Callable[..., Any]] = {"dict": _dict, "set": _set, "latin1": _latin1}

# Operations whose argument is the value.
_VALUES = frozenset(
  f"{prefix}{kind}"
  for kind, prefixes in {
    "INT": ("", "BIN"),
    "INT1": ("BIN",),
    "INT2": ("BIN",),
    "LONG": ("",),
    "LONG1": ("",),
    "LONG4": ("",),
    "FLOAT": ("", "BIN"),
    "STRING": ("", "BIN", "SHORT_BIN"),
    "UNICODE": ("", "BIN", "SHORT_BIN"),
    "UNICODE8": ("BIN",),
    "BYTES": ("BIN", "SHORT_BIN"),
    "BYTES8": ("BIN",),
    "ARRAY8": ("BYTE",),
  }.items()
  for prefix in prefixes
)
_OPS: dict[str, Callable[[_Machine, Any], Any]] = {
  "PROTO": lambda m, _: None,
  "FRAME": lambda m, _: None,
  "NONE": lambda m, _: m._push(None),
  "NEWTRUE": lambda m, _: m._push(True),
  "NEWFALSE": lambda m, _: m._push(False),
  "EMPTY_LIST": lambda m, _: m._push([]),
  "EMPTY_TUPLE": lambda m, _: m._push(()),
  "EMPTY_DICT": lambda m, _: m._push({}),
  "EMPTY_SET": lambda m, _: m._push(set()),
  "MARK": _Machine._mark,
  "POP": lambda m, _: m._stack.pop(),
  "POP_MARK": lambda m, _: m._pop_mark(),
  "DUP": lambda m, _: m._push(m._stack[-1]),
  "LIST": lambda m, _: m._push(m._pop_mark()),
  "TUPLE": lambda m, _: m._push(tuple(m._pop_mark())),
  "TUPLE1": lambda m, _: m._tuple(1),
  "TUPLE2": lambda m, _: m._tuple(2),
  "TUPLE3": lambda m, _: m._tuple(3),
  "DICT": lambda m, _: (items := m._pop_mark(), m._push({}), m._fill(items)),
  "FROZENSET": lambda m, _: m._push(frozenset(map(_key, m._pop_mark()))),
  "APPEND": lambda m, _: m._extend([m._stack.pop()]),
  "APPENDS": lambda m, _: m._extend(m._pop_mark()),
  "ADDITEMS": lambda m, _: m._extend(m._pop_mark()),
  "SETITEM": lambda m, _: m._fill([m._stack.pop(), m._stack.pop()][::-1]),
  "SETITEMS": lambda m, _: m._fill(m._pop_mark()),
  "PUT": _Machine._put,
  "BINPUT": _Machine._put,
  "LONG_BINPUT": _Machine._put,
  "MEMOIZE": lambda m, _: m._put(len(m._memo)),
  "GET": _Machine._get,
  "BINGET": _Machine._get,
  "LONG_BINGET": _Machine._get,
  "GLOBAL": _Machine._global,
  "STACK_GLOBAL": _Machine._stack_global,
  "REDUCE": _Machine._reduce,
  "NEWOBJ": _Machine._reduce,
  "NEWOBJ_EX": _Machine._newobj_ex,
  "BUILD": _Machine._build,
  "BINPERSID": lambda m, _: m._push(Persistent(m._stack.pop())),
}
