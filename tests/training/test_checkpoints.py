"""Checkpoints: which are kept, which is best, and what a broken one leads to."""

import math
import shutil
import subprocess
import sys
from types import SimpleNamespace
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.training.checkpoints import CheckpointError, Checkpoints


def state(value):
  return {"w": jnp.full(3, value), "key": jax.random.key(int(value))}


def save_all(folder, scores, **kw):
  with Checkpoints(folder, **kw) as checkpoints:
    for step, score in enumerate(scores, start=1):
      rank = score if isinstance(score, tuple) else (score, 0.0)
      checkpoints.save(step, state(float(step)), {"data": {"at": step}}, rank)
      checkpoints.wait()
    return checkpoints.steps(), checkpoints.best_step()


def break_step(folder, step):
  """Cuts every file that holds array data to half its length."""
  files = [f for f in (folder / str(step) / "state").rglob("*") if f.is_file()]
  for f in files:
    f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])


@pytest.mark.parametrize(
  ("scores", "kept", "best"),
  [
    ([0.1, 0.9, 0.8, 0.3, 0.2], [2, 4, 5], 2),  # The newest two, and the best.
    ([0.5, math.nan, 0.4, 0.4], [1, 3, 4], 1),  # nan is the worst, not the best.
    ([0.5, 0.5, 0.5, 0.5], [1, 3, 4], 1),  # Equal: the earlier one.
    ([(0.5, -2.0), (0.5, -1.0), (0.5, -3.0), (0.1, 0.0)], [2, 3, 4], 2),
  ],
)
def test_newest_and_best_are_kept(tmp_path, scores, kept, best):
  assert save_all(tmp_path / "c", scores) == (kept, best)
  with Checkpoints(tmp_path / "c") as again:
    assert (again.steps(), again.best_step()) == (kept, best)
    found, meta = again.restore(state(0.0), best)
    np.testing.assert_array_equal(found["w"], float(best))
    assert found["key"] == jax.random.key(best)
    assert meta == {"data": {"at": best}}


def test_nothing_saved(tmp_path):
  with Checkpoints(tmp_path / "c") as checkpoints:
    assert checkpoints.steps() == []
    assert checkpoints.best_step() is None
    assert checkpoints.restore_latest(state(0.0)) is None


def test_a_broken_newest_step_falls_back_with_a_warning(tmp_path):
  save_all(tmp_path / "c", [0.3, 0.2, 0.1])
  break_step(tmp_path / "c", 3)
  with Checkpoints(tmp_path / "c") as checkpoints:
    with pytest.raises(CheckpointError, match="c/3 cannot be read"):
      checkpoints.restore(state(0.0), 3)
    with pytest.warns(
      RuntimeWarning, match="c/3 cannot be read.*falling back to .*c/2"
    ):
      found, _ = checkpoints.restore_latest(state(0.0))
    np.testing.assert_array_equal(found["w"], 2.0)
    # Set aside: saving that step again works, and nothing is lost.
    assert checkpoints.steps() == [1, 2]
    assert (tmp_path / "c-broken" / "3").is_dir()
    checkpoints.save(3, state(3.0), {}, (0.1, 0.0))
    checkpoints.wait()
    np.testing.assert_array_equal(checkpoints.restore(state(0.0), 3)[0]["w"], 3.0)


def test_missing_files_and_all_steps_broken(tmp_path):
  save_all(tmp_path / "c", [0.1, 0.2])
  shutil.rmtree(tmp_path / "c" / "2" / "state")
  break_step(tmp_path / "c", 1)
  with (
    Checkpoints(tmp_path / "c") as checkpoints,
    pytest.warns(RuntimeWarning, match="c/. cannot be read.*starts anew"),
  ):
    assert checkpoints.restore_latest(state(0.0)) is None


def test_a_checkpoint_holds_the_state_of_its_step_though_it_is_donated(tmp_path):
  """Saving is asynchronous, and the next step reuses the buffers."""
  advance = jax.jit(lambda s: jax.tree.map(lambda a: a + 1.0, s), donate_argnums=0)
  current = {"w": jnp.zeros((512, 512))}
  with Checkpoints(tmp_path / "c", keep=6) as checkpoints:
    for step in range(1, 7):
      current = advance(current)
      checkpoints.save(step, current, {}, (0.0,))
    checkpoints.wait()
    for step in range(1, 7):
      found, _ = checkpoints.restore({"w": jnp.zeros((512, 512))}, step)
      np.testing.assert_array_equal(found["w"], float(step))


def replace(path, old, new):
  content = path.read_bytes()
  assert old in content
  path.write_bytes(content.replace(old, new, 1))


def flip_largest(step):
  """The middle byte of the file that holds the arrays."""
  path = max((step / "state").rglob("d/*"), key=lambda f: f.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(content)


DAMAGES = {
  "a bit of an array": flip_largest,
  "a digit of the place in the data": lambda step: replace(
    step / "meta" / "metadata", b'"at": 3', b'"at": 2'
  ),
  "no place in the data": lambda step: (step / "meta" / "metadata").write_bytes(b""),
  "no manifest": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
  "a file instead of a folder": lambda step: (shutil.rmtree(step), step.write_text("")),
}


def noise(step):
  """As large as to be read in pieces, and hard to compress."""
  key = jax.random.key(step)
  kernel = jax.random.normal(key, (64, 64))
  return {"w": kernel, "half": kernel.astype(jnp.bfloat16), "key": key}


def save_noise(folder, scores):
  with Checkpoints(folder) as checkpoints:
    for step, score in enumerate(scores, start=1):
      checkpoints.save(step, noise(step), {"data": {"at": step}}, (score,))


def assert_noise(found, step):
  state, meta = found
  assert meta == {"data": {"at": step}}
  jax.tree.map(np.testing.assert_array_equal, *map(key_data, (state, noise(step))))


def key_data(state):
  return state | {"key": jax.random.key_data(state["key"])}


@pytest.mark.parametrize("damage", DAMAGES)
def test_other_numbers_are_noticed(tmp_path, damage):
  save_noise(tmp_path / "c", [0.9, 0.2, 0.1])
  DAMAGES[damage](tmp_path / "c" / "3")
  with Checkpoints(tmp_path / "c") as checkpoints:
    with pytest.warns(RuntimeWarning, match="c/3 cannot be read.*falling back to .*2"):
      assert_noise(checkpoints.restore_latest(noise(0)), 2)
    assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"commit_timestamp_nsecs": 1e99}'])
def test_no_small_file_keeps_a_folder_from_opening(tmp_path, content):
  save_noise(tmp_path / "c", [0.9, 0.2, 0.1])
  arrays = [*(tmp_path / "c").rglob("d/*"), *(tmp_path / "c").rglob("*.ocdbt")]
  for f in set((tmp_path / "c").rglob("*")) - set(arrays):
    if f.is_file() and f.parent.name != "meta":
      f.write_bytes(content)
  with Checkpoints(tmp_path / "c") as checkpoints:
    assert checkpoints.steps() == [1, 2, 3]
    assert checkpoints.best_step() == 1
    with warnings.catch_warnings(record=True) as said:
      warnings.simplefilter("always", RuntimeWarning)
      found = checkpoints.restore_latest(noise(0))
  if found is None:
    assert len(said) == 3
  else:
    assert_noise(found, 3)


def test_a_rank_that_does_not_read_is_no_rank(tmp_path):
  save_noise(tmp_path / "c", [0.9, 0.2, 0.1])
  replace(tmp_path / "c" / "1" / "meta" / "metadata", b"[0.9", b"[0.0")
  with Checkpoints(tmp_path / "c") as checkpoints:
    with pytest.raises(CheckpointError, match="c/1 cannot be read.*checksum"):
      checkpoints.best_step()
    with pytest.warns(RuntimeWarning, match="c/1 cannot be read.*set aside"):
      assert_noise(checkpoints.restore_latest(noise(0)), 3)
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.best_step() == 2


def test_a_step_under_another_number_is_refused(tmp_path):
  save_noise(tmp_path / "c", [0.9, 0.2])
  (tmp_path / "c" / "2").rename(tmp_path / "c" / "7")
  with (
    Checkpoints(tmp_path / "c") as checkpoints,
    pytest.raises(CheckpointError, match="c/7 cannot be read.*checksum"),
  ):
    checkpoints.restore(noise(0), 7)


def test_reading_only_leaves_a_save_in_flight(tmp_path):
  with Checkpoints(tmp_path / "none", read_only=True) as checkpoints:
    assert checkpoints.restore_best(noise(0)) is None
  assert not (tmp_path / "none").exists()
  save_noise(tmp_path / "c", [0.9, 0.2])
  flight = tmp_path / "c" / "3.orbax-checkpoint-tmp"
  flight.mkdir()
  with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
    step, *found = checkpoints.restore_best(noise(0))
    assert_noise(found, 1)
    with pytest.raises(ValueError, match="open for reading only"):
      checkpoints.save(3, noise(3), {}, (0.0,))
  assert step == 1
  assert flight.exists()
  with Checkpoints(tmp_path / "c") as checkpoints:  # It died: the writer cleans up.
    checkpoints.save(4, noise(4), {}, (0.0,))
  assert not flight.exists()


_SHARDED = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import NamedSharding, PartitionSpec
from mer_dg.training.checkpoints import Checkpoints
mesh = jax.make_mesh((4,), ("d",))
split = NamedSharding(mesh, PartitionSpec("d"))
kernel = jax.random.normal(jax.random.key(1), (64, 64))
whole = {"w": kernel, "half": kernel.astype("bfloat16"), "key": jax.random.key(0)}
cut = whole | {k: jax.device_put(whole[k], split) for k in ("w", "half")}
with Checkpoints(sys.argv[1]) as checkpoints:
  found, _ = checkpoints.restore(cut, 1)
  assert found["w"].sharding == split
  checkpoints.save(2, cut, {"data": {"at": 2}}, (1.0,))
"""


def test_the_checksum_does_not_depend_on_devices(tmp_path):
  save_noise(tmp_path / "c", [0.9])
  subprocess.run([sys.executable, "-c", _SHARDED, tmp_path / "c"], check=True)
  with Checkpoints(tmp_path / "c") as checkpoints:
    state, _ = checkpoints.restore(noise(0), 2)
  np.testing.assert_array_equal(state["w"], noise(1)["w"])


def test_one_kept_step_is_refused(tmp_path):
  with pytest.raises(ValueError, match="keep=1 must be at least 2"):
    Checkpoints(tmp_path, keep=1)


@pytest.mark.parametrize("at", ["save", "wait", "leave"])
def test_what_cannot_be_written_is_one_sentence(tmp_path, at):
  checkpoints = Checkpoints(tmp_path / "c").__enter__()
  act = {
    "save": lambda: checkpoints.save(1, state(1.0), {}, (0.0,)),
    "wait": checkpoints.wait,
    "leave": lambda: checkpoints.__exit__(None, None, None),
  }

  def fail(*_, **__):
    raise ValueError("RESOURCE_EXHAUSTED:\n No space left on device")

  names = {"save": "save", "wait": "wait_until_finished", "leave": "close"}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoints._manager, names[at], fail)
    with pytest.raises(CheckpointError, match=r"/c cannot be written .*No space left"):
      act[at]()
  checkpoints.__exit__(None, None, None)


@pytest.mark.slow  # Orbax waits five minutes for its own temporary folder.
def test_a_folder_that_vanishes_is_one_sentence(tmp_path):
  with (
    pytest.raises(CheckpointError, match=r"/c cannot be written"),
    Checkpoints(tmp_path / "c") as checkpoints,
  ):
    shutil.rmtree(tmp_path / "c")
    (tmp_path / "c").write_text("a file")
    checkpoints.save(1, state(1.0), {}, (0.0,))


def test_what_tensorstore_says_of_reads_given_up_is_not_printed(tmp_path, monkeypatch):
  told = []
  monkeypatch.setattr(sys, "unraisablehook", told.append)
  with Checkpoints(tmp_path / "a"), Checkpoints(tmp_path / "b"):
    given_up = SimpleNamespace(
      object=None, exc_value=RuntimeError("Event loop is closed")
    )
    code = SimpleNamespace(co_filename="/site-packages/orbax/serialization.py")
    read = SimpleNamespace(object=SimpleNamespace(cr_code=code), exc_value=Exception())
    other = SimpleNamespace(object=None, exc_value=RuntimeError("anything else"))
    for what in (given_up, read, other):
      sys.unraisablehook(what)
  assert told == [other]
