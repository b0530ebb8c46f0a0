"""From clips to the rows of batches: sampling, cropping, sound, missing modalities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.contracts import InputSpec
from mer_dg.data.dataset import DataError
from mer_dg.data.video.clips import (
  RECIPES,
  clip_offset,
  cut,
  draw,
  frame_indices,
  normalise,
)
from mer_dg.data.video.sources import Media, VideoSource, available
from mer_dg.data.video.spectrogram import (
  BINS,
  FRAMES,
  SAMPLES,
  augment_spectrogram,
  clip_key,
  log_spectrogram,
)
from mer_dg.data.video.table import MODALITIES, Clip, Frames

# The references turn frame numbers into seconds with this, whatever the video says.
FRAMES_PER_SECOND = 24.0
# A run survives so many damaged clips, as a share of all.
MAX_DAMAGED = 0.01


class ClipReader:
  """Rows of the batch contract: what a clip shows in one epoch.

  A row has uint8 ``video [32, S, S, 3]``, int16 ``audio [160000]`` and uint8
  ``flow [8, S, S, 2]``; S is 224, but 256 for flow in evaluation. Everything is a pure
  function of (seed, epoch, id of the clip). `device_inputs` does the rest on the
  device.

  Args:
    source: `sources.TreeSource` or `PreparedSource`.
    modalities: Which; their order is always video, audio, flow.
    train: Random offsets, crops and flips; False: the centre.
    seed: Seed of the augmentation.
    sync_augment: Cut video and flow at the same relative place. The references cut
      them independently.
    at: In evaluation, where the window begins, from 0 (the first place where it fits)
      to just below 1 (the last); None is the middle.
    damaged: ``{id: what is wrong}`` of clips that could not be read, filled here;
      readers of one set share it. Each process has its own.
    max_damaged: Share of the clips that may be damaged. Such a clip becomes a row
      without inputs that is marked ``damaged``, and a warning; batches mask it.
  """

  def __init__(
    self,
    source: VideoSource,
    *,
    modalities: Sequence[str],
    train: bool,
    seed: int = 0,
    sync_augment: bool = False,
    at: float | None = None,
    damaged: dict[str, str] | None = None,
    max_damaged: float = MAX_DAMAGED,
  ):
    there = available(source.table)
    unknown = [m for m in modalities if m not in there]
    if unknown or not modalities or len(set(modalities)) != len(modalities):
      raise DataError(
        f"{source.table.name}: modalities={tuple(modalities)!r} must be one or more of "
        f"{there}."
      )
    self.source, self.train, self.seed = source, train, seed
    self.modalities = tuple(m for m in MODALITIES if m in modalities)
    self._sync, self._at = sync_augment, at
    self.damaged = {} if damaged is None else damaged
    self._max_damaged = max_damaged
    self._counts = True

  def __getstate__(self) -> dict[str, Any]:
    # That of a worker process meets some of the damaged clips only: it counts none,
    # and what it says of a row goes to `note` of this one.
    return self.__dict__ | {"damaged": {}, "_counts": False}

  def __len__(self) -> int:
    return len(self.source.table)

  def __getitem__(self, row: int, /) -> dict[str, Any]:
    """The row for evaluation; in training it depends on the epoch, see `read`."""
    if self.train:
      raise TypeError("reader[row] is for train=False; call read(row, epoch).")
    return self.read(row, 0)

  def read(self, row: int, epoch: int) -> dict[str, Any]:
    """The row in one epoch.

    Args:
      row: Position in the table.
      epoch: Anything that differs when the clip comes again, e.g. the step.

    Returns:
      ``{"inputs": ..., "present": ..., "label": ..., "index": ..., "damaged": ...}``;
      inputs of a missing modality are zero, and ``damaged`` says what is wrong or "".

    Raises:
      DataError: More files are missing or damaged than may be.
    """
    clip = self.source.table.clips[row]
    try:
      inputs, present = self._read(clip, self.source.open(row), epoch)
      damaged = ""
    except DataError as error:
      damaged = str(error).removesuffix(".")
      self.note(row, damaged)
      inputs = {m: self._zeros(m) for m in self.modalities}
      present = dict.fromkeys(self.modalities, False)
    return {
      "inputs": inputs,
      "present": present,
      "label": clip.label,
      "index": clip.index,
      "damaged": damaged,
    }

  def note(self, row: int, what: str) -> None:
    """Remembers a damaged clip and warns, once; or raises where there are too many.

    Args:
      row: Position in the table.
      what: What is wrong with it.

    Raises:
      DataError: More clips are damaged than may be.
    """
    if not self._counts:
      return
    clip = self.source.table.clips[row]
    told = clip.id in self.damaged
    self.damaged[clip.id] = what
    allowed = int(self._max_damaged * len(self))
    here = f"{what} [{clip.id}, {clip.where}]"
    if len(self.damaged) > allowed:
      raise DataError(
        f"{here}: {len(self.damaged)} damaged clips of {len(self)}, {allowed} are let "
        "pass. `python -m data_prep.audit --decode --on_error=skip` finds all and "
        "leaves them out."
      )
    if not told:
      warnings.warn(f"{here}: left out.", RuntimeWarning, stacklevel=3)

  def _read(self, clip: Clip, media: Media, epoch: int):
    """Inputs of a clip, and which are there."""
    inputs, present = {}, {}
    indices = {
      m: self._indices(clip, m, epoch) for m in RECIPES if self._frames(clip, m)
    }
    for m in self.modalities:
      if m == "audio":
        value = self._audio(clip, media, indices)
      else:
        value = self._clip(clip, media, m, indices.get(m), epoch)
      present[m] = value is not None
      inputs[m] = self._zeros(m) if value is None else value
    return inputs, present

  def _frames(self, clip: Clip, m: str) -> Frames | None:
    frames: Frames | None = getattr(clip, m)
    return frames if frames is not None and frames.count else None

  def _numbers(self, clip: Clip, m: str, epoch: int):
    if not self.train:
      return None
    stream = 0 if self._sync else MODALITIES.index(m)
    return draw(self.seed, epoch, clip.index, stream)

  def _indices(self, clip: Clip, m: str, epoch: int) -> np.ndarray:
    """Sampled frames."""
    count = getattr(clip, m).count
    numbers = self._numbers(clip, m, epoch)
    place = self._at if numbers is None else numbers.offset
    offset = clip_offset(count, RECIPES[m], place)
    return frame_indices(count, offset, RECIPES[m])

  def _clip(self, clip: Clip, media: Media, m: str, indices, epoch: int):
    if indices is None:
      return None
    frames = media.frames(m, indices)
    return None if frames is None else cut(frames, m, self._numbers(clip, m, epoch))

  def _audio(self, clip: Clip, media: Media, indices) -> np.ndarray | None:
    """Ten seconds, repeated from the start where the sound is shorter."""
    if clip.audio is None:
      return None
    start, stop = 0.0, None
    if clip.audio.stop is None:  # It follows the frames: of the video, else the flow.
      flow_only = "flow" in self.modalities and "video" not in self.modalities
      shown = "flow" if flow_only else "video"
      shown = shown if shown in indices else next(iter(indices), None)
      if shown is None:
        return None
      start, stop = indices[shown][[0, -1]] / FRAMES_PER_SECOND
    samples = media.audio(start, stop)
    if samples is None or not len(samples):
      return None
    return np.resize(samples[:SAMPLES], SAMPLES)

  def _zeros(self, m: str) -> np.ndarray:
    if m == "audio":
      return np.zeros(SAMPLES, np.int16)
    recipe = RECIPES[m]
    size = recipe.train_size if self.train else recipe.eval_size
    channels = len(recipe.mean)
    return np.zeros((recipe.length, size, size, channels), np.uint8)


def input_specs(modalities: Sequence[str]) -> dict[str, InputSpec]:
  """What `device_inputs` makes of each modality, in training."""
  specs = {}
  for m in modalities:
    if m == "audio":
      specs[m] = InputSpec("image", (BINS, FRAMES, 1))
    else:
      recipe, size = RECIPES[m], RECIPES[m].train_size
      specs[m] = InputSpec("clip", (recipe.length, size, size, len(recipe.mean)))
  return specs


def device_inputs(
  batch: dict[str, Any], *, key: jax.Array | None = None, epoch: Any = 0
) -> dict[str, Any]:
  """Network inputs of a batch of `ClipReader` rows: on the device, inside the step.

  Args:
    batch: ``{"inputs", "present", "index", ...}`` with leading axis B.
    key: Key of the spectrogram's training noise; None in evaluation.
    epoch: As for `ClipReader.read`: scalar, or int ``[B]``.

  Returns:
    ``{modality: float32}``: video ``[B, 32, S, S, 3]``, audio ``[B, 257, 1004, 1]``,
    flow ``[B, 8, S, S, 2]``; zeros where a modality is missing.
  """
  made = {}
  for m, x in batch["inputs"].items():
    if m != "audio":
      value = normalise(x, m)
    else:
      value = log_spectrogram(x)
      if key is not None:
        index = batch["index"]
        epochs = jnp.broadcast_to(jnp.asarray(epoch), index.shape)
        keys = jax.vmap(clip_key, (None, 0, 0))(key, epochs, index)
        value = jax.vmap(augment_spectrogram)(keys, value)
      value = value[..., None]
    present = batch["present"][m]
    made[m] = jnp.where(present.reshape((-1,) + (1,) * (value.ndim - 1)), value, 0)
  return made
