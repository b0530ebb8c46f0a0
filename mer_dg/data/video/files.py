"""JPEG, video and wav files as arrays. Every failure is a `DataError` with the file.

Pillow reads and writes JPEG, PyAV decodes videos and their sound, the standard library
reads wav (and soundfile, where it is installed, what the standard library cannot).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
import contextlib
import io
import itertools
import math
import os
import pathlib
from typing import Any, NamedTuple
import wave

import numpy as np

from mer_dg.data.archive import RATIO, UNQUESTIONED, reason
from mer_dg.data.dataset import DataError
from mer_dg.data.video.clips import SHORT_SIDE, to_short_side
from mer_dg.data.video.spectrogram import SAMPLE_RATE

# Quality at which frames are stored that have to be encoded anew, without chroma
# subsampling.
JPEG_QUALITY = 95
# What is opened as an image, and how large it may say it is.
_FORMATS, PIXELS = ("JPEG", "PNG"), 2**26
# Rates in Hz and channels of sound that are taken for what they say.
RATES, CHANNELS = range(1_000, 768_001), range(1, 65)
# Length of the resampling filter either side, in samples of the lower rate: that of
# scipy.signal.resample_poly.
_HALF = 10


def _pillow():
  try:
    from PIL import Image
  except ImportError as error:
    raise DataError("Frames need Pillow: pip install 'mer-dg[data]'.") from error
  return Image


def _pyav():
  try:
    import av
  except ImportError as error:
    raise DataError("Videos need PyAV: pip install 'mer-dg[data]'.") from error
  # What it complains about on stderr comes as an exception of ours.
  av.logging.set_level(av.logging.PANIC)
  return av


# --- JPEG ----------------------------------------------------------------------------


def decode_jpeg(data: bytes, channels: int, where: str) -> np.ndarray:
  """uint8 ``[H, W, channels]``, RGB or grey (1).

  Raises:
    DataError: The image is damaged or cut short; the message begins with ``where``.
  """
  mode = "L" if channels == 1 else "RGB"
  try:
    with _pillow().open(io.BytesIO(data), formats=_FORMATS) as image:
      _check_pixels(where, image.height, image.width)
      image.draft(mode, None)  # Grey: decodes the luma plane only.
      image.load()
      array = np.asarray(image if image.mode == mode else image.convert(mode))
  except DataError:
    raise
  except Exception as error:  # A damaged image can raise anything.
    raise DataError(f"{where}: not a whole image ({reason(error)}).") from error
  return array.reshape(*array.shape[:2], channels)


def jpeg_size(data: bytes, where: str) -> tuple[int, int]:
  """Height and width from the header."""
  try:
    with _pillow().open(io.BytesIO(data), formats=_FORMATS) as image:
      return image.height, image.width
  except Exception as error:
    raise DataError(f"{where}: not an image ({reason(error)}).") from error


def _check_pixels(where: str | os.PathLike, height: int, width: int) -> None:
  if height * width > PIXELS:
    raise DataError(f"{where}: {height}x{width} pixels; {PIXELS} are the most.")


def encode_jpeg(frame: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
  """A uint8 frame ``[H, W, 1 | 3]`` as JPEG."""
  image = _pillow().fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", quality=quality, subsampling=0)
  return buffer.getvalue()


def stored_jpeg(data: bytes, channels: int, where: str, quality: int) -> bytes:
  """A JPEG as a prepared set stores it: as it is, or at a shorter side of 256."""
  if min(jpeg_size(data, where)) == SHORT_SIDE:
    return data
  return stored_frame(decode_jpeg(data, channels, where), quality)


def stored_frame(frame: np.ndarray, quality: int) -> bytes:
  """A decoded frame ``[H, W, C]`` as a prepared set stores it."""
  return encode_jpeg(to_short_side(frame[None])[0], quality)


def read_bytes(path: str | os.PathLike) -> bytes:
  """The bytes of a file.

  Raises:
    DataError: It cannot be read.
  """
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise DataError(f"{path}: {error.strerror}.") from error


# --- videos --------------------------------------------------------------------------


def count_frames(path: str | os.PathLike) -> int:
  """Frames of a video, without decoding them.

  Raises:
    DataError: It cannot be read, has no pictures, or ends before its index says.
  """
  with _pictures(path, "not a readable video") as (container, stream):
    packets = [p for p in container.demux(stream) if p.size]
    promised = stream.frames
    count = sum(not p.is_discard for p in packets)
  if not count or len(packets) < promised or any(p.is_corrupt for p in packets):
    raise DataError(f"{path}: cut short, {count} of {promised} frames are there.")
  return count


def video_size(path: str | os.PathLike) -> tuple[int, int]:
  """Height and width of a video's pictures, from its header.

  Raises:
    DataError: It cannot be read, or has no pictures.
  """
  with _pictures(path, "not a readable video") as (_, stream):
    return stream.height, stream.width


def read_video(
  path: str | os.PathLike, places: np.ndarray, channels: int
) -> Iterator[np.ndarray]:
  """Some frames of a video, one after the other.

  Args:
    path: The file.
    places: Increasing frame numbers, from 0.
    channels: 3 for RGB, 1 for grey.

  Yields:
    uint8 ``[H, W, channels]`` per place.

  Raises:
    DataError: It cannot be decoded as far as the last of them.
  """
  form = "gray" if channels == 1 else "rgb24"
  wanted = {int(p) for p in places}
  last = max(wanted)
  with _pictures(path, "cannot be decoded") as (container, stream):
    _check_pixels(path, stream.height, stream.width)
    stream.codec_context.thread_count = 1  # The caller has threads of its own.
    for i, frame in enumerate(container.decode(stream)):
      if frame.is_corrupt:
        raise DataError(f"{path}: frame {i} is damaged.")
      if i in wanted:
        array = frame.to_ndarray(format=form)
        yield array.reshape(*array.shape[:2], channels)
      if i == last:
        return
  raise DataError(f"{path}: ends before frame {last}.")


@contextlib.contextmanager
def _pictures(path: str | os.PathLike, what: str) -> Generator[tuple[Any, Any]]:
  """An open video and its stream of pictures; ``what`` is said of errors."""
  av = _pyav()
  try:
    with av.open(str(path)) as container:
      if not container.streams.video:
        raise DataError(f"{path}: no pictures in it.")
      yield container, container.streams.video[0]
  except DataError:
    raise
  except (av.FFmpegError, OSError, ValueError, IndexError) as error:
    raise DataError(f"{path}: {what} ({reason(error)}).") from error


# --- sound ---------------------------------------------------------------------------


class _Wav(NamedTuple):
  """An open wav file: ``read(first, end)`` gives int16 ``[n, channels]``."""

  rate: int
  channels: int
  total: int
  read: Callable[[int, int], np.ndarray]


def read_sound(
  path: str | os.PathLike, start: float = 0.0, stop: float | None = None
) -> np.ndarray:
  """Samples of a wav file, or of the sound track of a video: mono, at 16 kHz.

  Args:
    path: The file; what does not end with .wav is taken for a video.
    start: In seconds, rounded to the next sample.
    stop: In seconds; None: the end. What lies beyond the end is not there.

  Returns:
    int16 ``[n]``; n = 0 where the clip starts after the end.

  Raises:
    DataError: No such file, no sound in it, or a file cut short.
  """
  if pathlib.Path(path).suffix.lower() == ".wav":
    return read_wav(path, start, stop)
  first, end = wav_range(start, stop)
  av = _pyav()
  pieces, count = [], 0
  try:
    with av.open(str(path)) as container:
      if not container.streams.audio:
        raise DataError(f"{path}: no sound in it.")
      resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
      stream = container.streams.audio[0]
      # None: what is left over.
      for frame in itertools.chain(container.decode(stream), [None]):
        for piece in resampler.resample(frame):
          pieces.append(piece.to_ndarray().reshape(-1))
          count += len(pieces[-1])
        if end is not None and count >= end:
          break
  except (av.FFmpegError, OSError, ValueError) as error:
    if isinstance(error, DataError):
      raise
    raise DataError(f"{path}: its sound cannot be read ({reason(error)}).") from error
  samples = np.concatenate(pieces) if pieces else np.zeros(0, np.int16)
  return samples[first:end]


def read_wav(
  path: str | os.PathLike, start: float = 0.0, stop: float | None = None
) -> np.ndarray:
  """Samples of a wav file: mono, at 16 kHz, whatever it holds.

  Channels are averaged; another rate is resampled with a filter against aliasing
  (``scipy.signal.resample_poly``). A part is, sample for sample, a part of the whole.

  Args:
    path: The file.
    start: In seconds, rounded to the next sample.
    stop: In seconds; None: the end. What lies beyond the end is not there.

  Returns:
    int16 ``[n]``; n = 0 where the clip starts after the end.

  Raises:
    DataError: No such file, no wav file, or one cut short.
  """
  first, end = wav_range(start, stop)
  with _opened(path) as wav:
    common = math.gcd(wav.rate, SAMPLE_RATE)
    up, down = SAMPLE_RATE // common, wav.rate // common
    total = -(-wav.total * up // down)
    first, end = min(first, total), total if end is None else min(end, total)
    if first == end:
      return np.zeros(0, np.int16)
    # What the filter reaches, from a place where both rates have a sample.
    reach = _HALF * max(up, down) // up + 1
    begin = max(first * down // up - reach, 0) // down * down
    last = min(-(-end * down // up) + reach, wav.total)
    if up == down:
      begin, last = first, end
    samples = wav.read(begin, last)
    if len(samples) < last - begin:
      raise DataError(
        f"{path}: cut short, {begin + len(samples)} of {wav.total} samples are there."
      )
  if (up, down, wav.channels) == (1, 1, 1):
    return samples[:, 0]
  mono = samples.mean(axis=1)
  if up != down:
    from scipy import signal

    offset = begin // down * up
    mono = signal.resample_poly(mono, up, down)[first - offset : end - offset]
  return np.clip(np.rint(mono), -(2**15), 2**15 - 1).astype(np.int16)


def wav_range(start: float, stop: float | None) -> tuple[int, int | None]:
  """First sample and the one after the last, both rounded to the next sample."""
  first = max(int(np.round(start * SAMPLE_RATE)), 0)
  if stop is None:
    return first, None
  return first, max(int(np.round(stop * SAMPLE_RATE)), first)


def wav_samples(path: str | os.PathLike) -> int:
  """Number of samples that `read_wav` gives, after a look whether the last is there.

  Raises:
    DataError: As `read_wav`.
  """
  with _opened(path) as wav:
    seconds = wav.total / wav.rate
    total = -(-wav.total * SAMPLE_RATE // wav.rate)
  read_wav(path, start=max(seconds - 1 / SAMPLE_RATE, 0))
  return total


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Generator[_Wav]:
  """A wav file; what goes wrong until it is closed is a `DataError`."""
  try:
    with contextlib.ExitStack() as stack:
      try:
        file = stack.enter_context(wave.open(str(path), "rb"))
        if file.getsampwidth() != 2:
          raise wave.Error("not 16 bits")
        wav = _pcm16(file)
      except wave.Error:
        wav = _with_soundfile(path, stack)
      if wav.rate not in RATES or wav.channels not in CHANNELS:
        raise DataError(f"{path}: {wav.rate} Hz and {wav.channels} channels.")
      bound = max(UNQUESTIONED, RATIO * os.stat(path).st_size)
      if 2 * wav.channels * wav.total > bound:
        raise DataError(f"{path}: {wav.total} samples in so small a file.")
      yield wav
  except DataError:
    raise
  except EOFError as error:
    raise DataError(f"{path}: cannot be read (it ends in its header).") from error
  except Exception as error:  # A damaged file can raise anything.
    raise DataError(f"{path}: cannot be read ({reason(error)}).") from error


def _pcm16(file: wave.Wave_read) -> _Wav:
  channels = file.getnchannels()

  def read(first: int, end: int) -> np.ndarray:
    file.setpos(first)
    data = file.readframes(end - first)
    whole = len(data) // (2 * channels) * 2 * channels
    return np.frombuffer(data[:whole], "<i2").astype(np.int16).reshape(-1, channels)

  return _Wav(file.getframerate(), channels, file.getnframes(), read)


def _with_soundfile(path: str | os.PathLike, stack: contextlib.ExitStack) -> _Wav:
  """Wav files that are not plain 16-bit PCM."""
  try:
    import soundfile
  except ImportError as error:
    raise DataError(
      f"{path}: not 16-bit PCM; soundfile may read it (pip install soundfile)."
    ) from error
  try:
    file: Any = stack.enter_context(soundfile.SoundFile(str(path)))
  except (soundfile.LibsndfileError, RuntimeError) as error:
    raise DataError(f"{path}: not a readable wav file ({reason(error)}).") from error

  def read(first: int, end: int) -> np.ndarray:
    file.seek(first)
    return file.read(end - first, dtype="int16", always_2d=True)

  return _Wav(file.samplerate, file.channels, file.frames, read)
