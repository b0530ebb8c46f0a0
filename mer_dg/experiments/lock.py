"""One writer at a time: a lock on a file that dies with its process."""

from __future__ import annotations

from collections.abc import Generator
import contextlib
import errno
import json
import os
from pathlib import Path
import platform
import threading
import time
from typing import Any, BinaryIO

try:
  import fcntl
except ImportError:  # Not every system has it.
  fcntl = None

# Seconds between two signs of life, and how many of them may be missing.
_BEAT, _MISSED = 10.0, 3
# What flock says where another process holds the lock; anything else says that the file
# system knows no locks.
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class LockedError(RuntimeError):
  """Another process holds the lock; the message says which."""


@contextlib.contextmanager
def hold(path: Path) -> Generator[None]:
  """Holds the lock ``path`` until the block ends, or the process dies.

  The operating system's lock decides where both processes are on this machine, or on a
  network file system that passes locks on. As not all of these do, the holder also
  signs the file every 10 seconds: who finds the signature of another machine, or a
  file system without locks, waits half a minute to see whether it is renewed.

  Args:
    path: The file; made if absent, and left behind empty.

  Raises:
    LockedError: If another process holds it.
    OSError: If the file cannot be written.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, hold(Path(folder) / "lock"):
    ...   with hold(Path(folder) / "lock"):
    ...     pass
    Traceback (most recent call last):
      ...
    mer_dg.experiments.lock.LockedError: process ... on ... since ...
  """
  with open(path, "a+b", buffering=0) as file:
    certain = _flock(file)
    last = _read(file)
    here = last.get("host") == platform.node()
    if certain is None or (last and not (certain and here) and _lives(path, last)):
      raise LockedError(_said(last))
    own = {
      "host": platform.node(),
      "pid": os.getpid(),
      "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    ended = threading.Event()
    _sign(file, own)
    beat = threading.Thread(target=_keep_signing, args=(file, own, ended), daemon=True)
    beat.start()
    try:
      yield
    finally:
      ended.set()
      beat.join()
      with contextlib.suppress(OSError):
        file.truncate(0)


def _flock(file: BinaryIO) -> bool | None:
  """True with the lock, None if another has it, False where there are no locks."""
  if fcntl is None:
    return False
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    return None if error.errno in _HELD else False
  return True


def _read(file: BinaryIO) -> dict[str, Any]:
  file.seek(0)
  try:
    found = json.loads(file.read())
  except ValueError:
    return {}  # Empty, or being written.
  return found if isinstance(found, dict) else {}


def _lives(path: Path, last: dict[str, Any]) -> bool:
  """Whether the holder renews its signature while we look."""
  print(
    f"{path.parent} was last written by {_said(last)}. Looking whether it still is."
  )
  for _ in range(_MISSED):
    time.sleep(_BEAT)
    with open(path, "rb", buffering=0) as file:
      if _read(file) != last:
        return True
  return False


def _keep_signing(file: BinaryIO, own: dict[str, Any], ended: threading.Event) -> None:
  beats = 0
  while not ended.wait(_BEAT):
    beats += 1
    with contextlib.suppress(OSError):  # A full disk, say, is found by the writer.
      _sign(file, own | {"beats": beats})


def _sign(file: BinaryIO, own: dict[str, Any]) -> None:
  line = json.dumps(own).encode()
  file.truncate(0)  # It is open for appending.
  file.write(line)
  os.fsync(file.fileno())


def _said(holder: dict[str, Any]) -> str:
  named = (holder.get(name, "?") for name in ("pid", "host", "since"))
  return "process {} on {} since {}".format(*named)
