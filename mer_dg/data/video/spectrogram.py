"""The log-spectrogram of the VGGSound audio network, on the device.

The recipe is that of SimMMDG and its successors: ``scipy.signal.spectrogram`` with its
defaults except ``nperseg=512, noverlap=353``, then logarithm and normalisation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy import signal

SAMPLE_RATE = 16_000
SAMPLES = 160_000  # 10 s
WINDOW = 512
HOP = 159
BINS = WINDOW // 2 + 1
FRAMES = 1 + (SAMPLES - WINDOW) // HOP  # 1004
TAPER = 0.25
# Power below which the logarithm is flat.
FLOOR = 1e-7
# Of the training noise: half its width, and the rows of frequency set to zero.
NOISE, MASKED_ROWS = 0.05, 9


def power_spectrogram(audio: jax.Array) -> jax.Array:
  r"""One-sided power spectral density of overlapping segments.

  .. math:: S_k = \frac{c_k}{f_s \sum w^2}
            \Big|\sum_n w_n (x_n - \bar x) e^{-2\pi i k n / 512}\Big|^2,

  ``c_k`` = 2 except for k = 0 and 256; the mean is that of each segment.

  Args:
    audio: Floating ``[..., T]``, T >= 512.

  Returns:
    ``[..., 257, 1 + (T - 512) // 159]`` in the dtype of ``audio``, per hertz.

  Raises:
    TypeError: ``audio`` is not floating.
    ValueError: ``audio`` is shorter than one segment.

  Example:
    >>> power_spectrogram(jnp.zeros((2, 160_000))).shape
    (2, 257, 1004)
  """
  if not jnp.issubdtype(audio.dtype, jnp.floating):
    raise TypeError(f"audio must be floating, got {audio.dtype}.")
  if audio.ndim < 1 or audio.shape[-1] < WINDOW:
    raise ValueError(f"audio must be [..., T >= {WINDOW}], got {audio.shape}.")
  frames = 1 + (audio.shape[-1] - WINDOW) // HOP
  at = np.arange(frames)[:, None] * HOP + np.arange(WINDOW)[None, :]
  segments = audio[..., at]  # [..., frames, 512]
  segments = segments - segments.mean(axis=-1, keepdims=True)
  taper = signal.get_window(("tukey", TAPER), WINDOW)
  window = jnp.asarray(taper, audio.dtype)
  window = window.reshape((1,) * (segments.ndim - 1) + (WINDOW,))
  spectrum = jnp.fft.rfft(segments * window, axis=-1)
  density = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  sides = np.full(BINS, 2.0)
  sides[[0, -1]] = 1.0
  scale = jnp.asarray(sides / (SAMPLE_RATE * np.sum(taper**2)), audio.dtype)
  scale = scale.reshape((1,) * (density.ndim - 1) + (BINS,))
  return jnp.swapaxes(density * scale, -1, -2)


def log_spectrogram(audio: jax.Array) -> jax.Array:
  """Normalised log-spectrogram of a clip's sound.

  ``log(S + 1e-7)`` of the samples clipped to [-1, 1], minus its mean, divided by its
  standard deviation (+ 1e-9), both over the clip.

  Args:
    audio: ``[..., T]``, int16 samples or floating ones in units of full scale.

  Returns:
    float32 ``[..., 257, 1 + (T - 512) // 159]``; zeros for digital silence.

  Raises:
    TypeError: ``audio`` is neither int16 nor floating.

  Example:
    >>> log_spectrogram(jnp.zeros((160_000,), jnp.int16)).shape
    (257, 1004)
  """
  if audio.dtype == jnp.int16:
    audio = audio.astype(jnp.float32) / 32768.0
  if not jnp.issubdtype(audio.dtype, jnp.floating):
    raise TypeError(f"audio must be int16 or floating, got {audio.dtype}.")
  audio = jnp.clip(audio.astype(jnp.float32), -1.0, 1.0)
  # log(S + F) without its constant log F, which the mean takes away: in float32 the
  # shape of a quiet clip would be lost under it.
  log_power = jnp.log1p(power_spectrogram(audio) / FLOOR)
  axes = (-2, -1)
  centred = log_power - log_power.mean(axis=axes, keepdims=True)
  deviation = jnp.sqrt(jnp.square(centred).mean(axis=axes, keepdims=True))
  return centred / (deviation + 1e-9)


def augment_spectrogram(key: jax.Array, spectrogram: jax.Array) -> jax.Array:
  """Training noise: U(-0.05, 0.05) on every bin, then nine rows set to zero.

  The first of the nine rows is drawn from 0 to 246.

  Args:
    key: Key of this clip in this epoch; see `clip_key`.
    spectrogram: floating ``[257, T]``; ``vmap`` over keys and clips.

  Returns:
    Of the same shape and dtype.

  Raises:
    ValueError: ``spectrogram`` is not ``[257, T]``.
  """
  if spectrogram.ndim != 2 or spectrogram.shape[0] != BINS:
    raise ValueError(f"spectrogram must be [{BINS}, T], got {spectrogram.shape}.")
  noise_key, row_key = jax.random.split(key)
  dtype = spectrogram.dtype
  noise = jax.random.uniform(noise_key, spectrogram.shape, dtype, -NOISE, NOISE)
  first = jax.random.randint(row_key, (), 0, BINS - 1 - MASKED_ROWS)
  row = jnp.arange(BINS)
  masked = (row >= first) & (row < first + MASKED_ROWS)
  return jnp.where(masked[:, None], 0.0, spectrogram + noise).astype(dtype)


def clip_key(key: jax.Array, epoch: jax.Array, index: jax.Array) -> jax.Array:
  """Key of one clip in one epoch; the same whatever batch the clip is in.

  Args:
    key: Key of the run's augmentation.
    epoch: int scalar: anything that differs when the clip comes again, e.g. the step.
    index: int scalar, stable id of the clip.

  Returns:
    A typed key.

  Example:
    >>> keys = [clip_key(jax.random.key(0), 1, i) for i in (3, 3, 4)]
    >>> keys[0] == keys[1], keys[0] == keys[2]
    (Array(True, dtype=bool), Array(False, dtype=bool))
  """
  return jax.random.fold_in(jax.random.fold_in(key, epoch), index)
