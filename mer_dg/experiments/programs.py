"""Compiled programs, kept from one command to the next."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
import re
import tempfile
import time
import warnings

import jax
from jax.experimental.compilation_cache import compilation_cache

# Programs of a table take about a megabyte.
MOST_BYTES = 2**30
# Quicker than this to compile is quicker to compile than to find.
_SECONDS = 0.1
# How JAX begins the warning about each program that it cannot keep or read.
_TROUBLE = r"Error (?:reading|writing) persistent compilation cache entry"


def keep_programs(wanted: bool = True) -> None:
  """Lets JAX keep what it compiles, and find it in the next command.

  In ``mer_dg/compiled`` of the user's folder for caches (``XDG_CACHE_HOME``), at most
  1 GiB: then what was used longest ago goes. Where ``JAX_COMPILATION_CACHE_DIR`` names
  another folder, that and JAX's other settings hold as they are. A program is found
  again only by the same jaxlib on a device of the same kind with the same instructions:
  all of it is in JAX's key. Trouble is one line, and the run goes on without.

  Args:
    wanted: False keeps and finds nothing.
  """
  if not wanted or not _setting("jax_enable_compilation_cache"):
    _stop()
    return
  if given := _setting("jax_compilation_cache_dir"):
    _listen(given)
    return
  try:
    path = _default()
    # Whoever can write there can run code here.
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      _drop_unfinished(path)
  except (OSError, RuntimeError) as error:  # the latter where nobody has a home
    _tell(getattr(error, "filename", None) or "", error)
    _stop()
    return
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
  _listen(path)


def _setting(name: str):
  return getattr(jax.config, name)


def _default() -> Path:
  caches = os.environ.get("XDG_CACHE_HOME", "")
  # Relative ones are to be ignored, says the XDG specification.
  base = Path(caches) if Path(caches).is_absolute() else Path.home() / ".cache"
  return base / "mer_dg" / "compiled"


def _drop_unfinished(path: Path) -> None:
  """Removes what a killed process left half-written.

  JAX writes the time of use after the program; one without it would stay, and stop JAX
  from ever counting sizes again.
  """
  for program in path.glob("*-cache"):
    used = program.with_name(program.name.removesuffix("-cache") + "-atime")
    with contextlib.suppress(FileNotFoundError):  # another process was faster
      if not used.exists() and time.time() - program.stat().st_mtime > 60:
        program.unlink()


def _listen(path: str | Path) -> None:
  """Makes the first of JAX's warnings a line, and the last: it stops trying."""
  show = warnings.showwarning

  def shown(message, category, filename, lineno, file=None, line=None):
    if not re.match(_TROUBLE, str(message)):
      show(message, category, filename, lineno, file, line)
      return
    if _setting("jax_enable_compilation_cache"):  # else told before
      _stop()
      _tell(path, str(message).partition(": ")[2])

  warnings.filterwarnings("always", message=_TROUBLE)
  warnings.showwarning = shown  # ty: ignore[invalid-assignment]


def _tell(path: str | Path, why: object) -> None:
  why = getattr(why, "strerror", None) or why
  print(f"Compiled programs are not kept ({path}: {why}); going on without.")


def _stop() -> None:
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
