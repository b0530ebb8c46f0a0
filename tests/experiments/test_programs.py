"""Compiled programs are found again by the next command; trouble is one line."""

import resource
import time
import warnings

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import pytest

from mer_dg.experiments.programs import keep_programs

_FIELDS = (
  "jax_compilation_cache_dir",
  "jax_compilation_cache_max_size",
  "jax_enable_compilation_cache",
  "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def caches(tmp_path, monkeypatch):
  """The user's folder for caches; JAX's settings are put back in the end."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  before = {name: getattr(jax.config, name) for name in _FIELDS}
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()
  with warnings.catch_warnings():
    yield tmp_path
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def _compile(number: float):
  """A program of its own for each number; without it jax keeps none this small."""
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  program = jax.jit(lambda x: jnp.sin(x) * number)
  assert program(1.0) == pytest.approx(0.841471 * number, rel=1e-5)


def test_program_is_kept_in_the_users_folder_and_found_again(caches):
  hits = []
  listen = lambda event, **_: hits.append(event.endswith("/cache_hits"))
  keep_programs()
  _compile(3.0)
  folder = caches / "mer_dg" / "compiled"
  assert list(folder.glob("*-cache"))
  assert folder.stat().st_mode & 0o077 == 0  # others may not plant programs
  jax.clear_caches()
  jax.monitoring.register_event_listener(listen)
  try:
    _compile(3.0)
  finally:
    jax.monitoring.unregister_event_listener(listen)
  assert any(hits)


def test_switched_off_nothing_is_kept(caches):
  keep_programs(False)
  _compile(4.0)
  assert not list(caches.iterdir())


def test_a_folder_named_to_jax_is_left_as_it_is(caches, tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
  unbounded = getattr(jax.config, _FIELDS[1])
  keep_programs()
  assert getattr(jax.config, _FIELDS[1]) == unbounded
  _compile(5.0)
  assert list((tmp_path / "own").glob("*-cache"))


def test_a_folder_that_cannot_be_made_is_one_line(caches, capsys):
  (caches / "mer_dg").write_text("a file")
  keep_programs()
  _compile(6.0)
  printed = capsys.readouterr().out
  assert printed.count("\n") == 1
  assert "mer_dg" in printed
  assert "not kept" in printed


def test_a_full_disk_is_one_line_and_the_run_goes_on(caches, capsys, recwarn):
  keep_programs()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # no file may grow further
  try:
    _compile(7.0)
    _compile(8.0)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert capsys.readouterr().out.count("not kept") == 1
  assert not [w for w in recwarn if "compilation cache" in str(w.message)]


def test_what_a_killed_process_left_is_removed(caches, monkeypatch):
  half = caches / "mer_dg" / "compiled" / "jit_f-0123-cache"  # and no time of use
  half.parent.mkdir(parents=True)
  half.write_bytes(b"abc")
  keep_programs()
  assert half.exists()  # another process may be writing it
  jax.config.update("jax_compilation_cache_dir", None)
  now = time.time()
  monkeypatch.setattr(time, "time", lambda: now + 100)
  keep_programs()
  assert not half.exists()
