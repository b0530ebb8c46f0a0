"""Final parameters of a run in one file, with a hash of what is in it.

Of the runs of a table; single runs have `mer_dg.training.checkpoints` to resume from.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any
import urllib.parse
import zipfile

import jax
import numpy as np

from mer_dg.protocol import write_atomic

_HASH = "sha256"  # The array that holds the hash of the others.


class CheckpointError(ValueError):
  """A checkpoint cannot be read or written; the message names it."""


def save_parameters(path: Path, variables: Mapping[str, Any]) -> None:
  """Writes nested dicts of arrays as one ``.npz``, names joined by ``/``.

  The file is there whole or not at all.

  Args:
    path: The file; its folder is made if absent.
    variables: Of a network.

  Raises:
    OSError: If it cannot be written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  arrays = dict(_flat(variables))
  found = np.frombuffer(bytes.fromhex(hash_tree(arrays)), np.uint8)
  file = io.BytesIO()
  np.savez(file, allow_pickle=False, **{_HASH: found, **arrays})
  write_atomic(path, file.getvalue())


def _flat(
  tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, np.ndarray]]:
  if not tree:  # A group without parameters is one, too.
    yield prefix, np.zeros(0, np.float32)
  for name, value in tree.items():
    path = prefix + urllib.parse.quote(name, safe="")  # A modality may be called "a/b".
    if isinstance(value, Mapping):
      yield from _flat(value, f"{path}/")
    else:
      yield path, np.asarray(value)


def saved_hash(path: Path) -> str:
  """The hash that the file was written with; "" if there is no such file.

  Raises:
    CheckpointError: If it is damaged.
  """
  if not path.exists():
    return ""
  with _reading(path), np.load(path, allow_pickle=False) as file:
    return file[_HASH].tobytes().hex()


def load_parameters(path: Path) -> dict[str, Any]:
  """What `save_parameters` wrote, on the host.

  Raises:
    CheckpointError: If the file is not there, damaged, or not what was saved.
  """
  with _reading(path), np.load(path, allow_pickle=False) as file:
    arrays = dict(file)
    if arrays.pop(_HASH).tobytes().hex() != hash_tree(arrays):
      raise ValueError("not what was saved, the hash differs")
  tree: dict[str, Any] = {}
  for name, value in arrays.items():
    *groups, last = name.split("/")
    group = tree
    for part in groups:
      group = group.setdefault(urllib.parse.unquote(part), {})
    if last:
      group[urllib.parse.unquote(last)] = value
  return tree


@contextlib.contextmanager
def _reading(path: Path) -> Generator[None]:
  """Turns what a broken file raises into one sentence."""
  try:
    yield
  except (ValueError, OSError, LookupError, EOFError, zipfile.BadZipFile) as error:
    reason = " ".join(str(error).split())[:200]
    raise CheckpointError(
      f"{path} cannot be read ({type(error).__name__}: {reason}). Without it, the same "
      "command trains the run again."
    ) from error


def hash_tree(state: Any) -> str:
  """SHA-256 of every leaf: its path, type, shape and bytes, wherever it is placed."""
  found = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    leaf = jax.numpy.asarray(leaf) if not isinstance(leaf, jax.Array) else leaf
    kind = str(leaf.dtype)  # Of a key it names the generator.
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    host = np.ascontiguousarray(leaf)
    head = [jax.tree_util.keystr(path), kind, list(leaf.shape)]
    found.update(json.dumps(head).encode())
    found.update(host.reshape(-1).view(np.uint8).data)
  return found.hexdigest()
