"""Which frames of a clip, which part of them: pure functions in NumPy.

They follow the pipelines of the reference implementations (mmaction 0.13 as configured
by SimMMDG), step by step: sampling with a loop over short clips, bilinear resizing
without a low-pass filter, rounding to 8 bits after every resizing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

SHORT_SIDE = 256


class ClipRecipe(NamedTuple):
  """How one modality is cut into a network's input.

  Attributes:
    length: Frames of the input.
    interval: Frames of the source from one to the next.
    train_size: Height and width in training.
    eval_size: Height and width in evaluation.
    mean: Per channel, of values 0 to 255.
    std: Per channel.
  """

  length: int
  interval: int
  train_size: int
  eval_size: int
  mean: tuple[float, ...]
  std: tuple[float, ...]


VIDEO = ClipRecipe(32, 2, 224, 224, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# Half the frame rate of the video: 8 x 4 frames are the time of 32 x 2. Evaluation
# crops stay at 256; the network pools over whatever it is given.
FLOW = ClipRecipe(8, 4, 224, 256, (128.0, 128.0), (128.0, 128.0))
RECIPES = {"video": VIDEO, "flow": FLOW}

# Random resized crops: range of the area and of the aspect ratio, and tries.
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
TRIES = 10


class Draw(NamedTuple):
  """The random numbers of one clip's augmentation, each uniform in [0, 1).

  Numbers, not decisions: with the same draw, clips of different length and size are cut
  at the same relative place.
  """

  offset: float
  area: np.ndarray  # [TRIES]
  aspect: np.ndarray  # [TRIES]
  top: float
  left: float
  flip: float


class Box(NamedTuple):
  """A part of an image, in pixels."""

  top: int
  left: int
  height: int
  width: int


def draw(seed: int, epoch: int, index: int, stream: int = 0) -> Draw:
  """The random numbers of a clip, a pure function of the arguments.

  Args:
    seed: Seed of the run's augmentation, at least 0.
    epoch: Anything that differs when the clip comes again, at least 0.
    index: Stable id of the clip, at least 0.
    stream: Different for modalities that are to be cut independently.

  Returns:
    The numbers.

  Example:
    >>> draw(0, 1, 2).flip == draw(0, 1, 2).flip != draw(0, 2, 2).flip
    True
  """
  # Counter-based: every (epoch, index, stream) has a stretch of its own.
  bits = np.random.Philox(key=seed, counter=[0, index, epoch, stream])
  u = np.random.Generator(bits).random(4 + 2 * TRIES)
  offset, top, left, flip_at = u[:4].tolist()
  return Draw(offset, u[4 : 4 + TRIES], u[4 + TRIES :], top, left, flip_at)


def clip_offset(
  count: np.ndarray | int, recipe: ClipRecipe, u: np.ndarray | float | None = None
) -> np.ndarray:
  """First frame of the clip.

  The window has W = length x interval frames. Where it fits, training starts anywhere
  in ``0..count - W`` and evaluation at ``floor((count - W + 1) / 2)``; else at 0.

  Args:
    count: Frames there are.
    recipe: What is cut.
    u: Uniform in [0, 1) in training, None in evaluation.

  Returns:
    int64 of the shape of ``count``.

  Example:
    >>> clip_offset(np.array([10, 64, 67]), VIDEO).tolist()
    [0, 0, 2]
    >>> clip_offset(67, VIDEO, u=0.99).item()
    3
  """
  places = np.maximum(np.asarray(count) - recipe.length * recipe.interval + 1, 0)
  if u is None:
    return places // 2
  return np.floor(np.asarray(u) * places).astype(np.int64)


def frame_indices(
  count: np.ndarray | int, offset: np.ndarray | int, recipe: ClipRecipe
) -> np.ndarray:
  """Frames of the clip; past the last it starts again at the first.

  Args:
    count: Frames there are, at least 1.
    offset: First frame of the clip.
    recipe: What is cut.

  Returns:
    int64, shape of ``count`` plus ``[length]``.

  Example:
    >>> frame_indices(20, 0, FLOW).tolist()
    [0, 4, 8, 12, 16, 0, 4, 8]
  """
  steps = np.arange(recipe.length) * recipe.interval
  count, offset = np.asarray(count)[..., None], np.asarray(offset)[..., None]
  return (offset + steps.reshape((1,) * (offset.ndim - 1) + (-1,))) % count


def scaled_size(height: int, width: int, side: int = SHORT_SIDE) -> tuple[int, int]:
  """Height and width after scaling the shorter of them to ``side``.

  Example:
    >>> scaled_size(720, 1280), scaled_size(256, 456)
    ((256, 455), (256, 456))
  """
  factor = side / min(height, width)
  return int(height * factor + 0.5), int(width * factor + 0.5)


def train_box(numbers: Draw, height: int, width: int) -> Box:
  """Random resized crop: area U(0.08, 1), log-aspect uniform between 3/4 and 4/3.

  The first of ten tries that fits is taken, else the central square.

  Args:
    numbers: From `draw`.
    height: Of the image.
    width: Of the image.

  Returns:
    The box.
  """
  area = (AREA[0] + numbers.area * (AREA[1] - AREA[0])) * (height * width)
  low, high = np.log(ASPECT)
  aspect = np.exp(low + numbers.aspect * (high - low))  # Width by height.
  widths = np.round(np.sqrt(area * aspect)).astype(int)
  heights = np.round(np.sqrt(area / aspect)).astype(int)
  fits = np.flatnonzero((widths <= width) & (heights <= height))
  if not fits.size:
    return center_box(height, width, min(height, width))
  h, w = int(heights[fits[0]]), int(widths[fits[0]])
  top = int(numbers.top * (height - h + 1))
  return Box(top, int(numbers.left * (width - w + 1)), h, w)


def center_box(height: int, width: int, size: int) -> Box:
  """The central square.

  Raises:
    ValueError: If the image is smaller.

  Example:
    >>> center_box(256, 455, 224)
    Box(top=16, left=115, height=224, width=224)
  """
  if size > min(height, width):
    raise ValueError(
      f"size={size} must be at most that of the image, {height}x{width}."
    )
  return Box((height - size) // 2, (width - size) // 2, size, size)


def resize(frames: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
  """Cuts a box out of every frame and resizes it, bilinearly.

  Pixel centres are mapped onto each other, ``(i + 0.5) * old / new - 0.5``, and where
  that lies outside the box its edge counts. Nothing is filtered when shrinking: this is
  what ``cv2.resize`` does, and what the references train on.

  Args:
    frames: uint8 ``[T, H, W, C]``.
    box: The part.
    height: New height.
    width: New width.

  Returns:
    uint8 ``[T, height, width, C]``, rounded.

  Example:
    >>> ramp = np.array([0, 100], np.uint8).reshape(1, 1, 2, 1)
    >>> resize(ramp, Box(0, 0, 1, 2), 1, 4).ravel().tolist()
    [0, 25, 75, 100]
  """
  top, left, h, w = box
  part = frames[:, top : top + h, left : left + w]
  if (h, w) == (height, width):
    return np.ascontiguousarray(part)
  y0, y1, fy = _neighbours(h, height)
  x0, x1, fx = _neighbours(w, width)
  channels = frames.shape[3]
  # Columns as places in a row of w x C numbers: one gather instead of three.
  x0, x1 = ((x[:, None] * channels + np.arange(channels)).ravel() for x in (x0, x1))
  fx, fy = np.repeat(fx, channels)[None, :], fy[:, None]
  out = np.empty((len(frames), height, width, channels), np.uint8)
  for t, frame in enumerate(part):  # One frame at a time stays in the cache.
    flat = frame.reshape(h, w * channels).astype(np.float32)
    rows = flat.take(y0, 0)
    rows += (flat.take(y1, 0) - rows) * fy
    columns = rows.take(x0, 1)
    columns += (rows.take(x1, 1) - columns) * fx
    columns += 0.5  # Then cut off: rounds half up, as fixed point does.
    out[t] = columns.astype(np.uint8).reshape(height, width, channels)
  return out


def _neighbours(old: int, new: int):
  """For each of ``new`` pixels: the two old ones it lies between, and where."""
  at = (np.arange(new, dtype=np.float64) + 0.5) * (old / new) - 0.5
  at = np.clip(at, 0.0, old - 1)
  low = np.floor(at).astype(np.int64)
  return low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32)


def to_short_side(frames: np.ndarray, side: int = SHORT_SIDE) -> np.ndarray:
  """uint8 frames ``[T, H, W, C]`` scaled so that the shorter side is ``side``."""
  height, width = frames.shape[1:3]
  whole = Box(0, 0, height, width)
  return resize(frames, whole, *scaled_size(height, width, side))


def stack_flow(u: np.ndarray, v: np.ndarray) -> np.ndarray:
  """Grey frames ``[T, H, W, 1]`` of both directions as two channels, u first."""
  return np.concatenate([u, v], axis=-1)


def flip(frames: np.ndarray, *, flow: bool) -> np.ndarray:
  """Mirrors left and right; what flows to the right then flows to the left.

  Args:
    frames: uint8 ``[T, H, W, C]``.
    flow: Whether channel 0 is horizontal flow, centred on 128: u becomes 255 - u.

  Returns:
    uint8 of the same shape.

  Example:
    >>> flip(np.array([[[[1, 5], [2, 6]]]], np.uint8), flow=True).tolist()
    [[[[253, 6], [254, 5]]]]
  """
  frames = np.ascontiguousarray(frames[:, :, ::-1])
  if flow:
    frames[..., 0] = 255 - frames[..., 0]
  return frames


def cut(frames: np.ndarray, modality: str, numbers: Draw | None) -> np.ndarray:
  """Crop, resizing and flip of one clip.

  Args:
    frames: uint8 ``[T, H, W, C]``, shorter side 256.
    modality: "video" or "flow".
    numbers: From `draw` in training; None in evaluation.

  Returns:
    uint8 ``[T, S, S, C]`` with S of `RECIPES`.
  """
  recipe = RECIPES[modality]
  height, width = frames.shape[1:3]
  if numbers is None:
    size = recipe.eval_size
    return resize(frames, center_box(height, width, size), size, size)
  size = recipe.train_size
  frames = resize(frames, train_box(numbers, height, width), size, size)
  return flip(frames, flow=modality == "flow") if numbers.flip < 0.5 else frames


def normalise(frames: Any, modality: str) -> Any:
  """``(x - mean) / std`` per channel; works on NumPy and on JAX arrays.

  Args:
    frames: ``[..., C]``, values 0 to 255.
    modality: "video" or "flow".

  Returns:
    float32 of the same shape.

  Example:
    >>> normalise(np.full((1, 2), 192, np.uint8), "flow").tolist()
    [[0.5, 0.5]]
  """
  recipe = RECIPES[modality]
  shape = (1,) * (frames.ndim - 1) + (-1,)
  mean = np.asarray(recipe.mean, np.float32).reshape(shape)
  scale = np.asarray(recipe.std, np.float32).reshape(shape)
  return (frames.astype(np.float32) - mean) / scale
