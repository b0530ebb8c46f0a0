"""Where a published encoder's variables live among those of a whole network."""

from collections.abc import Mapping
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp

from mer_dg.contracts import named_key
from mer_dg.networks.published import Backbone, encode


def place_weights(
  variables: Mapping[str, Any],
  backbones: Mapping[str, Backbone],
  weights: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
  """``variables`` of a network with the weights of its published encoders filled in.

  Args:
    variables: From ``Network.init``.
    backbones: ``{modality: Backbone}``, those the network was made with.
    weights: ``{modality: variables}`` from ``load_weights``, for some or all of them.

  Returns:
    New ``variables``; whatever belongs to no given encoder is shared.

  Raises:
    ValueError: For a modality without a backbone, or weights of another shape.
  """
  if unknown := [m for m in weights if m not in backbones]:
    raise ValueError(
      f"weights for {unknown}, but only {tuple(backbones)} have a published encoder."
    )
  variables = {name: dict(group) for name, group in variables.items()}
  for m, own in weights.items():
    for group, name, value in _places(backbones[m], m, own):
      shapes, new = (
        jax.tree.map(jnp.shape, t) for t in (variables[group][name], value)
      )
      if shapes != new:
        raise ValueError(
          f"the weights for {m!r} do not fit its encoder in the network."
        )
      variables[group][name] = value
  return variables


def add_backbone(
  variables: dict[str, Any], m: str, backbone: Backbone, key: jax.Array
) -> None:
  """Adds random weights of ``m``'s encoder to the groups of ``variables``, in place."""
  for group, name, value in _places(backbone, m, backbone.init(key)):
    variables.setdefault(group, {})[name] = value


def encode_with_backbone(
  variables: Mapping[str, Any],
  m: str,
  backbone: Backbone,
  x: jax.Array,
  present: jax.Array,
  *,
  masked: bool = False,
  train: bool,
  key: jax.Array | None,
) -> tuple[jax.Array, dict[str, Any]]:
  """Scaled and encoded input of ``m``, with the dropout of the published head.

  Unlike for other encoders nothing is clipped, and the spatial and temporal size of
  the input is free.

  Args:
    variables: Of the network.
    m: Modality.
    backbone: Its encoder.
    x: ``[B, *spatial, C]``, any real dtype; ``variables["scaling"]`` is applied.
    present: bool ``[B]``; other rows have no influence on batch statistics either.
    masked: Whether the last channel of ``x`` is 1 on valid steps and 0 on padding. It
      is taken off, and padding enters as zeros: such an encoder knows no mask.
    train: Whether batch norms and the dropout train.
    key: For the dropout; not needed in evaluation or at rate 0.

  Returns:
    ``z [B, D]``, float32, and the running statistics ``{part: ...}``.
  """
  scaling = jax.lax.stop_gradient(variables["scaling"][m])
  valid = x[..., -1:] > 0.5 if masked else True
  x = x[..., :-1] if masked else x
  over = (1,) * (x.ndim - 1) + (-1,)
  x = (x.astype(jnp.float32) - scaling["center"].reshape(over)) * scaling[
    "inv_scale"
  ].reshape(over)
  x = jnp.where(valid & present.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0)
  params = variables.get("frozen", {}).get(m, {}) | variables["params"][f"encoder_{m}"]
  stats = variables["batch_stats"][m]
  own = {part: {"params": params[part], "batch_stats": stats[part]} for part in stats}
  inner = None if key is None else named_key(key, f"encoder_{m}")
  z, new_stats = encode(backbone, own, x, present, train=train, key=inner)
  rate = backbone.options["dropout"]
  if train and rate > 0:
    if key is None:
      raise ValueError(f"key=None with train=True, but the dropout of {m} needs one.")
    drop = nn.Dropout(rate, deterministic=False)
    rngs = {"dropout": named_key(key, f"encoder_dropout_{m}")}
    z = cast(jax.Array, drop.apply({}, z, rngs=rngs))
  return z, {part: new_stats[part] for part in stats}


def _places(backbone, m, own):
  """(group, name in it, value) for the variables of one encoder."""
  params = {part: own[part]["params"] for part in own}
  if "trunk" in own and backbone.options["trainable"] != "all":
    yield "frozen", m, {"trunk": params.pop("trunk")}
  yield "params", f"encoder_{m}", params
  yield "batch_stats", m, {part: own[part]["batch_stats"] for part in own}
