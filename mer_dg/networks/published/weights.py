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

from mer_dg.files import replacing
from mer_dg.networks.published.backbone import Backbone

FORMAT = "mer_dg.pretrained.1"


def save_weights(
  path: str | os.PathLike[str],
  backbone: Backbone,
  variables: Mapping[str, Any],
  *,
  source: str = "",
) -> None:
  """Writes the variables of ``backbone``, whole or not at all.

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
  _check(str(path), backbone, {name: np.shape(v) for name, v in flat.items()})
  tensors = {k: np.ascontiguousarray(v, np.float32) for k, v in flat.items()}
  with replacing(path) as part:
    save_file(tensors, part, {"format": FORMAT, "source": source} | _size(backbone))


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
      _check_header(str(path), backbone, file)
      flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except ValueError:
    raise
  except Exception as error:  # A damaged file can raise anything.
    words = " ".join(str(error).split())[:200]
    raise ValueError(f"{path}: not a safetensors file ({words}).") from error
  variables = traverse_util.unflatten_dict(flat, sep="/")
  if random:
    drawn = jax.jit(lambda k: backbone.init(k)["layer4"])(key)
    variables["layer4"] = jax.tree.map(np.asarray, drawn)
  return variables


def _size(backbone: Backbone) -> dict[str, str]:
  """What a file must agree on with the network, as text."""
  return {name: str(backbone.options.get(name)) for name in ("kind", "depths", "width")}


def _check_header(path: str, backbone: Backbone, file: Any) -> None:
  """Everything that can be known before a number is read: memory is then bounded."""
  metadata = file.metadata() or {}
  if metadata.get("format") != FORMAT:
    raise ValueError(
      f"{path}: format {str(metadata.get('format'))[:50]!r}, expected {FORMAT!r}; was "
      "it written by data_prep.convert_checkpoint?"
    )
  for field, value in _size(backbone).items():
    if metadata.get(field) != value:
      raise ValueError(
        f"{path}: {field} {str(metadata.get(field))[:50]!r}, but the network has "
        f"{value!r}."
      )
  tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
  _check(path, backbone, {n: tuple(t.get_shape()) for n, t in tensors.items()})
  for name, tensor in tensors.items():
    if tensor.get_dtype() != "F32":
      raise ValueError(f"{path}: {name} is of {tensor.get_dtype()}, expected F32.")


def _check(path: str, backbone: Backbone, shapes: Mapping[str, tuple]) -> None:
  expected = traverse_util.flatten_dict(
    jax.eval_shape(backbone.init, jax.random.key(0)), sep="/"
  )
  missing, extra = (
    sorted(set(expected) - set(shapes)),
    sorted(set(shapes) - set(expected)),
  )
  if missing or extra:
    raise ValueError(
      f"{path}: lacks {len(missing)} variables {missing[:3]}, has {len(extra)} that "
      f"the network does not know {[name[:100] for name in extra[:3]]}."
    )
  for name, leaf in expected.items():
    if shapes[name] != leaf.shape:
      raise ValueError(
        f"{path}: {name} has shape {shapes[name]}, expected {leaf.shape}."
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
