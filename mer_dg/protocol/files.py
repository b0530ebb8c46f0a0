"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import pathlib


def write_atomic(path: pathlib.Path, content: bytes | str) -> None:
  """Writes a file under a temporary name beside it and renames it.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder) / "a.txt"
    ...   write_atomic(path, "whole")
    ...   print(path.read_text(), len(list(path.parent.iterdir())))
    whole 1
  """
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  data = content.encode() if isinstance(content, str) else content
  try:
    temporary.write_bytes(data)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)  # Left only if the write failed.
