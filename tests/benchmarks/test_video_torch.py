import jax
import numpy as np
import pytest

from mer_dg.entropy import kde_entropy

torch = pytest.importorskip("torch")
pytest.importorskip("ml_collections")

from benchmarks import _video_sides as sides  # noqa: E402
from benchmarks import video_torch  # noqa: E402


def test_kernel_entropy_is_ours():
  z = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
  unit = z / np.linalg.norm(z, axis=1, keepdims=True)
  for bandwidth in (0.3, 1.0):
    actual = sides.kernel_entropy(torch.from_numpy(z), bandwidth)
    np.testing.assert_allclose(
      actual, kde_entropy(unit, bandwidth=bandwidth), rtol=1e-5
    )


@pytest.mark.slow
def test_both_sides_take_the_same_steps():
  ours, theirs = video_torch.check_same()
  # Far within the tolerance: what is left is rounding.
  np.testing.assert_allclose(ours, theirs, rtol=1e-4)
  # The steps move the losses, or they would say nothing of gradient and optimiser.
  moved = np.abs(np.diff(ours)) / ours[0]
  assert moved.min() > 10 * video_torch.TOLERANCE


def test_sides_that_differ_are_not_timed(monkeypatch):
  monkeypatch.setattr(video_torch, "our_steps", lambda *_: (lambda n: 2.0, 1.0))
  monkeypatch.setattr(video_torch, "torch_steps", lambda *_: lambda n: 2.003)
  with pytest.raises(RuntimeError, match="not the same step"):
    video_torch.check_same()
  monkeypatch.setattr(video_torch, "torch_steps", lambda *_: lambda n: 2.001)
  video_torch.check_same()


def test_only_layer4_and_heads_learn_in_torch():
  tiny = sides.make_problem(
    dtype="float32", shapes=video_torch.TINY_SHAPES, **video_torch.TINY
  )
  model = sides.Peer(tiny)
  assert {m: model.rates[m] for m in sides.MODALITIES} == dict(
    video=0.5,
    audio=0.0,
    flow=0.5,  # Of the published heads.
  )
  learns = {n for n, p in model.named_parameters() if p.requires_grad}
  kept = {n for n, _ in model.named_parameters()} - learns
  assert kept
  assert not any(".layer4." in n or not n.startswith("encoders.") for n in kept)
  assert all(".layer4." in n or not n.startswith("encoders.") for n in learns)
  for m, backbone in tiny.backbones.items():
    shapes = jax.eval_shape(backbone.init, jax.random.key(0))["layer4"]["params"]
    own = [n for n in learns if n.startswith(f"encoders.{m}.")]
    assert len(own) == len(jax.tree.leaves(shapes))


def test_turns_and_table():
  calls = []

  def contender(name):
    return lambda steps: calls.append((name, steps)) or 1.0

  seconds = video_torch.take_turns([contender("a"), contender("b")], rounds=2, steps=3)
  assert seconds.shape == (2, 2)
  assert calls[2:] == [("a", 3), ("b", 3), ("b", 3), ("a", 3)]
  with pytest.raises(RuntimeError, match="loss of contender 0 is nan"):
    video_torch.take_turns([lambda steps: float("nan")], rounds=1, steps=1)
  # 16 clips in 0.5, 1 and 0.8 s against 1, 1 and 1.6 s: 32, 16, 20 and 16, 16, 10
  # clips/s, ratios 2, 1, 2; medians 20 and 16 at 500 GFLOP are 10 and 8 TFLOP/s.
  seconds = np.array([[0.5, 1.0], [1.0, 1.0], [0.8, 1.6]])
  assert video_torch.format_row(16, "bfloat16", seconds, 500.0, 100.0) == (
    "| 16 | bfloat16 | 20 (16 to 32) | 16 (10 to 16) | 2 (1 to 2) "
    "| 10 | 10.0 % | 8 | 8.0 % | 500 |"
  )


def test_peaks():
  for kind, dtype, tf32, peak in (
    ("NVIDIA H100 80GB HBM3", "bfloat16", True, 989.0),
    ("NVIDIA H100 PCIe", "float32", True, 378.0),
    ("NVIDIA A100-SXM4-40GB", "float32", False, 19.5),
  ):
    assert video_torch.peak_tflops(kind, dtype, tf32) == peak
  assert np.isnan(video_torch.peak_tflops("cpu", "bfloat16", True))
