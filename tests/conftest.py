"""Fixtures shared by the tests of all rooms."""

import os
import pathlib

import jax
import pytest

from tests import factories

REPO_ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo_root() -> pathlib.Path:
  """Folder of main.py, configs/ and pyproject.toml."""
  return REPO_ROOT


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
  """Folder of the real data sets: $MER_DG_DATA, else ../shared/data; or a skip.

  The sets are never part of the package. A set variable that names no folder is an
  error: a mistyped path must not turn into a skip.
  """
  named = os.environ.get("MER_DG_DATA")
  if named:
    folder = pathlib.Path(named)
    if not folder.is_dir():
      raise NotADirectoryError(f"MER_DG_DATA={named!r} is not a folder.")
    return folder.resolve()
  folder = REPO_ROOT.parent / "shared" / "data"
  if not folder.is_dir():
    pytest.skip("real data sets absent: set MER_DG_DATA to their folder")
  return folder


@pytest.fixture
def no_key_reuse():
  """Drawing twice from one typed key raises, in eager code and inside jit.

  Not on for every test: it recompiles everything and objects to a test that builds
  the same expected value twice.
  """
  with jax.debug_key_reuse(True):
    yield


@pytest.fixture(scope="session")
def make():
  """Builds one record from the fields that matter to a test."""
  return factories.record


@pytest.fixture
def register():
  """``register(name, make, **fields of Spec)``: a method of a user, for one test."""
  from mer_dg import methods

  added = []

  def add(name, make, hyperparameters=None, **fields):
    fields = {"recipes": {name: {name: {}}}} | fields
    spec = methods.Spec(name, make, hyperparameters or {}, **fields)
    methods.register(spec)
    added.append(name)

  yield add
  for name in added:
    del methods.SPECS[name]
