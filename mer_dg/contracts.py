"""The words that rooms share: batch, outputs, task, model, kinds of input, named keys.

**Batch**: a dict, leading axis B, fixed shapes, padding by mask::

  inputs  {modality: [B, ...]}     in the order of the config, everywhere
  present {modality: bool [B]}     False where that modality is missing
  label   int32 [B]
  domain  int32 [B]                position in the list of source domains
  index   int32 [B]                stable sample id
  mask    bool [B]                 False on padding rows
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import math
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp

Batch = dict[str, Any]

# The number of axes of ONE sample, by kind of modality.
KINDS = {"vector": 1, "sequence": 2, "image": 3, "clip": 4}


def as_array(name: str, x: Any) -> jax.Array:
  """``x`` as an array of JAX, where a loss takes it from a user's code.

  Raises:
    TypeError: For a tensor of PyTorch that records its gradient: it would be lost.
  """
  if getattr(x, "requires_grad", False):
    raise TypeError(
      f"{name} is a tensor that requires grad, and JAX sees nothing of its graph: put "
      "a torch.autograd.Function around the loss (ten lines, docs/pytorch.md), or pass "
      "tensor.detach() for the value alone."
    )
  return jnp.asarray(x)


def square_limit(d: int, dtype: Any) -> float:
  """Entries up to here leave sums of d squared differences finite.

  Example:
    >>> x = jnp.float32(square_limit(4, jnp.float32))
    >>> print(jnp.isfinite(4 * (2 * x) ** 2))
    True
  """
  return math.sqrt(float(jnp.finfo(dtype).max) / (8 * d))


def cut_off(x: jax.Array, bound: float) -> jax.Array:
  """``x`` within the bound: what is beyond half of it grows as its logarithm.

  For what must be squared. Clipping would make distinct far rows equal, and an entropy
  small that is large.

  Example:
    >>> x = cut_off(jnp.array([1.0, 1e20, 1e30, -jnp.inf]), 10.0)
    >>> print(x[0], bool(x[1] < x[2]), jnp.abs(x).max())
    1.0 True 10.0
  """
  start, largest = bound / 2, float(jnp.finfo(x.dtype).max)
  size = jnp.minimum(jnp.abs(x), largest)
  far = size > start
  slope = start / math.log(largest / start)
  grown = start + slope * jnp.log(jnp.where(far, size, start) / start)
  return jnp.where(far, jnp.sign(x) * grown, x)


class Outputs(NamedTuple):
  """Everything a loss term may look at; a pytree, float32.

  Rows whose modality is missing are exactly zero in the three dicts.

  Attributes:
    embeddings: ``{m: [B, D_m]}``, the encoder outputs ``z``.
    projections: ``{m: [B, P]}``, un-normalised projector outputs.
    unimodal_logits: ``{m: [B, K]}``, from the linear head of each modality.
    fused: ``[B, F]``, the feature that the classifier sees.
    logits: ``[B, K]``, the fused prediction.
  """

  embeddings: dict[str, jax.Array]
  projections: dict[str, jax.Array]
  unimodal_logits: dict[str, jax.Array]
  fused: jax.Array
  logits: jax.Array


class Task(NamedTuple):
  """Static facts of a training task; runs that share them share a program.

  Attributes:
    modalities: Names, in the order of the config.
    num_classes: K.
    num_domains: S, the number of source domains.
    num_samples: N, the number of stable sample ids (for tables over samples).
    total_steps: Length of training, for schedules.
    widths: D_m of each modality, in the order of ``modalities``.
    fused_width: F.
    projection_width: P.
    domain_rows: Rows of each source domain in a batch; 0 where it is not known.
  """

  modalities: tuple[str, ...]
  num_classes: int
  num_domains: int
  num_samples: int
  total_steps: int
  widths: tuple[int, ...]
  fused_width: int
  projection_width: int
  domain_rows: int = 0

  @property
  def width(self) -> dict[str, int]:
    """``{modality: D_m}``."""
    return dict(zip(self.modalities, self.widths, strict=True))


class Model(NamedTuple):
  """What a method knows of a network: pure functions of the parameters they are given.

  Attributes:
    modalities: Names, in the order of fusion.
    apply: ``(params, batch, key=None, *, train=False) -> Outputs``.
    fuse: ``(params, embeddings, present, key=None, *, train=False) -> logits [B, K]``:
      mixed, dropped or translated embeddings, no encoder pass. Here and in ``apply`` no
      key means the noise of the step's own forward pass.
    heads: ``(params, embeddings) -> {m: logits [B, K]}``.
    parts: ``params -> labels``, a tree like the parameters with the name of the part
      that each leaf belongs to: ``encoder/<m>``, ``projector/<m>``, ``head/<m>``,
      ``fusion``.
  """

  modalities: tuple[str, ...]
  apply: Callable[..., Outputs]
  fuse: Callable[..., jax.Array]
  heads: Callable[..., dict[str, jax.Array]]
  parts: Callable[[Any], Any]


class Network(NamedTuple):
  """A multimodal classifier as pure functions over ``variables``.

  ``variables`` is ``{"params": ..., **model_state}``. All can be jitted and vmapped.

  Attributes:
    modalities: Names, in the order of fusion.
    init: ``(key, batch=None) -> variables``. Shapes come from the specs; a ``batch``
      that is given is held against them. ``variables["scaling"]`` is
      ``{m: {"center": [C], "inv_scale": [C]}}``. Published encoders add ``frozen`` and
      ``batch_stats``.
    apply: ``(variables, inputs, present, *, train, key, rates)`` ->
      ``(Outputs, new_model_state)``; the latter holds the collections that changed,
      ``{}`` when none did.
    fuse: ``(variables, embeddings, present, *, train, key, rates) -> logits [B, K]``,
      the fusion and classifier alone.
    heads: ``(variables, embeddings) -> {m: logits [B, K]}``.
    parts: See `Model`.
    rates: ``{name: rate}``, the rates of dropout that are not 0. ``apply`` and ``fuse``
      take others of these names as arrays, so that vmapped runs may differ in them.
    widths: ``{m: D_m}``.
    fused_width: F.
    projection_width: P.
  """

  modalities: tuple[str, ...]
  init: Callable[..., dict[str, Any]]
  apply: Callable[..., tuple[Outputs, dict[str, Any]]]
  fuse: Callable[..., jax.Array]
  heads: Callable[..., dict[str, jax.Array]]
  parts: Callable[[Any], Any]
  rates: Mapping[str, float]
  widths: Mapping[str, int]
  fused_width: int
  projection_width: int

  def model(
    self,
    model_state: Mapping[str, Any],
    rates: Mapping[str, Any],
    own_key: jax.Array | None = None,
  ) -> Model:
    """The network with all that is no parameter filled in.

    Args:
      model_state: As `init` made it.
      rates: Rates of dropout.
      own_key: Key of the step's own forward pass.
    """
    of = lambda params: {"params": params, **model_state}

    def apply(params, batch, key=None, *, train=False):
      key = own_key if key is None else key
      return self.apply(
        of(params), batch["inputs"], batch["present"], train=train, key=key, rates=rates
      )[0]

    def fuse(params, embeddings, present, key=None, *, train=False):
      key = own_key if key is None else key
      return self.fuse(
        of(params), embeddings, present, train=train, key=key, rates=rates
      )

    heads = lambda params, embeddings: self.heads(of(params), embeddings)
    return Model(self.modalities, apply, fuse, heads, self.parts)


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
    >>> from mer_dg.contracts import InputSpec
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


def named_key(key: jax.Array, name: str) -> jax.Array:
  """The key for one named use; CRC-32, because ``hash`` of a str varies by process.

  Example:
    >>> from mer_dg.contracts import named_key
    >>> a, b = (named_key(jax.random.key(0), name) for name in "ab")
    >>> bool(a == b)
    False
  """
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def seed_of(name: str) -> int:
  """64 bits from a name, the same in every process: the seed of what is called so.

  Example:
    >>> from mer_dg.contracts import seed_of
    >>> seed_of("0/kitchen") == seed_of("0/kitchen") != seed_of("1/kitchen")
    True
  """
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


class Registry(dict[str, Any]):
  """What a config may name, ours and a user's alike: ``{name: thing}``.

  Args:
    what: The kind of thing, for messages.

  Example:
    >>> from mer_dg.contracts import Registry
    >>> encoders = Registry("encoder")
    >>> encoders.add("mine", len)
    >>> encoders.add("mine", max)
    Traceback (most recent call last):
    ...
    ValueError: the encoder 'mine' exists already (in builtins); choose ...
  """

  def __init__(self, what: str):
    super().__init__()
    self._what = what
    self._origins: dict[str, tuple[str, str]] = {}

  def add(
    self, name: str, thing: Any, *, maker: Any = None, replace: bool = False
  ) -> None:
    """Adds a thing; the same file read again replaces what it added before.

    Args:
      name: Its name: letters, digits and ``_``.
      thing: What is found under the name.
      maker: The function whose file and name tell where it comes from; the thing itself
        by default.
      replace: Whether it may replace one of another file.

    Raises:
      ValueError: For no such name, or one that exists.
    """
    if not isinstance(name, str) or not name.replace("_", "").isalnum():
      raise ValueError(f"{name!r} names no {self._what}: letters, digits and '_'.")
    origin = _origin(thing if maker is None else maker)
    if name in self and self._origins[name] != origin and not replace:
      raise ValueError(
        f"the {self._what} {name!r} exists already (in {self._origins[name][0]}); "
        "choose another name, or register it with replace=True."
      )
    self[name], self._origins[name] = thing, origin


def _origin(maker: Any) -> tuple[str, str]:
  code, file = getattr(maker, "__code__", None), getattr(maker, "__module__", "?")
  if code and file != "__main__":  # An edited cell of a notebook is another "file".
    file = code.co_filename
  return file, getattr(maker, "__qualname__", repr(maker))
