"""Config fields of published encoders and video sets: what fits together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mer_dg.data.video.dataset import VIDEO_SETS
from mer_dg.data.video.table import MODALITIES
from mer_dg.networks import Backbone, make_backbone

if TYPE_CHECKING:
  from mer_dg.experiments.config import Config

# The published encoder of each modality.
KINDS = {
  "video": "slowfast_r101",
  "audio": "vggsound_resnet18",
  "flow": "slowonly_r50_flow",
}
# The word in config.network.encoder that means them.
ENCODER = "backbones"


def make_backbones(config: Config, modalities: Iterable[str]) -> dict[str, Backbone]:
  """The encoders of ``config.backbones``, by modality.

  Raises:
    ValueError: If a field does not fit; the message begins with its group.
  """
  options, made = config.backbones, {}
  for m in modalities:
    random = m == "audio" and options.audio_layer4 == "random"
    try:
      made[m] = make_backbone(
        KINDS[m],
        depths=options.encoder(m).depths or None,
        width=options.encoder(m).width,
        bn_mode=options.bn_mode,
        layer4_init="random" if random else "pretrained",
        trainable=options.trainable,
        compute_dtype=config.network.compute_dtype,
        remat=options.remat,
      )
    except ValueError as error:
      raise ValueError(f"config.backbones, {m}: {error}") from error
  return made


def problem(config: Config) -> str:
  """What is wrong with a config whose single fields are right; "" if nothing."""
  name, encoder = config.data.name, config.network.encoder
  if name not in VIDEO_SETS:
    if encoder == ENCODER:
      return (
        f"config.network.encoder={encoder!r} is for config.data.name in {VIDEO_SETS}, "
        f"not {name!r}."
      )
    return ""
  if encoder != ENCODER:
    return (
      f"config.network.encoder={encoder!r} must be {ENCODER!r} with config.data.name="
      f"{name!r}."
    )
  unknown = [m for m in config.data.modalities if m not in MODALITIES]
  if unknown:
    return (
      f"config.data.modalities={config.data.modalities!r} must be out of {MODALITIES}."
    )
  if not config.target:
    return (
      f"config.target='' with config.data.name={name!r}: a table of many runs needs "
      "data that fits on the device. Name the held-out domain after the config file "
      "(configs/x.py:DOMAIN) to train one run, or let `python -m "
      "data_prep.extract_features` make a file for configs/features.py "
      "(docs/video_data.md)."
    )
  if config.driver != "stream":
    return (
      f"config.driver={config.driver!r} must be 'stream' with config.data.name="
      f"{name!r}: videos do not fit on the device."
    )
  try:
    make_backbones(config, config.data.modalities or MODALITIES)
  except ValueError as error:
    return str(error)
  return ""
