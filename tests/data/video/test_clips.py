"""Sampling, cropping and resizing against hand calculations and PyTorch."""

import numpy as np
import pytest

from mer_dg.data.video.clips import (
  FLOW,
  TRIES,
  VIDEO,
  Box,
  Draw,
  center_box,
  clip_offset,
  cut,
  draw,
  flip,
  frame_indices,
  normalise,
  resize,
  scaled_size,
  stack_flow,
  to_short_side,
  train_box,
)


def _numbers(**given):
  half = dict.fromkeys(Draw._fields, 0.5)
  half |= {field: np.full(TRIES, 0.5) for field in ("area", "aspect")}
  return Draw(**(half | given))


# --- time ----------------------------------------------------------------------------


def test_windows_are_of_equal_time():
  # 64 frames at 60 per second and 32 at 30 per second.
  assert (VIDEO.length * VIDEO.interval) / 60 == (FLOW.length * FLOW.interval) / 30


@pytest.mark.parametrize(
  ("count", "middle", "last"),
  [(1, 0, 0), (63, 0, 0), (64, 0, 0), (65, 1, 1), (164, 50, 100)],
)
def test_offsets(count, middle, last):
  # floor((n - 64 + 1) / 2) if n > 63, else 0; training: 0..n - 64.
  assert clip_offset(count, VIDEO) == middle
  assert clip_offset(count, VIDEO, u=0.0) == 0
  assert clip_offset(count, VIDEO, u=np.nextafter(1.0, 0)) == last


def test_training_offsets_are_uniform():
  u = (np.arange(1000) + 0.5) / 1000
  offsets = clip_offset(np.full(1000, 68), VIDEO, u)
  assert np.bincount(offsets).tolist() == [200] * 5  # 0..4


def test_indices_step_and_start_again():
  assert frame_indices(200, 7, VIDEO).tolist() == list(range(7, 71, 2))
  # 20 frames, every fourth: 0 4 8 12 16, then 20 % 20 = 0, 24 % 20 = 4, 28 % 20 = 8.
  assert frame_indices(20, 0, FLOW).tolist() == [0, 4, 8, 12, 16, 0, 4, 8]
  assert frame_indices(1, 0, FLOW).tolist() == [0] * 8
  several = frame_indices(np.array([20, 40]), np.array([0, 8]), FLOW)
  assert several.tolist() == [[0, 4, 8, 12, 16, 0, 4, 8], list(range(8, 40, 4))]


# --- draws ---------------------------------------------------------------------------


def test_draws_are_a_function_of_their_arguments():
  flat = lambda d: np.concatenate([np.ravel(v) for v in d])
  base = flat(draw(0, 1, 2, 0))
  assert base.shape == (4 + 2 * TRIES,)
  np.testing.assert_array_equal(base, flat(draw(0, 1, 2, 0)))
  for other in ((1, 1, 2, 0), (0, 2, 2, 0), (0, 1, 3, 0), (0, 1, 2, 1), (0, 2, 1, 0)):
    assert not np.isin(flat(draw(*other)), base).any(), other


def test_draws_are_uniform():
  made = [draw(0, epoch, i) for epoch in range(20) for i in range(50)]
  for field in ("offset", "top", "left", "flip"):
    values = np.array([getattr(d, field) for d in made])
    # 1000 draws: mean 0.5 +- 0.009, deviation 0.289.
    assert values.mean() == pytest.approx(0.5, abs=0.04)
    assert values.std() == pytest.approx(1 / np.sqrt(12), rel=0.05)


# --- space ---------------------------------------------------------------------------


def test_scaled_sizes():
  # int(x * 256 / short + 0.5), by hand.
  assert scaled_size(256, 456) == (256, 456)
  assert scaled_size(1080, 1920) == (256, 455)  # 455.11
  assert scaled_size(480, 360) == (341, 256)  # 341.33
  assert scaled_size(100, 90) == (284, 256)  # 284.44


def test_boxes_by_hand():
  assert center_box(256, 456, 224) == Box(16, 116, 224, 224)
  assert center_box(256, 455, 256) == Box(0, 99, 256, 256)
  with pytest.raises(ValueError, match="size=257"):
    center_box(256, 456, 257)
  # Area 0.54 of 100 x 100 = 5400, aspect exp(0) = 1: 73.48 -> 73 squared; places 0..27.
  assert train_box(_numbers(), 100, 100) == Box(14, 14, 73, 73)
  assert train_box(_numbers(top=0.0, left=0.999), 100, 100) == Box(0, 27, 73, 73)
  # Aspect 4/3 (width by height): sqrt(5400 * 4/3) = 84.85, sqrt(5400 * 3/4) = 63.64.
  wide = _numbers(aspect=np.ones(TRIES))
  assert train_box(wide, 100, 100)[2:] == (64, 85)


def test_the_first_try_that_fits_counts_else_the_central_square():
  # All of 100 x 400 is 40000, as a square 200 x 200: too high. The third try, of area
  # 0.08 * 40000 = 3200, is 57 x 57 (56.57).
  area = np.ones(TRIES)
  area[2] = 0.0
  assert train_box(_numbers(area=area), 100, 400)[2:] == (57, 57)
  assert train_box(_numbers(area=np.ones(TRIES)), 100, 400) == Box(0, 150, 100, 100)


def test_boxes_cover_what_they_should():
  boxes = np.array([train_box(draw(0, 0, i), 256, 456) for i in range(2000)])
  top, left, height, width = boxes.T
  assert (top >= 0).all()
  assert (top + height <= 256).all()
  assert (left + width <= 456).all()
  ratio, share = width / height, height * width / (256 * 456)
  assert 0.74 < ratio.min() < 0.8
  assert 1.28 < ratio.max() < 1.35
  assert 0.079 < share.min() < 0.09
  assert share.max() > 0.5  # A crop of aspect 4/3 at most covers 0.75.
  # A wide image turns away more of the high crops; in a square one both are alike.
  square = np.array([train_box(draw(0, 0, i), 300, 300) for i in range(2000)])
  log_ratio = np.log(square[:, 3] / square[:, 2])
  assert np.median(log_ratio) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(
  ("old", "new"), [((60, 90), (32, 32)), ((20, 24), (32, 32)), ((24, 40), (24, 30))]
)
def test_resizing_equals_pytorch(old, new):
  torch = pytest.importorskip("torch")
  frames = np.random.default_rng(0).integers(0, 256, (2, *old, 3), np.uint8)
  planes = torch.tensor(frames).permute(0, 3, 1, 2).double()
  expected = torch.nn.functional.interpolate(
    planes, size=new, mode="bilinear", align_corners=False, antialias=False
  )
  actual = resize(frames, Box(0, 0, *old), *new)
  # Rounding: half a level, and a hair for float32.
  np.testing.assert_allclose(
    actual, expected.permute(0, 2, 3, 1).numpy(), atol=0.5 + 1e-3
  )


def test_a_crop_does_not_see_what_lies_outside():
  frames = np.random.default_rng(1).integers(0, 256, (1, 40, 50, 3), np.uint8)
  box = Box(5, 7, 20, 30)
  alone = np.ascontiguousarray(frames[:, 5:25, 7:37])
  whole = resize(frames, box, 16, 16)
  np.testing.assert_array_equal(whole, resize(alone, Box(0, 0, 20, 30), 16, 16))
  np.testing.assert_array_equal(resize(frames, box, 20, 30), alone)
  assert to_short_side(frames, 20).shape == (1, 20, 25, 3)


def test_flow_changes_sign_when_mirrored():
  u = np.array([[[[10], [20]]]], np.uint8)
  stacked = stack_flow(u, u + 100)  # [1, 1, 2, 2]
  assert flip(stacked, flow=True).tolist() == [[[[235, 120], [245, 110]]]]
  assert flip(stacked, flow=False).tolist() == [[[[20, 120], [10, 110]]]]
  np.testing.assert_array_equal(flip(flip(stacked, flow=True), flow=True), stacked)


def test_cut_by_hand():
  frames = np.random.default_rng(2).integers(0, 256, (2, 256, 300, 2), np.uint8)
  np.testing.assert_array_equal(cut(frames, "flow", None), frames[:, :, 22:278])
  box = train_box(_numbers(), 256, 300)
  kept = cut(frames, "flow", _numbers(flip=0.5))
  np.testing.assert_array_equal(kept, resize(frames, box, 224, 224))
  mirrored = cut(frames, "flow", _numbers(flip=0.499))
  np.testing.assert_array_equal(mirrored, flip(kept, flow=True))
  colour = np.concatenate([frames, frames[..., :1]], axis=-1)
  assert cut(colour, "video", None).shape == (2, 224, 224, 3)
  np.testing.assert_array_equal(
    cut(colour, "video", _numbers(flip=0.0))[..., 0],
    cut(colour, "video", _numbers())[:, :, ::-1, 0],
  )


def test_normalisation():
  grey = np.full((1, 1, 3), 128, np.uint8)
  # (128 - 123.675) / 58.395, (128 - 116.28) / 57.12, (128 - 103.53) / 57.375
  expected = [0.07406456, 0.2051821, 0.4264924]
  np.testing.assert_allclose(normalise(grey, "video")[0, 0], expected, rtol=1e-6)
  assert normalise(np.array([[0, 255]], np.uint8), "flow").tolist() == [[-1, 0.9921875]]
