"""A stream yields the resident driver's batches, from any step, with any readers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.data.arrays import put, sample_batch, to_arrays
from mer_dg.data.dataset import DataError, make_dataset
from mer_dg.data.sampling import make_pool
from mer_dg.data.stream import ArraySource, DevicePrefetch, stream_batches

_KEY = jax.random.key(3)
_PER_DOMAIN = 4
_POOL = make_pool([np.arange(10, 21), np.array([30, 31])])


def _dataset():
  rng = np.random.default_rng(0)
  return make_dataset(
    name="toy",
    inputs={
      "s": rng.normal(size=(40, 5, 3)).astype(np.float16),
      "pic": rng.integers(0, 256, (40, 4, 4)).astype(np.uint8),
    },
    label=np.arange(40) % 3,
    domain=np.arange(40) // 20,
    class_names=["x", "y", "z"],
    domain_names=["p", "q"],
    lengths={"s": rng.integers(1, 6, 40)},
    present={"pic": np.arange(40) % 4 > 0},
    index=np.arange(40) + 500,
  )


_DATASET = _dataset()
_ARRAYS = put(to_arrays(_DATASET))
_resident = jax.jit(lambda t: sample_batch(_ARRAYS, _KEY, t, _POOL, _PER_DOMAIN))


def _stream(data=_DATASET, **changes):
  made = {"key": _KEY, "pool": _POOL, "per_domain": _PER_DOMAIN}
  return stream_batches(data, **(made | changes))


def _assert_equal(batch, step):
  expected = jax.device_get(_resident(jnp.int32(step)))
  assert jax.tree.structure(batch) == jax.tree.structure(expected)
  types = lambda tree: jax.tree.map(lambda a: str(a.dtype), tree)
  assert types(batch) == types(expected)
  jax.tree.map(np.testing.assert_array_equal, batch, expected)


class Files:
  """A source that counts its reads, with elements of its own making."""

  def __init__(self):
    self.inner = ArraySource(_DATASET)
    self.reads = []

  def __len__(self):
    return len(self.inner)

  def __getitem__(self, row):
    self.reads.append(row)
    return ("element", row)

  def decode(self, element):
    return self.inner[element[1]]


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("start", [0, 250])  # Indices are drawn 256 steps at a time.
def test_equals_the_resident_sampler(threads, start):
  stream = _stream(start_step=start, num_threads=threads)
  for step in range(start, start + 12):
    assert stream.step == step
    _assert_equal(next(stream), step)
  stream.close()


def test_source_of_rows_equals_the_resident_sampler():
  files = Files()
  stream = _stream(files, read_row=files.decode, num_threads=0)
  for step in range(6):
    _assert_equal(next(stream), step)
  # Four rows of the first domain and two of the second: padding is not read.
  assert len(files.reads) == 6 * 6


def test_source_without_read_row():
  stream = _stream(ArraySource(_DATASET), read_row=lambda row: row)
  _assert_equal(next(stream), 0)
  stream.close()


def test_a_source_that_augments_is_told_the_step():
  class Augmenting(Files):
    def read(self, row, step):
      self.reads.append((row, step))
      return self.inner[row]

  source = Augmenting()
  stream = _stream(source, start_step=7, num_threads=0)
  _assert_equal(next(stream), 7)
  _assert_equal(next(stream), 8)
  assert [step for _, step in source.reads] == [7] * 6 + [8] * 6


@pytest.mark.parametrize("threads", [0, 3])
def test_state_resumes_exactly_whatever_reads(threads):
  stream = _stream(num_threads=3)
  for _ in range(5):
    next(stream)
  state = stream.get_state()
  stream.close()
  resumed = _stream(num_threads=threads)
  next(resumed)  # It may have been in use.
  resumed.set_state(state)
  for step in range(5, 9):
    _assert_equal(next(resumed), step)
  resumed.close()


def test_close_then_go_on():
  stream = _stream()
  next(stream)
  stream.close()
  _assert_equal(next(stream), 1)
  stream.close()


def test_grain_checkpoint_through_orbax(tmp_path):
  grain = pytest.importorskip("grain")
  ocp = pytest.importorskip("orbax.checkpoint")
  stream = DevicePrefetch(_stream())
  for _ in range(7):
    next(stream)
  with ocp.CheckpointManager(tmp_path) as manager:
    save = grain.checkpoint.CheckpointSave(stream)
    manager.save(7, args=ocp.args.Composite(data=save))
    manager.wait_until_finished()
    other = _stream(num_threads=0)
    restore = grain.checkpoint.CheckpointRestore(other)
    manager.restore(7, args=ocp.args.Composite(data=restore))
  _assert_equal(next(other), 7)
  stream.close()


def test_device_prefetch_hands_out_the_same_batches_on_the_device():
  stream = DevicePrefetch(_stream(num_threads=0), size=3)
  for step in range(5):
    batch = next(stream)
    assert isinstance(batch["label"], jax.Array)
    _assert_equal(jax.device_get(batch), step)
  # Its state is the next batch to hand out, although three more were read.
  state = stream.get_state()
  resumed = _stream(num_threads=0)
  resumed.set_state(state)
  _assert_equal(next(resumed), 5)
  stream.set_state(_stream(start_step=2).get_state())
  _assert_equal(jax.device_get(next(stream)), 2)
  with pytest.raises(ValueError, match="size must be at least 1, got 0"):
    DevicePrefetch(_stream(), size=0)


def test_worker_processes_yield_the_same_batches():
  stream = _stream(num_workers=1, num_threads=1, prefetch=2)
  for step in range(3):
    _assert_equal(next(stream), step)
  state = stream.get_state()
  stream.close()
  resumed = _stream(num_threads=0)
  resumed.set_state(state)
  _assert_equal(next(resumed), 3)


def test_unequal_rows_are_explained():
  class Ragged(Files):
    def decode(self, element):
      row = dict(super().decode(element))
      row["inputs"] = {**row["inputs"], "s": np.zeros((element[1], 3))}
      return row

  files = Ragged()
  with pytest.raises(DataError, match="'s' has shape .11, 3., but row 10 has .10, 3."):
    next(_stream(files, read_row=files.decode, per_domain=11, num_threads=0))


def test_bad_arguments():
  for changes, message in [
    (dict(per_domain=0), "per_domain must be at least 1, got 0"),
    (dict(start_step=-1), "start_step must be at least 0, got -1"),
    (dict(num_threads=-1), "num_threads must be at least 0"),
    (dict(prefetch=0), "prefetch must be at least 1"),
    (dict(num_workers=-2), "num_workers must be at least 0"),
    (dict(pool=make_pool([np.array([40])])), "row 40, but the data has 40 rows"),
  ]:
    with pytest.raises(ValueError, match=message):
      _stream(**changes)
