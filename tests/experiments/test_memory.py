"""Waves fit into memory: estimated before, halved when a device says no."""

import dataclasses

import jax
import pytest

from configs import cooccurrence
from mer_dg.experiments import grid, make_setup, memory, validate
from mer_dg.experiments.runs import Run

METHOD = "mer_kde+mm"


@pytest.fixture(scope="module")
def setup(tiny):
  return make_setup(validate(tiny("", methods=(METHOD,))))


def test_the_estimate_bounds_what_a_run_takes():
  """Without the dataset, by XLA's own analysis, and not ten times too high."""
  config = cooccurrence.get_config()
  config.methods = (METHOD,)
  setup = make_setup(validate(config))
  runs = [Run(METHOD, "d0", seed) for seed in range(4)]
  program = grid.WaveProgram(grid.Grid(setup), METHOD, [runs[0].task], len(runs))
  state, pool, _ = program.begin(runs)
  compiled = program._chunk(10).lower(program._arrays, pool, state).compile()
  found = compiled.memory_analysis()
  data = sum(a.nbytes for a in jax.tree.leaves(program._arrays))
  taken = found.temp_size_in_bytes + found.argument_size_in_bytes - data
  assert taken / len(runs) <= memory.run_bytes(setup, METHOD) <= 10 * taken / len(runs)


def test_a_wave_is_as_large_as_memory_allows(setup, monkeypatch):
  each = memory.run_bytes(setup, METHOD)
  for total, expected in ((1000 * each, 16), (10 * each, 5), (each, 1)):
    monkeypatch.setattr(memory, "memory_bytes", lambda total=total: total)
    assert (
      memory.wave_size(setup, METHOD) == expected
    )  # Half of the memory, 16 at most.
  chosen = dataclasses.replace(setup, config=dataclasses.replace(setup.config, wave=3))
  assert memory.wave_size(chosen, METHOD) == 3
  # A method that keeps copies of the parameters takes their room, too.
  copies = make_setup(dataclasses.replace(setup.config, methods=("erm", "swad")))
  plain, more = (memory.run_bytes(copies, name) for name in copies.config.methods)
  own = jax.eval_shape(copies.network().init, jax.random.key(0))["params"]
  assert more - plain > 4 * sum(a.size * 4 for a in jax.tree.leaves(own))
  monkeypatch.undo()
  assert memory.memory_bytes() > 2**28


class Program:
  """Trains at most two runs at once."""

  made: list[int] = []  # noqa: RUF012

  def __init__(self, shared, name, tasks, lanes):
    del shared, name, tasks
    self.lanes = lanes
    self.made.append(lanes)

  def train(self, runs, on_chunk):
    del on_chunk
    assert len(runs) <= self.lanes
    if self.lanes > 2:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory on device.")
    return grid.Wave(runs, [], [], None, None)


def test_a_wave_that_does_not_fit_is_trained_in_halves(setup, monkeypatch, capsys):
  monkeypatch.setattr(grid, "WaveProgram", Program)
  monkeypatch.setattr(Program, "made", [])
  monkeypatch.setattr(memory, "_WAVE_CPU", 7)
  runs = [Run(METHOD, "d0", seed) for seed in range(14)]
  waves = []
  grid.train_all(grid.Grid(setup), runs, waves.append)
  assert Program.made == [7, 4, 2]
  assert [run.seed for wave in waves for run in wave.runs] == list(range(14))
  assert max(len(wave.runs) for wave in waves) == 2
  assert "going on with 2 runs at once" in capsys.readouterr().err


def test_one_run_too_large_and_other_errors_are_raised(setup, monkeypatch):
  monkeypatch.setattr(grid, "WaveProgram", Program)
  one = [Run(METHOD, "d0", 0)]
  for lanes, message in ((1, "RESOURCE_EXHAUSTED"), (4, "INTERNAL")):

    def train(self, runs, on_chunk, message=message):
      del self, runs, on_chunk
      raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(Program, "train", train)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
      grid.train_all(grid.Grid(setup), one * lanes, lambda _: None)
