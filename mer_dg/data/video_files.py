"""JPEG, video and wav files as arrays. Every failure is a `DataError` with the file.

Pillow reads and writes JPEG, PyAV decodes videos, the standard library reads wav (and
soundfile, where it is installed, what the standard library cannot).
"""

from __future__ import annotations

from collections.abc import Iterator
import io
import os
import pathlib
from typing import Any
import wave

import numpy as np

from mer_dg.data.clips import SHORT_SIDE, to_short_side
from mer_dg.data.dataset import DataError
from mer_dg.data.spectrogram import SAMPLE_RATE

# Quality at which frames are stored that have to be encoded anew, without chroma
# subsampling.
JPEG_QUALITY = 95


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
    with _pillow().open(io.BytesIO(data)) as image:
      image.draft(mode, None)  # Grey: decodes the luma plane only.
      image.load()
      array = np.asarray(image if image.mode == mode else image.convert(mode))
  except (OSError, ValueError, SyntaxError) as error:
    raise DataError(f"{where}: not a whole image ({error}).") from error
  return array.reshape(*array.shape[:2], channels)


def jpeg_size(data: bytes, where: str) -> tuple[int, int]:
  """Height and width from the header."""
  try:
    with _pillow().open(io.BytesIO(data)) as image:
      return image.height, image.width
  except (OSError, ValueError, SyntaxError) as error:
    raise DataError(f"{where}: not an image ({error}).") from error


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
  av = _pyav()
  try:
    with av.open(str(path)) as container:
      if not container.streams.video:
        raise DataError(f"{path}: no pictures in it.")
      stream = container.streams.video[0]
      packets = [p for p in container.demux(stream) if p.size]
      promised = stream.frames
      count = sum(not p.is_discard for p in packets)
  except (av.FFmpegError, OSError, ValueError) as error:
    raise DataError(f"{path}: not a readable video ({_reason(error)}).") from error
  if not count or len(packets) < promised or any(p.is_corrupt for p in packets):
    raise DataError(f"{path}: cut short, {count} of {promised} frames are there.")
  return count


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
  av = _pyav()
  form = "gray" if channels == 1 else "rgb24"
  wanted = {int(p) for p in places}
  last = max(wanted)
  try:
    with av.open(str(path)) as container:
      stream = container.streams.video[0]
      stream.codec_context.thread_count = 1  # The caller has threads of its own.
      for i, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
          raise DataError(f"{path}: frame {i} is damaged.")
        if i in wanted:
          array = frame.to_ndarray(format=form)
          yield array.reshape(*array.shape[:2], channels)
        if i == last:
          return
  except (av.FFmpegError, OSError, ValueError, IndexError) as error:
    if isinstance(error, DataError):
      raise
    raise DataError(f"{path}: cannot be decoded ({_reason(error)}).") from error
  raise DataError(f"{path}: ends before frame {last}.")


def _reason(error: Exception) -> str:
  return getattr(error, "strerror", None) or str(error)


# --- wav -----------------------------------------------------------------------------


def read_wav(
  path: str | os.PathLike, start: float = 0.0, stop: float | None = None
) -> np.ndarray:
  """Samples of a mono wav file of 16 kHz.

  Args:
    path: The file.
    start: In seconds, rounded to the next sample.
    stop: In seconds; None: the end. What lies beyond the end is not there.

  Returns:
    int16 ``[n]``; n = 0 where the clip starts after the end.

  Raises:
    DataError: No such file, another rate or more channels, or a file cut short.
  """
  first, end = wav_range(start, stop)
  try:
    with wave.open(str(path), "rb") as file:
      _check_form(path, file.getframerate(), file.getnchannels())
      if file.getsampwidth() != 2:
        raise wave.Error("not 16 bits")
      total = file.getnframes()
      first, end = min(first, total), total if end is None else min(end, total)
      file.setpos(first)
      samples = np.frombuffer(file.readframes(end - first), "<i2").astype(np.int16)
  except wave.Error:
    return _read_with_soundfile(path, first, end)
  except (OSError, EOFError) as error:
    reason = getattr(error, "strerror", None) or "it ends in its header"
    raise DataError(f"{path}: cannot be read ({reason}).") from error
  if len(samples) < end - first:
    raise DataError(
      f"{path}: cut short, {first + len(samples)} of {total} samples are there."
    )
  return samples


def wav_range(start: float, stop: float | None) -> tuple[int, int | None]:
  """First sample and the one after the last, both rounded to the next sample."""
  first = max(int(np.round(start * SAMPLE_RATE)), 0)
  if stop is None:
    return first, None
  return first, max(int(np.round(stop * SAMPLE_RATE)), first)


def wav_samples(path: str | os.PathLike) -> int:
  """Number of samples of a wav file, after a look whether the last is there.

  Raises:
    DataError: As `read_wav`.
  """
  try:
    with wave.open(str(path), "rb") as file:
      total, rate = file.getnframes(), file.getframerate()
      width = file.getsampwidth()
  except (wave.Error, OSError, EOFError):
    return len(read_wav(path))
  if rate != SAMPLE_RATE or width != 2:
    return len(read_wav(path))
  read_wav(path, start=max(total - 1, 0) / rate)
  return total


def _check_form(path, rate: int, channels: int) -> None:
  if (rate, channels) != (SAMPLE_RATE, 1):
    raise DataError(
      f"{path}: {rate} Hz and {channels} channels, expected {SAMPLE_RATE} Hz and 1; "
      f"ffmpeg -i IN -ac 1 -ar {SAMPLE_RATE} -acodec pcm_s16le OUT converts."
    )


def _read_with_soundfile(path, first: int, end: int | None) -> np.ndarray:
  """Wav files that are not plain 16-bit PCM."""
  try:
    import soundfile
  except ImportError as error:
    raise DataError(
      f"{path}: not 16-bit PCM; soundfile may read it (pip install soundfile)."
    ) from error
  try:
    info: Any = soundfile.info(str(path))
    _check_form(path, info.samplerate, info.channels)
    first = min(first, info.frames)
    samples, _ = soundfile.read(str(path), start=first, stop=end, dtype="int16")
  except (soundfile.LibsndfileError, RuntimeError) as error:
    raise DataError(f"{path}: not a readable wav file ({error}).") from error
  return samples
