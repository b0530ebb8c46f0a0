"""Strict JAX, a warm compile cache and doctest names, for tests and doctests alike."""

import gc
import os
import pathlib

import numpy as np
import pytest

REPO_ROOT = pathlib.Path(__file__).resolve().parent

# Before jax is imported, and in the environment, so that programs started by a test
# share the cache. Most of a cold test run is compilation; a warm one is several times
# faster. Anything already set by the caller wins.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", str(REPO_ROOT / ".cache" / "jax_compilation")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")
# LAPACK threads under the thread pool of JAX are slow, see main.py.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

# [n] + [n, d] is an error, not a guess; so is an old-style uint32 key.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")

# Tracing makes millions of objects that live on; looking through all of them again and
# again is a tenth of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 50)

# Linux lets a process have 65,530 memory maps (vm.max_map_count); every program that
# XLA compiles for a CPU keeps some, and a compiler that gets no more ends the process
# with a segmentation fault. The whole suite compiles more than that.
_MANY_MAPS = 8_000


def _memory_maps() -> int:
  maps = pathlib.Path("/proc/self/maps")
  return maps.read_bytes().count(b"\n") if maps.exists() else 0


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
  """Forgets what was compiled, between two modules, before there is too much of it."""
  yield
  if _memory_maps() > _MANY_MAPS:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
  """Examples in docstrings start with these names and need not import them."""
  import mer_dg

  doctest_namespace.update(jax=jax, jnp=jnp, np=np, mer_dg=mer_dg)
