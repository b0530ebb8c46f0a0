"""Checkpoints: which are kept, which is best, and what a broken one leads to."""

import math
import shutil

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
    with pytest.warns(RuntimeWarning, match="c/3 cannot be read.*falling back"):
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
    pytest.warns(RuntimeWarning, match="falling back"),
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


def test_a_folder_that_vanishes_is_one_sentence(tmp_path):
  with (
    pytest.raises(CheckpointError, match=r"/c cannot be written"),
    Checkpoints(tmp_path / "c") as checkpoints,
  ):
    shutil.rmtree(tmp_path / "c")
    (tmp_path / "c").write_text("a file")
    checkpoints.save(1, state(1.0), {}, (0.0,))
