"""Corruptions of images, clips and optical flow; one sample ``[T, H, W, C]`` at a time.

Images are clips of one frame, in [0, 1]. Noise is drawn for each frame; what belongs to
camera or weather (direction of motion, fog) is the same for all frames.
"""

from __future__ import annotations

import numpy as np
import scipy  # its rooms are loaded when they are used

from mer_dg.evaluation._corrupt_common import Draw, freeze_frames

# ITU-T T.81, Annex K: quantisation of luminance and chrominance.
_LUMINANCE = np.array(
  [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
  ]
)
_CHROMINANCE = np.full((8, 8), 99)
_CHROMINANCE[:4, :4] = [
  [17, 18, 24, 47],
  [18, 21, 26, 66],
  [24, 26, 56, 99],
  [47, 66, 99, 99],
]
# ITU-R BT.601, full range, as JFIF uses it.
_TO_YCC = np.array(
  [
    [0.299, 0.587, 0.114],
    [-0.168736, -0.331264, 0.5],
    [0.5, -0.418688, -0.081312],
  ]
)


def gaussian_noise(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Independent noise in every pixel and channel."""
  sigma = draw.pick((0.04, 0.08, 0.12, 0.18, 0.26))
  return x + sigma * draw.rng.standard_normal(x.shape)


def shot_noise(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Poisson noise of a given number of photons at full brightness."""
  photons = draw.pick((60, 25, 12, 6, 3))
  return draw.rng.poisson(np.clip(x, 0, 1) * photons) / photons


def defocus_blur(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Convolution with a disk."""
  side = min(x.shape[1:3])
  share = draw.pick((0.004, 0.008, 0.014, 0.022, 0.03))
  radius = 0.4 + 0.4 * draw.severity + share * side
  reach = int(np.ceil(radius))
  # Each pixel of the kernel is sampled on a 5 x 5 grid, so that small disks are round.
  fine = (np.arange(5 * (2 * reach + 1)) + 0.5) / 5 - reach - 0.5
  inside = fine[:, None] ** 2 + fine[None, :] ** 2 <= radius**2
  kernel = inside.reshape(2 * reach + 1, 5, 2 * reach + 1, 5).sum(axis=(1, 3))
  return _convolved(x, kernel / kernel.sum())


def motion_blur(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Convolution with a line of random direction, the same in every frame."""
  side = min(x.shape[1:3])
  share = draw.pick((0.02, 0.04, 0.07, 0.1, 0.14))
  length = 0.6 * draw.severity + share * side
  angle = draw.rng.random() * np.pi
  reach = int(np.ceil(length / 2)) + 1
  kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
  for t in np.linspace(-length / 2, length / 2, 8 * reach + 1):
    row, col = reach + t * np.sin(angle), reach + t * np.cos(angle)
    i, j = int(row), int(col)
    a, b = row - i, col - j
    kernel[i : i + 2, j : j + 2] += np.outer((1 - a, a), (1 - b, b))  # Bilinear.
  return _convolved(x, kernel / kernel.sum())


def _convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """Every frame and channel with a kernel; edges repeat."""
  reach = kernel.shape[0] // 2
  padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
  return scipy.signal.oaconvolve(
    padded, kernel[None, :, :, None], mode="valid", axes=(1, 2)
  )


def fog(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Mixes with a smooth bright field, the same in every frame."""
  amount = draw.pick((0.2, 0.35, 0.5, 0.62, 0.74))
  field = np.zeros(x.shape[1:3])
  for octave in range(4):
    cells = 2 ** (octave + 1) + 1
    rough = draw.rng.random((cells, cells))
    rows, cols = (np.linspace(0, cells - 1, n) for n in field.shape)
    grid = np.meshgrid(rows, cols, indexing="ij")
    field += scipy.ndimage.map_coordinates(rough, grid, order=1) / 2**octave
  field = 0.7 + 0.3 * field / (2 - 2.0**-3)  # The octaves sum to at most 1.875.
  return (1 - amount) * x + amount * field[None, :, :, None]


def contrast(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Shrinks values towards the mean of each frame and channel."""
  left = draw.pick((0.75, 0.55, 0.38, 0.22, 0.1))
  mean = x.mean(axis=(1, 2), keepdims=True)
  return mean + left * (x - mean)


def jpeg(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Quantised 8 x 8 cosine transform, without chroma subsampling.

  Of one or three channels; a fourth one (alpha) stays as it is.
  """
  quality = draw.pick((40, 25, 15, 9, 5))
  # The scaling of the Independent JPEG Group's library.
  scale = 5000 // quality if quality < 50 else 200 - 2 * quality
  tables = [
    np.clip((t * scale + 50) // 100, 1, 255) for t in (_LUMINANCE, _CHROMINANCE)
  ]
  out = np.array(x)
  if x.shape[-1] < 3:
    for c in range(x.shape[-1]):
      out[..., c] = _quantised(255 * x[..., c], tables[0]) / 255
    return out
  planes = 255 * x[..., :3] @ _TO_YCC.T
  for c in range(3):
    offset = 0.0 if c == 0 else 128.0
    planes[..., c] = _quantised(planes[..., c] + offset, tables[min(c, 1)]) - offset
  out[..., :3] = planes @ np.linalg.inv(_TO_YCC).T / 255
  return out


def _quantised(plane: np.ndarray, table: np.ndarray) -> np.ndarray:
  """``[T, H, W]`` in 0..255 after quantisation of its cosine transform."""
  frames, height, width = plane.shape
  pad = ((0, 0), (0, -height % 8), (0, -width % 8))
  padded = np.pad(np.round(plane) - 128, pad, mode="edge")
  blocks = padded.reshape(frames, padded.shape[1] // 8, 8, padded.shape[2] // 8, 8)
  table = table[:, None, :]  # Axes of a block: row, (block), column.
  freq = np.round(scipy.fft.dctn(blocks, axes=(2, 4), norm="ortho") / table) * table
  back = scipy.fft.idctn(freq, axes=(2, 4), norm="ortho").reshape(padded.shape)
  return np.clip(np.round(back + 128), 0, 255)[:, :height, :width]


def frame_drop(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Frames turn black."""
  lost = draw.rng.random(len(x)) < draw.pick((0.15, 0.3, 0.45, 0.6, 0.75))
  return np.where(lost[:, None, None, None], 0.0, x)


def flow_noise(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Noise relative to the root mean square of the sample's motion."""
  sigma = draw.pick((0.25, 0.5, 0.8, 1.2, 1.8)) * np.sqrt(np.mean(x**2))
  return x + sigma * draw.rng.standard_normal(x.shape)


def block_zero(x: np.ndarray, draw: Draw) -> np.ndarray:
  """Cells of a 6 x 6 grid stand still in all frames."""
  lost = draw.rng.random((6, 6)) < draw.pick((0.1, 0.25, 0.4, 0.55, 0.7))
  rows, cols = (np.arange(n) * 6 // n for n in x.shape[1:3])
  return np.where(lost[np.ix_(rows, cols)][None, :, :, None], 0.0, x)


IMAGE = {
  "gaussian_noise": gaussian_noise,
  "shot_noise": shot_noise,
  "defocus_blur": defocus_blur,
  "motion_blur": motion_blur,
  "fog": fog,
  "contrast": contrast,
  "jpeg": jpeg,
}
CLIP = IMAGE | {"frame_drop": frame_drop, "frame_freeze": freeze_frames}
FLOW = {
  "gaussian_noise": flow_noise,
  "block_zero": block_zero,
  "frame_freeze": freeze_frames,
}
