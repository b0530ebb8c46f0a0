"""The setup: wrong data and wrong sizes stop before anything compiles."""

import numpy as np
import pytest

from mer_dg.data import save_npz
from mer_dg.data.arrays import to_arrays
from mer_dg.evaluation.evaluators import (
  make_evaluate,
  make_forward,
  make_streamed_evaluate,
  name_sources,
)
from mer_dg.experiments import ConfigError, DataError, check, make_setup, validate
from mer_dg.experiments.setup import asked, first_state, task_arrays


@pytest.fixture
def setup(tiny):
  return lambda target="d1", **fields: make_setup(validate(tiny(target, **fields)))


@pytest.fixture
def from_file(setup, tmp_path):
  """Setup of arrays that are saved and read back."""

  def make(arrays, target="", **fields):
    np.savez(tmp_path / "set.npz", **arrays)
    return setup(
      target, data__name="npz", data__path=str(tmp_path / "set.npz"), **fields
    )

  return make


def arrays(n=60, domains=3):
  rng = np.random.default_rng(0)
  return {
    "modalities": np.array(["a", "b"]),
    "a": rng.normal(size=(n, 4)).astype(np.float32),
    "b": rng.normal(size=(n, 3)).astype(np.float32),
    "label": np.arange(n) // 2 % 3,
    "domain": np.array([f"d{i}" for i in range(domains)])[np.arange(n) % domains],
    "class_names": np.array(["walk", "run", "sit"]),
  }


def test_a_batch_must_divide_and_fit(setup):
  with pytest.raises(ConfigError, match="config.batch_size=15 must be a multiple"):
    check(setup(batch_size=15))
  with pytest.raises(ConfigError, match="takes 50 rows .* 'd0' has 40 .* at most 80"):
    check(setup(batch_size=100))
  check(setup(batch_size=80))


def test_an_open_batch_size_is_about_96(setup):
  assert setup().per_domain(("d1", ())) == 48


def test_unknown_target_names_the_domains(setup):
  with pytest.raises(DataError, match=r"'d9' is not one of \['d0', 'd1', 'd2'\]"):
    setup("d9")
  with pytest.raises(DataError, match="'d9' is not one of"):
    setup("", targets=("d0", "d9"))


def test_target_among_the_sources_of_a_table(setup):
  with pytest.raises(DataError, match="target 'd0' is also a source"):
    setup("", sources=("d0", "d1"))


def test_class_in_the_target_only_names_class_and_setting(from_file):
  made = arrays()
  made["label"] = np.where(made["domain"] == "d2", 2, made["label"] % 2)
  with pytest.raises(
    DataError,
    match=r"class 'sit' .* target 'd2' .*config.data.drop_unseen_classes=True",
  ):
    from_file(made, "d2")
  made["label"][2] = 0  # One row of a class that the sources have.
  check(from_file(made, "d2", data__drop_unseen_classes=True))


def test_a_network_that_does_not_fit_the_data(from_file):
  with pytest.raises(ConfigError, match="config.network does not fit.*encoder='conv'"):
    from_file(arrays(), network__encoder="conv")


def test_no_file(setup):
  with pytest.raises(ConfigError, match="config.data.path='' must name a .npz file"):
    setup(data__name="npz")
  with pytest.raises((DataError, FileNotFoundError), match="nowhere.npz"):
    setup(data__name="npz", data__path="nowhere.npz")


def re_paired_accuracy(setup, task, variables):
  """Of source validation with every modality from another row of the class, by hand."""
  import jax

  from mer_dg.data.arrays import gather_batch
  from mer_dg.evaluation import re_pair_within_class

  names, count = setup.network().modalities, task.rows.size
  place = np.flatnonzero(task.mask.reshape(-1) & (task.domain.reshape(-1) >= 0))
  rows = task.rows.reshape(-1)[place]
  ones = np.ones(len(rows), bool)
  data = to_arrays(setup.dataset.in_memory())
  batch = gather_batch(data, rows, np.zeros_like(rows), ones)
  z = make_forward(setup.network())(variables, batch).embeddings
  label, where = np.zeros(count, int), np.zeros(count, bool)
  label[place], where[place] = batch["label"], True
  domain = task.domain.reshape(-1)
  partners = re_pair_within_class(label, domain, jax.random.key(0), names, where)
  taken = {m: np.searchsorted(place, np.asarray(partners[m])[place]) for m in names}
  assert any((index != np.arange(len(rows))).any() for index in taken.values())
  logits = setup.network().fuse(
    variables,
    {m: z[m][index] for m, index in taken.items()},
    {m: batch["present"][m][index] for m, index in taken.items()},
  )
  return np.mean(np.argmax(logits, axis=-1) == batch["label"])


def test_a_source_without_validation_rows_is_nan_in_the_record_and_nowhere_else(
  from_file, tmp_path
):
  import jax

  from mer_dg.data.arrays import gather_batch

  made = arrays()
  made["domain"] = np.where(np.arange(60) == 0, "lone", made["domain"])
  setup = from_file(made, "d2", method="erm")
  check(setup)
  (task,) = setup.tasks
  split, rows = setup.folds[task], task_arrays(setup, task)
  sources = split.sources
  assert split.val["lone"].size == 0
  state = first_state(setup, "erm", task, scaling=rows.scaling)
  evaluators = asked(setup, task, "evaluation")
  places = (rows.rows, rows.domain, rows.mask)
  resident = jax.jit(make_evaluate(setup.network(), evaluators))
  data = to_arrays(setup.dataset.in_memory())
  found = resident(data, *places, state.variables)
  metrics = name_sources(found, sources)
  assert [k for k, v in metrics.items() if np.isnan(v)] == ["val/lone/accuracy"]
  shares = [v for k, v in metrics.items() if k.endswith("/share")]
  np.testing.assert_allclose([len(shares), sum(shares)], [15, 1.0], rtol=1e-6)
  assert {f"val/{s}/accuracy" for s in sources} <= set(metrics)
  # Without one modality the record says what a network sees that never had it.
  test = split.test
  batch = gather_batch(data, test, np.zeros_like(test), np.ones(len(test), bool))
  batch["present"]["a"] = np.zeros(len(test), bool)
  alone = make_forward(setup.network())(state.variables, batch).logits
  correct = np.argmax(alone, axis=-1) == batch["label"]
  np.testing.assert_allclose(
    metrics["target/without_a/accuracy"], correct.mean(), rtol=1e-6
  )
  batch["present"] = {m: np.full(len(test), m == "a") for m in batch["present"]}
  alone = make_forward(setup.network())(state.variables, batch).logits
  correct = np.argmax(alone, axis=-1) == batch["label"]
  np.testing.assert_allclose(
    metrics["target/only_a/accuracy"], correct.mean(), rtol=1e-6
  )
  expected = re_paired_accuracy(setup, rows, state.variables)
  np.testing.assert_allclose(metrics["val/re-paired/accuracy"], expected, rtol=1e-6)
  # Data on the host, block by block, gives the same numbers but for rounding.
  streamed = make_streamed_evaluate(setup.network(), evaluators)
  again = streamed(data, *places, state.variables)
  for name, value in found.items():
    np.testing.assert_allclose(again[name], value, rtol=1e-5, err_msg=name)


def test_names_of_sources_that_look_like_numbers():
  found = {"val/nll": 1, "val/source0/accuracy": 0.5, "val/source1/accuracy": 0.25}
  named = name_sources(found, ["source1", "d"])
  assert named == {"val/nll": 1.0, "val/source1/accuracy": 0.5, "val/d/accuracy": 0.25}


def test_file_round_trip_through_the_setup(setup, tmp_path):
  """The generator's set, saved and read, is the same experiment."""
  made = setup()
  save_npz(made.dataset, tmp_path / "set.npz")
  read = setup(data__name="npz", data__path=str(tmp_path / "set.npz"))
  assert read.dataset.version == made.dataset.version
  for m, x in made.dataset.inputs.items():
    np.testing.assert_array_equal(read.dataset.inputs[m], x)
