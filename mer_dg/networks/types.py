"""The network seam: what training knows of a network, and nothing more."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax

# The number of axes of ONE sample, by kind of modality.
KINDS = {"vector": 1, "sequence": 2, "image": 3, "clip": 4}


class Outputs(NamedTuple):
  """Everything a loss term may look at; a pytree, float32.

  Rows whose modality is missing are exactly zero in the three dicts.

  Attributes:
    embeddings: ``{m: [B, D_m]}``, the encoder outputs ``z``.
    projections: ``{m: [B, P]}``, un-normalised projector outputs.
    unimodal_logits: ``{m: [B, K]}``, from the linear head of each modality.
    logits: ``[B, K]``, the fused prediction.
  """

  embeddings: dict[str, jax.Array]
  projections: dict[str, jax.Array]
  unimodal_logits: dict[str, jax.Array]
  logits: jax.Array


@dataclasses.dataclass(frozen=True)
class InputSpec:
  """Kind and shape of one sample of a modality.

  Attributes:
    kind: ``vector`` ``[D]``, ``sequence`` ``[T, C]``, ``image`` ``[H, W, C]`` or
      ``clip`` ``[T, H, W, C]``.
    shape: Shape of one sample, without the batch axis.
    masked: Sequences only. The last channel is 1 on valid steps and 0 on padding,
      valid steps first. It is no feature: it is counted in ``shape`` but neither
      scaled nor encoded, and what stands on padded steps has no influence.

  Raises:
    ValueError: For an unknown kind, a shape that does not fit it, or ``masked`` on
      anything but a sequence.

  Example:
    >>> InputSpec("sequence", (62, 16), masked=True).channels
    15
  """

  kind: str
  shape: tuple[int, ...]
  masked: bool = False

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f"kind={self.kind!r} is not one of {tuple(KINDS)}.")
    object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
    if len(self.shape) != KINDS[self.kind] or min(self.shape) < 1:
      raise ValueError(
        f"shape={self.shape} of a {self.kind} must have {KINDS[self.kind]} axes, "
        "each of size >= 1 (one sample, no batch axis)."
      )
    if self.masked and self.kind != "sequence":
      raise ValueError(f"masked=True needs kind='sequence', got {self.kind!r}.")
    if self.masked and self.shape[-1] < 2:
      raise ValueError(
        f"shape={self.shape}: a masked sequence needs at least one channel "
        "beside its validity channel."
      )

  @property
  def channels(self) -> int:
    """Number of feature channels (the validity channel is none)."""
    return self.shape[-1] - int(self.masked)


class Network(NamedTuple):
  """Pure functions over ``variables``; all can be jitted and vmapped.

  Attributes:
    modalities: Names, in the order of fusion.
    init: ``(key, batch=None) -> variables``. Shapes come from the specs; a ``batch``
      that is given is held against them. ``variables["params"]`` has exactly the keys
      ``encoder_{m}``, ``projector_{m}``, ``head_{m}`` and ``fusion``;
      ``variables["scaling"]`` is ``{m: {"center": [C], "inv_scale": [C]}}``. Published
      encoders add ``frozen`` and ``batch_stats``, see ``make_network``.
    apply: ``(variables, inputs, present, *, train, key)`` ->
      ``(Outputs, new_model_state)``; the latter holds the collections that changed,
      ``{}`` when none did.
    fuse: ``(variables, embeddings, present, *, train, key) -> logits [B, K]``, the
      fusion and classifier alone.
    unimodal: ``(variables, embeddings) -> {m: logits [B, K]}``, the heads alone.
  """

  modalities: tuple[str, ...]
  init: Callable[..., dict[str, Any]]
  apply: Callable[..., tuple[Outputs, dict[str, Any]]]
  fuse: Callable[..., jax.Array]
  unimodal: Callable[..., dict[str, jax.Array]]
