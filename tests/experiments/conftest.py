"""A tiny experiment: 3 domains, 20 steps; and one finished run of it."""

import jax
import pytest

from configs import cooccurrence
from tests.factories import quick_jit, quick_programs

# Dotted overrides that make configs/cooccurrence.py take a second.
TINY = {
  # Every kind of term, and the state of one that remembers samples.
  "method": "mer_kde+mm_alternate",
  "total_steps": 20,
  "eval_every": 10,
  "log_every": 5,
  "data.cooccurrence.num_domains": 3,
  "data.cooccurrence.train_per_domain": 40,
  "data.cooccurrence.val_per_domain": 30,
  "data.cooccurrence.test_per_domain": 30,
  "data.cooccurrence.widths": (6, 5),
  "network.embedding_dim": 8,
  "network.hidden_dim": 16,
  "network.classifier_dim": 16,
  "network.projector_dim": 16,
  "network.projection_dim": 8,
  "optimizer.lr": 1e-2,
}


@pytest.fixture(autouse=True, scope="module")
def _quick_programs():
  with quick_programs():
    yield


@pytest.fixture(scope="session")
def tiny():
  """``tiny(target, **fields)`` is the config; dots in field names are ``__``."""

  def make(target="d1", **fields):
    config = cooccurrence.get_config(target)
    fields = {name.replace("__", "."): value for name, value in fields.items()}
    config.update_from_flattened_dict(TINY | fields)
    return config

  return make


@pytest.fixture(scope="session")
def flags():
  """The same overrides as words of a command line."""
  return [f"--config.{name}={value}" for name, value in TINY.items()]


@pytest.fixture(scope="session")
def train(tiny):
  """``train(folder, **fields) -> (state, workdir)``: one run in this process."""
  from mer_dg.experiments import check, make_setup, single, validate
  from mer_dg.experiments.workdir import Workdir

  def run(folder, target="d1", **fields):
    config = validate(tiny(target, **fields))
    workdir = Workdir(folder, config)
    setup = make_setup(config)
    check(setup)
    with workdir.writing():
      return single.train(setup, workdir), workdir

  return run


@pytest.fixture(scope="session")
def finished(train, tmp_path_factory):
  """``{driver: (state, workdir)}`` of an uninterrupted run with each driver.

  As users compile: that both give the same bits is true there.
  """
  folder = tmp_path_factory.mktemp("finished")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "jit", quick_jit.func)
    return {d: train(folder / d, driver=d) for d in ("resident", "stream")}


@pytest.fixture(scope="session")
def checkpoints():
  """The folder of the checkpoints of the only run in a workdir."""

  def find(workdir):
    (folder,) = (workdir.path / "checkpoints").iterdir()
    return folder

  return find


@pytest.fixture(scope="session")
def comparable():
  """A record without what may differ between two runs of the same thing."""

  def strip(record):
    drop = ("wall_time_s", "time", "git_revision")
    return {k: v for k, v in record.items() if k not in drop}

  return strip
