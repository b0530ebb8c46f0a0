"""``make_backbone``: a published encoder as pure functions, trunk and layer4 apart."""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from mer_dg.networks.published import architectures
from mer_dg.networks.published.layers import Mode

BN_MODES = ("frozen", "layer4", "batch")
LAYER4_INITS = ("pretrained", "random")
TRAINABLE = ("layer4", "all")
COMPUTE_DTYPES = ("float32", "bfloat16")


class _Kind(NamedTuple):
  """What distinguishes the networks; ``sample`` is the smallest input, without B."""

  trunk: type[nn.Module]
  layer4: type[nn.Module]
  depths: tuple[int, int, int, int]
  sample: tuple[int, ...]
  embedding_per_width: float  # Width of the embedding / width of the stem.
  trunk_batch_norms_move: bool  # What the references do, see bn_mode="batch".
  scale_deviation: float  # Standard deviation of initial batch-norm scales.
  dropout: float  # Of the published head, on the embedding.


_KINDS = {
  "slowfast_r101": _Kind(
    architectures.SlowFastTrunk,
    architectures.SlowFastLayer4,
    (3, 4, 23, 3),
    (4, 32, 32, 3),
    36.0,
    True,
    0.0,
    0.5,
  ),
  "slowonly_r50_flow": _Kind(
    architectures.ResNetTrunk,
    architectures.ResNetLayer4,
    (3, 4, 6, 3),
    (1, 32, 32, 2),
    32.0,
    True,
    0.0,
    0.5,
  ),
  "vggsound_resnet18": _Kind(
    architectures.ResNetTrunk,
    architectures.ResNetLayer4,
    (2, 2, 2, 2),
    (32, 32, 1),
    8.0,
    False,
    0.02,
    0.0,
  ),
}
BACKBONES = tuple(_KINDS)


class Backbone(NamedTuple):
  """Pure functions over ``variables``; all can be jitted and vmapped.

  ``variables`` is ``{part: {"params": ..., "batch_stats": ...}}`` for the parts
  ``trunk`` (if there is one) and ``layer4``. Of these only ``params`` of ``layer4``
  are trained, unless the network was made with ``trainable="all"``.

  Attributes:
    kind: One of ``BACKBONES``.
    options: Every word that decides what is computed, for the record of a run.
    sample: Shape of one sample, None where any size will do: the time axis of
      SlowFast is a multiple of 4.
    embedding_dim: Width D of the embedding.
    init: ``(key) -> variables``, random weights.
    trunk: ``(variables, x, rows=None, *, train=False) -> (maps, batch_stats)``, stem
      to layer3. ``x`` is ``[B, T, H, W, C]`` or, for audio, ``[B, 257, 1004, 1]``;
      ``rows`` bool ``[B]`` names the samples that count in batch statistics. ``maps``
      is an array, or one for each path of SlowFast, in the compute dtype.
      ``batch_stats`` are the trunk's after the call, the same where nothing moved.
    layer4: ``(variables, maps, rows=None, *, train=False, key=None) -> (z,
      batch_stats)``, layer4 and global average pooling; ``z`` float32 ``[B, D]``,
      before the dropout of ``options``. The key is for encoders with dropout inside.
  """

  kind: str
  options: dict[str, Any]
  sample: tuple[int | None, ...]
  embedding_dim: int
  init: Callable[[jax.Array], dict[str, Any]]
  trunk: Callable[..., tuple[Any, dict[str, Any]]]
  layer4: Callable[..., tuple[jax.Array, dict[str, Any]]]


def make_backbone(
  kind: str,
  *,
  depths: tuple[int, ...] | None = None,
  width: int = 64,
  bn_mode: str = "frozen",
  layer4_init: str = "pretrained",
  trainable: str = "layer4",
  dropout: float | None = None,
  compute_dtype: str = "float32",
  remat: bool = False,
) -> Backbone:
  """A published encoder, at its published size or smaller.

  Args:
    kind: ``slowfast_r101`` (SlowFast 8x8 on RGB; D = 2304, fast 256 then slow 2048),
      ``slowonly_r50_flow`` (SlowOnly on two channels of flow; D = 2048) or
      ``vggsound_resnet18`` (log-spectrograms; D = 512).
    depths: Blocks of layer1..layer4; the published ones when None.
    width: Channels of the stem, a multiple of 8; 64 is the published one.
    bn_mode: What batch norms do in training. ``frozen``: running statistics
      throughout, they never move. ``layer4``: batch statistics in layer4, whose
      running statistics follow. ``batch``: as the reference implementations, where
      also the frozen trunks of video and flow (not of audio) are in training mode:
      they normalise with the batch, and their running statistics drift.
    layer4_init: ``pretrained``, or ``random`` for a layer4 drawn anew when weights
      are loaded. For audio most reference implementations do the latter, by accident.
    trainable: ``layer4``, or ``all`` for a trunk that gets gradients too.
    dropout: Probability of zeroing an entry of the embedding in training; None is
      that of the published head, 0.5 for video and flow, 0 for audio. ``layer4`` and
      ``encode`` return the embedding *before* it; a network made with the backbone
      applies it, so that every loss sees it, as in the reference implementations.
    compute_dtype: ``float32`` or ``bfloat16``; parameters, statistics and embeddings
      are float32.
    remat: Recompute the inside of residual blocks in the backward pass.

  Returns:
    The network; see ``Backbone``.

  Raises:
    ValueError: For an unknown word, depths that are not four numbers >= 1, a width
      that is no multiple of 8, a dropout outside [0, 1), or a random layer4 with
      frozen batch norms.

  References:
    Feichtenhofer et al., SlowFast networks for video recognition, 2019; Chen et al.,
    VGGSound: a large-scale audio-visual dataset, 2020.

  Example:
    >>> flow = make_backbone("slowonly_r50_flow")
    >>> variables = jax.eval_shape(flow.init, jax.random.key(0))  # Shapes only.
    >>> maps, _ = jax.eval_shape(flow.trunk, variables, jnp.ones((2, 8, 224, 224, 2)))
    >>> z, _ = jax.eval_shape(flow.layer4, variables, maps)
    >>> maps.shape, z.shape
    ((2, 8, 14, 14, 1024), (2, 2048))
  """
  for name, word, allowed in (
    ("kind", kind, BACKBONES),
    ("bn_mode", bn_mode, BN_MODES),
    ("layer4_init", layer4_init, LAYER4_INITS),
    ("trainable", trainable, TRAINABLE),
    ("compute_dtype", compute_dtype, COMPUTE_DTYPES),
  ):
    if word not in allowed:
      raise ValueError(f"{name}={word!r} is not one of {allowed}.")
  spec = _KINDS[kind]
  depths = spec.depths if depths is None else tuple(int(n) for n in depths)
  if len(depths) != 4 or min(depths) < 1:
    raise ValueError(f"depths={depths} must be four numbers >= 1.")
  if width < 8 or width % 8:
    raise ValueError(f"width={width} must be a positive multiple of 8.")
  dropout = spec.dropout if dropout is None else dropout
  if not 0.0 <= dropout < 1.0:
    raise ValueError(f"dropout={dropout} must lie in [0, 1).")
  if layer4_init == "random" and bn_mode == "frozen":
    raise ValueError(
      "layer4_init='random' needs bn_mode='layer4' or 'batch', got 'frozen': the "
      "statistics of a new batch norm are placeholders (mean 0, variance 1)."
    )
  moving = {
    "trunk": bn_mode == "batch" and spec.trunk_batch_norms_move,
    "layer4": bn_mode != "frozen",
  }

  def run(part, variables, x, rows, train):
    mode = Mode(compute_dtype, train and moving[part], remat)
    module = getattr(spec, part)(depths=depths, width=width, mode=mode)
    out, changed = module.apply(variables[part], x, rows, mutable=["batch_stats"])
    return out, changed["batch_stats"]

  def trunk(variables, x, rows=None, *, train=False):
    if x.ndim != len(spec.sample) + 1 or x.shape[-1] != spec.sample[-1]:
      raise ValueError(
        f"x {x.shape} must have {len(spec.sample) + 1} axes and {spec.sample[-1]} "
        f"channels for {kind}."
      )
    if trainable == "all":
      return run("trunk", variables, x, rows, train)
    frozen = jax.lax.stop_gradient({"trunk": variables["trunk"]})
    return jax.lax.stop_gradient(run("trunk", frozen, x, rows, train))

  def layer4(variables, maps, rows=None, *, train=False, key=None):
    del key
    return run("layer4", variables, maps, rows, train)

  def init(key):
    mode = Mode()
    parts, x = {}, jax.ShapeDtypeStruct((1, *spec.sample), jnp.float32)
    for part in ("trunk", "layer4"):
      module = getattr(spec, part)(depths=depths, width=width, mode=mode)
      x, parts[part] = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    return _initial_values(key, parts, spec.scale_deviation)

  options = dict(
    kind=kind,
    depths=depths,
    width=width,
    bn_mode=bn_mode,
    layer4_init=layer4_init,
    trainable=trainable,
    dropout=dropout,
    compute_dtype=compute_dtype,
    remat=remat,
  )
  return Backbone(
    kind=kind,
    options=options,
    sample=(*(None for _ in spec.sample[:-1]), spec.sample[-1]),
    embedding_dim=int(spec.embedding_per_width * width),
    init=init,
    trunk=trunk,
    layer4=layer4,
  )


def encode(
  backbone: Backbone,
  variables: Mapping[str, Any],
  x: jax.Array,
  rows: jax.Array | None = None,
  *,
  train: bool = False,
  key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
  """Trunk and layer4 in one call: ``z [B, D]`` and ``{part: batch_stats}``.

  Example:
    >>> small = make_backbone("vggsound_resnet18", depths=(1, 1, 1, 1), width=8)
    >>> variables = jax.jit(small.init)(jax.random.key(0))
    >>> run = jax.jit(lambda variables, x: encode(small, variables, x)[0])
    >>> run(variables, jnp.ones((2, 32, 32, 1))).shape
    (2, 64)
  """
  maps, trunk_stats = backbone.trunk(variables, x, rows, train=train)
  z, layer4_stats = backbone.layer4(variables, maps, rows, train=train, key=key)
  return z, {"trunk": trunk_stats, "layer4": layer4_stats}


def _initial_values(key, shapes, scale_deviation):
  """Kaiming-normal (fan-out) kernels, fresh batch norms; one draw for all of them."""
  flat = traverse_util.flatten_dict(shapes)
  random = [p for p in flat if p[-1] == "kernel" or p[-1] == "scale"]
  sizes = [math.prod(flat[path].shape) for path in random]
  noise = jax.random.normal(key, (sum(sizes),))
  parts = dict(zip(random, jnp.split(noise, np.cumsum(sizes)[:-1]), strict=True))
  values = {}
  for path, leaf in flat.items():
    if path[-1] == "kernel":
      fan_out = math.prod(leaf.shape) // leaf.shape[-2]
      values[path] = parts[path].reshape(leaf.shape) * (2.0 / fan_out) ** 0.5
    elif path[-1] == "scale":
      values[path] = 1.0 + scale_deviation * parts[path]
    else:
      # The dtype makes it no weak type, with which a step would compile twice.
      value = 1.0 if path[-1] == "var" else 0.0
      values[path] = jnp.full(leaf.shape, value, jnp.float32)
  return traverse_util.unflatten_dict(values)
