"""The published PyTorch names of every variable, and conversion by name."""

from collections import Counter
from collections.abc import Mapping
import re
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import numpy as np

from mer_dg.networks.published.backbone import Backbone

# Last component of a path -> last component of a name.
_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
# Names of a kind that a report spells out.
LISTED = 5
# Classifiers of the pretraining task, which nothing here uses. `fc_reduce` is a layer
# of a derived implementation that never takes part in its forward pass.
_HEADS = re.compile(r"(cls_head\.(fc_cls|fc_reduce)|audnet\.fc)\.(weight|bias)")


class Report(NamedTuple):
  """What became of every name, in a checkpoint and in the network.

  Attributes:
    mapped: ``{PyTorch name: path of the variable}``.
    discarded: Names that are known and not needed: classifiers of the pretraining
      task and counters of batches.
    unused: Names that nothing here knows.
    missing: Names that the network needs and the checkpoint lacks.
    invalid: What is wrong with a tensor: its shape, its type or its values.
  """

  mapped: dict[str, str]
  discarded: tuple[str, ...]
  unused: tuple[str, ...]
  missing: tuple[str, ...]
  invalid: tuple[str, ...]

  @property
  def ok(self) -> bool:
    """Whether every variable was found and nothing unknown was left over."""
    return not (self.unused or self.missing or self.invalid)

  def __str__(self) -> str:
    """Counts, then a few of the names that stand in the way, and a guess at why."""
    counts = ", ".join(
      f"{len(names)} {field}" for field, names in self._asdict().items()
    )
    lines = [counts, *([f"  {hint}"] if (hint := self._hint()) else [])]
    for field in ("missing", "unused", "invalid"):
      names = getattr(self, field)
      lines += [f"  {field}: {name[:200]}" for name in names[:LISTED]]
      if len(names) > LISTED:
        lines.append(f"  {field}: and {len(names) - LISTED} more")
    return "\n".join(lines)

  def _hint(self) -> str:
    """What most names would need to fit: the prefix of a wrapper, or of a part."""
    for needed, given, verb in (
      (self.missing, self.unused, "begin with"),
      (self.unused, self.missing, "lack"),
    ):
      known, prefixes = set(needed), Counter()
      for name in given:
        dots = [i + 1 for i, letter in enumerate(name[:200]) if letter == "."]
        prefixes.update(name[:i] for i in dots if name[i:] in known)
      if prefixes:
        (prefix, count), *_ = prefixes.most_common(1)
        if 2 * count > len(self.missing):
          return (
            f"wrong prefix: {count} names {verb} {prefix!r} and would fit otherwise"
          )
    if self.missing and not self.mapped:
      return "not one name is known: this is the checkpoint of another network"
    return ""


def torch_name(kind: str, path: str) -> str:
  """Name of a variable in the published checkpoint.

  Args:
    kind: One of ``BACKBONES``.
    path: ``part/collection/module/.../leaf`` in ``Backbone`` variables.

  Example:
    >>> path = "trunk/batch_stats/slow_layer3/block11/downsample/bn/mean"
    >>> torch_name("slowfast_r101", path)
    'backbone.slow_path.layer3.11.downsample.bn.running_mean'
    >>> torch_name("vggsound_resnet18", path.replace("slow_", ""))
    'audnet.layer3.11.downsample.1.running_mean'
  """
  _, _, *modules, leaf = path.split("/")
  modules = [re.sub(r"^block(\d+)$", r"\1", name) for name in modules]
  if kind == "vggsound_resnet18":
    *outer, layer, part = modules  # part: "conv" or "bn".
    if layer == "downsample":
      modules = [*outer, layer, "0" if part == "conv" else "1"]
    else:
      modules = [*outer, layer if part == "conv" else layer.replace("conv", "bn")]
    return ".".join(["audnet", *modules, _LEAVES[leaf]])
  modules[0] = re.sub(r"^(slow|fast)_", r"\1_path.", modules[0])
  if modules[-1] not in ("conv", "bn"):
    modules.append("conv")  # Laterals have no norm.
  return ".".join(["backbone", *modules, _LEAVES[leaf]])


def from_torch(
  backbone: Backbone, state_dict: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], Report]:
  """Variables of ``backbone`` from the tensors of a PyTorch checkpoint.

  A prefix ``module.`` that all names share (of ``DataParallel``) is dropped.

  Args:
    backbone: The network to fill.
    state_dict: ``{name: array}``; kernels ``[O, I, *window]``.

  Returns:
    The variables, float32, and the report. The variables are complete only if
    ``report.ok``.
  """
  if state_dict and all(name.startswith("module.") for name in state_dict):
    state_dict = {k.removeprefix("module."): v for k, v in state_dict.items()}
  shapes = traverse_util.flatten_dict(
    jax.eval_shape(backbone.init, jax.random.key(0)), sep="/"
  )
  flat, mapped, missing, invalid = {}, {}, [], []
  for path, leaf in shapes.items():
    name = torch_name(backbone.kind, path)
    if name not in state_dict:
      missing.append(name)
      continue
    mapped[name] = path
    value = np.asarray(state_dict[name])
    if path.endswith("/kernel") and value.ndim == len(leaf.shape):
      value = np.moveaxis(value, (0, 1), (-1, -2))  # [O, I, ...] to [..., I, O].
    if complaint := _complaint(path, value, leaf.shape):
      invalid.append(f"{name}: {complaint}")
    else:
      flat[path] = np.ascontiguousarray(value, np.float32)
  counters = {
    name.replace("running_mean", "num_batches_tracked")
    for name in mapped
    if name.endswith("running_mean")
  }
  rest = [name for name in state_dict if name not in mapped]
  known = [name for name in rest if name in counters or _HEADS.fullmatch(name)]
  report = Report(
    mapped=mapped,
    discarded=tuple(known),
    unused=tuple(name for name in rest if name not in known),
    missing=tuple(missing),
    invalid=tuple(invalid),
  )
  return traverse_util.unflatten_dict(flat, sep="/"), report


def _complaint(path: str, value: np.ndarray, shape: tuple[int, ...]) -> str:
  """What is wrong with a tensor; empty if nothing is."""
  if value.shape != shape:
    note = " (window, input, output)" if path.endswith("/kernel") else ""
    return f"shape {value.shape}, expected {shape}{note}"
  if not np.issubdtype(value.dtype, np.floating):
    return f"dtype {value.dtype}, expected floating"
  if not np.all(np.isfinite(value)):
    return "values that are not finite"
  if path.endswith("/var") and np.any(value < 0):
    return "a negative variance"
  return ""
