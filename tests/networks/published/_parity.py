"""What the tests of the published networks share; knows no PyTorch."""

import json
import pathlib
import re

from flax import traverse_util
import jax
import numpy as np

from mer_dg.networks.published import BACKBONES, architectures, torch_names
from mer_dg.networks.published.layers import Mode

# Every stage has a first block; one has a second, whose shortcut is the identity.
DEPTHS = (1, 2, 1, 1)
WIDTH = 16
# [B, *sample]: odd and unequal sides, so that a shifted or swapped padding shows.
INPUTS = {
  "slowfast_r101": (3, 8, 45, 38, 3),
  "slowonly_r50_flow": (3, 3, 45, 38, 2),
  "vggsound_resnet18": (3, 45, 70, 1),
}
_MODULES = {
  "slowfast_r101": (architectures.SlowFastTrunk, architectures.SlowFastLayer4),
  "slowonly_r50_flow": (architectures.ResNetTrunk, architectures.ResNetLayer4),
  "vggsound_resnet18": (architectures.ResNetTrunk, architectures.ResNetLayer4),
}
assert set(INPUTS) == set(BACKBONES)


def published_keys(kind):
  """``{name: shape}`` of the published checkpoint."""
  folder = pathlib.Path(__file__).parent / "published_keys"
  shapes = json.loads((folder / f"{kind}.json").read_text())
  return {name: tuple(shape) for name, shape in shapes.items()}


def random_input(kind, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=INPUTS[kind]).astype(np.float32)


def random_variables(backbone, seed=0):
  """Weights and batch norms that are nothing like fresh ones, from NumPy alone."""
  rng = np.random.default_rng(seed)
  shapes = traverse_util.flatten_dict(jax.eval_shape(backbone.init, jax.random.key(0)))
  values = {}
  for path, leaf in sorted(shapes.items()):
    if path[-1] == "kernel":
      value = rng.normal(size=leaf.shape) * (1.5 / np.prod(leaf.shape[:-1])) ** 0.5
    elif path[-1] in ("scale", "var"):
      value = rng.uniform(0.5, 1.5, leaf.shape)
    else:
      value = 0.3 * rng.normal(size=leaf.shape)
    values[path] = value.astype(np.float32)
  return traverse_util.unflatten_dict(values)


def to_torch_layout(x):
  """``[B, *spatial, C]`` to ``[B, C, *spatial]``."""
  return np.moveaxis(np.asarray(x), -1, 1)


def all_activations(kind, variables, x, *, depths, width, train):
  """Output of every module, by the path of that module, and the running statistics.

  Goes below ``Backbone``, whose functions return maps and embeddings only; that these
  are the same is for `test_backbone.py`.
  """
  mode = Mode(batch_statistics=train)
  trunk, layer4 = (cls(depths=depths, width=width, mode=mode) for cls in _MODULES[kind])

  @jax.jit
  def run(variables, x):
    how = dict(capture_intermediates=True, mutable=["intermediates", "batch_stats"])
    maps, first = trunk.apply(variables["trunk"], x, **how)
    z, second = layer4.apply(variables["layer4"], maps, **how)
    return maps, z, {"trunk": first, "layer4": second}

  maps, z, changed = run(variables, x)
  seen = {}
  for part in changed.values():
    for path, value in traverse_util.flatten_dict(part["intermediates"]).items():
      if len(path) > 1:  # Not the whole trunk.
        seen["/".join(path[:-1])] = value[0]
  stats = {part: value["batch_stats"] for part, value in changed.items()}
  return seen, maps, z, stats


def torch_module(kind, path):
  """Name of the PyTorch module with the output of the one at ``path``; None if none."""
  last = path.split("/")[-1]
  if last in ("conv", "bn"):
    leaf = "kernel" if last == "conv" else "scale"
    name = torch_names.torch_name(kind, f"trunk/params/{path}/{leaf}")
    return name.removesuffix(".weight")
  if kind == "vggsound_resnet18" and last in ("conv1", "conv2"):
    return None  # Convolution, norm and ReLU: no module of that network.
  outer = torch_names.torch_name(kind, f"trunk/params/{path}/x/conv/kernel")
  return re.sub(r"\.x(\.conv)?\.weight$", "", outer)
