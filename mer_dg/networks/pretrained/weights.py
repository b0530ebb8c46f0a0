"""Converted weights on disk: safetensors, one tensor per variable.

A name is the path of the variable (``trunk/params/conv1/conv/kernel``), a tensor has
the layout of the variable, so reading needs no table of names and no PyTorch.
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from mer_dg.networks.pretrained.backbone import Backbone

FORMAT = "mer_dg.pretrained.1"


def save_weights(
  path: str | os.PathLike[str],
  backbone: Backbone,
  variables: Mapping[str, Any],
  *,
  source: str = "",
) -> None:
  """Writes the variables of ``backbone`` under a temporary name, then renames.

  Args:
    path: Target, by convention ``*.safetensors``.
    backbone: Where the variables belong; its kind, depths and width are noted.
    variables: As of ``backbone.init``.
    source: Where they come from, free text.

  Raises:
    ValueError: If the variables are not those of ``backbone``.
  """
  save_file = _safetensors().numpy.save_file
  flat = traverse_util.flatten_dict(variables, sep="/")
  _check(str(path), backbone, flat)
  tensors = {k: np.ascontiguousarray(v, np.float32) for k, v in flat.items()}
  path = pathlib.Path(path)
  part = path.with_name(f".{path.name}.part-{os.getpid()}")
  try:
    save_file(tensors, part, {"format": FORMAT, "source": source} | _size(backbone))
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def load_weights(
  path: str | os.PathLike[str], backbone: Backbone, key: jax.Array | None = None
) -> dict[str, Any]:
  """Variables of ``backbone`` from a file of ``save_weights``.

  Args:
    path: The file.
    backbone: The network; with ``layer4_init="random"`` its layer4 is drawn anew.
    key: For the random layer4; otherwise not used.

  Returns:
    ``variables`` for ``backbone``, float32 NumPy arrays.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If the file is no such file, is of another network, lacks a
      variable or holds one too many or of another shape; or without a key for a
      random layer4.
  """
  random = backbone.options["layer4_init"] == "random"
  if random and key is None:
    raise ValueError("key=None, but layer4_init='random' needs one.")
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f"{path}: no such file.")
  safetensors = _safetensors()
  try:
    with safetensors.safe_open(path, "numpy") as file:
      metadata = file.metadata() or {}
      flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except safetensors.SafetensorError as error:
    raise ValueError(f"{path}: not a safetensors file ({error}).") from error
  if metadata.get("format") != FORMAT:
    raise ValueError(
      f"{path}: format {metadata.get('format')!r}, expected {FORMAT!r}; was it written "
      "by data_prep.convert_checkpoint?"
    )
  for field, value in _size(backbone).items():
    if metadata.get(field) != value:
      raise ValueError(
        f"{path}: {field} {metadata.get(field)!r}, but the network has {value!r}."
      )
  _check(str(path), backbone, flat)
  variables = traverse_util.unflatten_dict(flat, sep="/")
  if random:
    drawn = jax.jit(lambda k: backbone.init(k)["layer4"])(key)
    variables["layer4"] = jax.tree.map(np.asarray, drawn)
  return variables


def _size(backbone: Backbone) -> dict[str, str]:
  """What a file must agree on with the network, as text."""
  return {name: str(backbone.options.get(name)) for name in ("kind", "depths", "width")}


def _check(path: str, backbone: Backbone, flat: Mapping[str, Any]) -> None:
  shapes = traverse_util.flatten_dict(
    jax.eval_shape(backbone.init, jax.random.key(0)), sep="/"
  )
  missing, extra = sorted(set(shapes) - set(flat)), sorted(set(flat) - set(shapes))
  if missing or extra:
    raise ValueError(
      f"{path}: lacks {len(missing)} variables {missing[:3]}, has {len(extra)} that "
      f"the network does not know {extra[:3]}."
    )
  for name, leaf in shapes.items():
    if flat[name].shape != leaf.shape:
      raise ValueError(
        f"{path}: {name} has shape {flat[name].shape}, expected {leaf.shape}."
      )


def _safetensors():
  try:
    import safetensors
    import safetensors.numpy
  except ImportError as error:
    raise ImportError(
      "Pretrained weights need the package safetensors: pip install safetensors"
    ) from error
  return safetensors
