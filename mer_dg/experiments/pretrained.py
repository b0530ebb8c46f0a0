"""Published encoders of a config: their inputs, their weights, what records say."""

from __future__ import annotations

from collections.abc import Mapping
import hashlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from mer_dg.contracts import named_key
from mer_dg.experiments.config import Config, ConfigError
from mer_dg.networks import (
  Backbone,
  load_weights,
  make_backbone,
  place_weights,
)


def weight_hashes(config: Config, backbones: Mapping[str, Backbone]) -> dict[str, str]:
  """First digits of the SHA-256 of each weights file; "random" without one.

  Raises:
    ConfigError: If a file is not there.
  """
  hashes = {}
  for m in backbones:
    path = _weights_file(config, m)
    if path is None:
      hashes[m] = "random"
      continue
    with path.open("rb") as file:
      hashes[m] = hashlib.file_digest(file, "sha256").hexdigest()[:12]
  return hashes


def _weights_file(config: Config, m: str) -> pathlib.Path | None:
  name = config.backbones.encoder(m).weights
  path = pathlib.Path(name).expanduser() if name else None
  if path is not None and not path.is_file():
    raise ConfigError(
      f"config.backbones.{m}.weights={name!r}: no such file. `python -m "
      "data_prep.convert_checkpoint` makes it (docs/encoders.md); '' trains from "
      "random weights."
    )
  return path


def load(
  config: Config, backbones: Mapping[str, Backbone], key: jax.Array
) -> dict[str, Any]:
  """``{modality: variables}`` of the encoders that have a weights file.

  Args:
    config: The config.
    backbones: Its encoders.
    key: For a layer4 that is drawn at random.

  Raises:
    ConfigError: If a file is not there, or is not of that encoder.
  """
  loaded = {}
  for m, backbone in backbones.items():
    path = _weights_file(config, m)
    if path is None:
      continue
    own = named_key(key, f"layer4_{m}")
    try:
      loaded[m] = load_weights(path, backbone, own)
    except (ValueError, ImportError) as error:
      raise ConfigError(f"config.backbones.{m}.weights: {error}") from error
  return loaded


def fill(
  variables: Mapping[str, Any],
  key: jax.Array,
  config: Config,
  backbones: Mapping[str, Backbone],
) -> dict[str, Any]:
  """Initial variables of a network with the published weights in them.

  Args:
    variables: From ``Network.init``.
    key: The key they were drawn with.
    config: The config.
    backbones: Its encoders.
  """
  placed = place_weights(variables, backbones, load(config, backbones, key))
  return jax.tree.map(jnp.asarray, placed)


def tags(
  backbones: Mapping[str, Backbone], hashes: Mapping[str, str]
) -> dict[str, str]:
  """What a record has to own up to of its encoders, ``{name: what}``.

  Example:
    >>> audio = make_backbone("vggsound_resnet18")
    >>> found = tags({"audio": audio}, {"audio": "random"})
    >>> for name, word in found.items(): print(name, word)
    audio.weights random
    audio.bn_mode frozen
    audio.layer4_init random
    audio.trainable layer4
    audio.compute_dtype float32
    audio.size published
  """
  said = {}
  for m, backbone in backbones.items():
    options = backbone.options
    said[f"{m}.weights"] = hashes[m]
    for name in ("bn_mode", "layer4_init", "trainable", "compute_dtype"):
      said[f"{m}.{name}"] = options[name]
    if hashes[m] == "random":
      said[f"{m}.layer4_init"] = "random"
    depths, width = options["depths"], options["width"]
    whole = make_backbone(backbone.kind).options
    published = (depths, width) == (whole["depths"], whole["width"])
    sizes = f"{'-'.join(map(str, depths))}x{width}"
    said[f"{m}.size"] = "published" if published else sizes
  return said


def notice(hashes: Mapping[str, str]) -> str:
  """A loud line where encoders start from random weights; "" where none does."""
  random = [m for m, found in hashes.items() if found == "random"]
  if not random:
    return ""
  fields = ", ".join(f"config.backbones.{m}.weights" for m in random)
  return (
    f"WARNING: the encoders of {', '.join(random)} start from RANDOM weights, trunk "
    f"included ({fields} is empty). Records say so (weights=random); published numbers "
    "start from pretrained ones, see docs/encoders.md.\n"
  )
