"""Files that are there whole or not at all, and safe names for them."""

from __future__ import annotations

from collections.abc import Generator
import contextlib
import hashlib
import os
import pathlib
import re

# Names of devices, which Windows gives no file, whatever follows the first dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)")
LONGEST_FILE_NAME = 100


def file_name(name: str) -> str:
  """A file name for a modality, class, domain or method, whatever it is called.

  Lower-case letters, digits and ``_ + = , -`` stay, and dots inside; ``X`` becomes
  ``@x``, everything else ``%`` and the hexadecimal bytes of its UTF-8. So distinct
  names have distinct file names, also where case or Unicode normalisation do not
  count, and none has a separator, a control character, a leading dot or the name of a
  device. What would exceed `LONGEST_FILE_NAME` is cut and ends with ``~`` and a hash.

  Example:
    >>> [file_name(name) for name in ("acc", "D1", "watching tv", "mer_kde+mm", "../x")]
    ['acc', '@d1', 'watching%20tv', 'mer_kde+mm', '%2e.%2fx']
    >>> len(file_name("x" * 1000))
    93
  """
  safe = re.sub(r"[^a-z0-9_+=,.-]", _escape, name)
  if not safe:
    return "%"
  if safe[0] in ".-" or _DEVICES.match(safe):  # A leading "-" would be an option.
    safe = _hex(safe[0]) + safe[1:]
  if safe[-1] == ".":  # Windows drops it.
    safe = safe[:-1] + _hex(".")
  if len(safe) <= LONGEST_FILE_NAME:
    return safe
  digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
  return f"{safe[:60]}~{digest[:32]}"


def _escape(match: re.Match[str]) -> str:
  character = match[0]
  return f"@{character.lower()}" if "A" <= character <= "Z" else _hex(character)


def _hex(character: str) -> str:
  return "".join(f"%{b:02x}" for b in character.encode("utf-8", "surrogatepass"))


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Generator[None]:
  """Gives an `OSError` of the block that names no file (a full disk) this one's name.

  Example:
    >>> with naming("a.txt"):
    ...   raise OSError(28, "No space left on device")
    Traceback (most recent call last):
      ...
    OSError: [Errno 28] No space left on device: 'a.txt'
  """
  try:
    yield
  except OSError as error:
    if error.filename is None and error.errno is not None:  # Else it has no text.
      error.filename = os.fspath(path)
    raise


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Generator[pathlib.Path]:
  """A temporary file beside ``path`` to write, which the end of the block renames.

  It is on disk then: a power cut leaves the old file or the new one. If the block
  raises, nothing is left of it.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder) / "a.txt"
    ...   with replacing(path) as temporary:
    ...     _ = temporary.write_text("whole")
    ...   print(path.read_text(), len(list(path.parent.iterdir())))
    whole 1
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with naming(path):
      yield temporary
      with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)  # Left only if the write failed.
  with contextlib.suppress(OSError):  # Not every system opens a folder.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
      os.fsync(folder)
    finally:
      os.close(folder)


def write_atomic(path: str | os.PathLike, content: bytes | str) -> None:
  """Writes a file whole or not at all; see `replacing`.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder) / "a.txt"
    ...   write_atomic(path, "whole")
    ...   print(path.read_text(), len(list(path.parent.iterdir())))
    whole 1
  """
  with replacing(path) as temporary:
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
