"""``make_network``: encoders, heads and fusion behind the network seam."""

from collections.abc import Mapping
import math
import types
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mer_dg.contracts import InputSpec, Network, Outputs, named_key
from mer_dg.networks import encoders, heads, initialization
from mer_dg.networks import fusion as fusion_lib
from mer_dg.networks.branches import add_backbone, encode_with_backbone
from mer_dg.networks.preparation import RANGED, TRANSFORMS, prepare_input
from mer_dg.networks.published import (
  BACKBONES,
  FROM_SCRATCH,
  Backbone,
  make_backbone,
  make_from_scratch,
)

COMPUTE_DTYPES = ("float32", "bfloat16")
# Names of encoders that need no weights.
ENCODERS = (*encoders.ENCODERS, *FROM_SCRATCH)


def make_network(
  specs: Mapping[str, InputSpec],
  *,
  num_classes: int,
  fusion: str = "concat",
  encoder: str | Backbone | Mapping[str, str | Backbone] = "auto",
  embedding_dim: int | Mapping[str, int] = 64,
  hidden_dim: int = 128,
  fusion_dim: int = 128,
  classifier_dim: int = 128,
  projector_dim: int = 128,
  projection_dim: int = 128,
  dropout: float = 0.5,
  embedding_dropout: float = 0.0,
  input_clip: float = 10.0,
  input_transform: str = "none",
  compute_dtype: str = "float32",
) -> Network:
  """A multimodal classifier for inputs like ``specs``.

  *Scaling.* Inputs of any real dtype become ``clip((x - center) * inv_scale)`` per
  channel (last axis). ``variables["scaling"]`` starts as the identity, is meant to be
  overwritten with statistics of the training data, and never gets a gradient.

  *Missing modalities.* Where ``present[m]`` is False, what stands in ``inputs[m]`` (NaN
  included) influences nothing, all outputs of that modality are zero, and no parameter
  of its encoder, projector or head gets a gradient from that row.

  *Keys.* ``apply`` and ``fuse`` derive a named key for each use from the ``key`` they
  get, so ``fuse(variables, outputs.embeddings, present, train=True, key=key)`` repeats
  ``outputs.logits`` of ``apply`` with the same key. ``embedding_dropout`` acts where
  embeddings enter the fusion and not on ``Outputs.embeddings``. A rate of dropout that
  is not 0 may be replaced by an array in every call; one of 0 draws nothing.

  Entries of ``inputs``, ``present`` and ``embeddings`` for other modalities are
  ignored, so a network for some modalities can be applied to the full batch.

  *Published encoders.* An encoder may be a ``Backbone``. What it trains is then in
  ``params["encoder_{m}"]``, its frozen trunk in ``variables["frozen"][m]`` and its
  running statistics in ``variables["batch_stats"][m]``, all random until
  ``place_weights`` fills them in. Its scaling is meant to be the published
  normalisation, nothing is clipped, and its dropout is seen by all losses.

  Args:
    specs: ``{modality: InputSpec}``; its order is the order of fusion.
    num_classes: K >= 2.
    fusion: ``concat``, ``sum``, ``gated``, ``film``, ``lowrank``, ``attention``,
      ``bottleneck`` or ``late``.
    encoder: One of `ENCODERS`, a ``Backbone``, or the name of one for its defaults in
      ``compute_dtype``; for all or per modality.
    embedding_dim: Width D of the embeddings, for all or per modality; that of a
      backbone is its own.
    hidden_dim: Hidden width of the encoders.
    fusion_dim: Common width inside the fusion (none for ``concat`` and ``late``).
    classifier_dim: Hidden width of the classifier behind the fusion.
    projector_dim: Hidden width of the projectors.
    projection_dim: Width P of the projections.
    dropout: Probability of zeroing a hidden unit of the classifier in training.
    embedding_dropout: The same for the embeddings where they enter the fusion.
    input_clip: Largest magnitude of a scaled input, in units of the scale.
    input_transform: ``none``; ``range``, vectors and sequences are clipped to the range
      of the training data; or ``asinh``; see `prepare_input`.
    compute_dtype: ``float32`` or ``bfloat16``; parameters and outputs are float32.

  Returns:
    The network; see ``Network``.

  Raises:
    ValueError: For an unknown name, no modality, ``num_classes < 2``, a width < 1, or a
      probability outside [0, 1).

  Example:
    >>> specs = {"a": InputSpec("vector", (3,))}
    >>> network = make_network(specs, num_classes=4)
    >>> variables = network.init(jax.random.key(0))
    >>> outputs, _ = network.apply(
    ...   variables, {"a": jnp.ones((2, 3))}, {"a": jnp.ones(2, bool)}, train=False
    ... )
    >>> outputs.logits.shape
    (2, 4)
  """
  specs = dict(specs)
  modalities = tuple(specs)
  if not specs:
    raise ValueError("specs={} must name at least one modality.")
  if num_classes < 2:
    raise ValueError(f"num_classes={num_classes} must be >= 2.")
  if compute_dtype not in COMPUTE_DTYPES:
    raise ValueError(f"compute_dtype={compute_dtype!r} is not one of {COMPUTE_DTYPES}.")
  if not input_clip > 0:
    raise ValueError(f"input_clip={input_clip} must be > 0.")
  if input_transform not in TRANSFORMS:
    raise ValueError(f"input_transform={input_transform!r} is not one of {TRANSFORMS}.")
  encoder = _per_modality("encoder", encoder, modalities)
  embedding_dim = _per_modality("embedding_dim", embedding_dim, modalities)
  backbones = _backbones(encoder, specs, compute_dtype)
  embedding_dim |= {m: backbone.embedding_dim for m, backbone in backbones.items()}
  widths = dict(
    hidden_dim=hidden_dim,
    fusion_dim=fusion_dim,
    classifier_dim=classifier_dim,
    projector_dim=projector_dim,
    projection_dim=projection_dim,
    **{f"embedding_dim[{m!r}]": d for m, d in embedding_dim.items()},
  )
  for name, width in widths.items():
    if width < 1:
      raise ValueError(f"{name}={width} must be >= 1.")
  own_rates = {"dropout": dropout, "embedding_dropout": embedding_dropout}
  for name, rate in own_rates.items():
    if not 0.0 <= rate < 1.0:
      raise ValueError(f"{name}={rate} must lie in [0, 1).")
  own_rates = {name: rate for name, rate in own_rates.items() if rate}

  encoder_modules = {
    m: encoders.make_encoder(
      encoder[m],
      specs[m],
      embedding_dim=embedding_dim[m],
      hidden_dim=hidden_dim,
      dtype=compute_dtype,
    )
    for m in modalities
    if m not in backbones
  }
  projector = heads.Projector(projector_dim, projection_dim, dtype=compute_dtype)
  head = initialization.dense(num_classes, dtype=compute_dtype)
  fusion_module = fusion_lib.make_fusion(
    fusion,
    fusion_dim=fusion_dim,
    classifier_dim=classifier_dim,
    num_classes=num_classes,
    dtype=compute_dtype,
  )

  def init(key, batch=None):
    if batch is not None:
      _check_names("inputs", batch["inputs"], modalities)
      _check_shapes(batch["inputs"], specs)
    params, scaling, z = {}, {}, []
    variables: dict[str, Any] = {"params": params, "scaling": scaling}
    # `draw` makes the noise, by name: adding a modality leaves the others' initial
    # values alone. The modules' own initialisers are constants.
    for m in modalities:
      spec = specs[m]
      x = jnp.zeros((1, *spec.shape[:-1], spec.channels))
      z_m = jnp.zeros((1, embedding_dim[m]))
      branch = {
        f"projector_{m}": projector.init(key, z_m)["params"],
        f"head_{m}": head.init(key, z_m)["params"],
      }
      if m in backbones:
        add_backbone(variables, m, backbones[m], named_key(key, f"backbone_{m}"))
      else:
        # Ours take no noise here, see above; a registered one may.
        own = named_key(key, f"registered_{m}")
        branch[f"encoder_{m}"] = encoder_modules[m].init(own, x)["params"]
      params |= initialization.draw(named_key(key, f"encoder_{m}"), branch)
      scaling[m] = {
        "center": jnp.zeros(spec.channels),
        "inv_scale": jnp.ones(spec.channels),
      }
      if input_transform == "range" and spec.kind in RANGED:
        every = jnp.full(spec.channels, jnp.inf)
        scaling[m] |= {"low": -every, "high": every}
      z.append(z_m)
    params["fusion"] = {}
    if fusion_module is not None:
      present = jnp.ones((1, len(modalities)), bool)
      fused = fusion_module.init(key, z, present)
      params["fusion"] = initialization.draw(named_key(key, "fusion"), fused["params"])
    return variables

  def encode(variables, m, x, present):
    scaling = jax.lax.stop_gradient(variables["scaling"][m])
    x, mask = prepare_input(
      specs[m], x, scaling, present, clip=input_clip, transform=input_transform
    )
    return _run(encoder_modules[m], variables, f"encoder_{m}", x, mask)

  def classify(variables, embeddings, present, *, train, key, rates):
    """``(logits, fused)``."""
    _check_names("embeddings", embeddings, modalities)
    _check_names("present", present, modalities)
    rates = own_rates if rates is None else rates
    keep = jnp.stack([present[m] for m in modalities], axis=1)
    z: list[jax.Array] = [
      jnp.where(keep[:, i, None], embeddings[m], 0) for i, m in enumerate(modalities)
    ]
    if train and "embedding_dropout" in rates:
      keys = [_use_key(key, f"embedding_dropout_{m}") for m in modalities]
      drop: Any = heads.Dropout()
      z = [
        drop.apply({}, z_m, rates["embedding_dropout"], rngs={"dropout": k})
        for z_m, k in zip(z, keys, strict=True)
      ]
    if fusion_module is None:
      logits = unimodal(variables, dict(zip(modalities, z, strict=True)))
      decide = fusion_lib.DECISIONS[fusion]
      decided = decide([logits[m] for m in modalities], keep)
      return decided, jnp.concatenate(z, axis=-1)
    rate = rates.get("dropout") if train else None
    rngs = None if rate is None else {"dropout": _use_key(key, "fusion")}
    return _run(fusion_module, variables, "fusion", z, keep, rate, rngs=rngs)

  def fuse(variables, embeddings, present, *, train=False, key=None, rates=None):
    settings = dict(train=train, key=key, rates=rates)
    return classify(variables, embeddings, present, **settings)[0]

  def unimodal(variables, embeddings):
    return {
      m: _run(head, variables, f"head_{m}", embeddings[m])
      for m in modalities
      if m in embeddings
    }

  def apply(variables, inputs, present, *, train=False, key=None, rates=None):
    _check_names("inputs", inputs, modalities)
    _check_names("present", present, modalities)

    def where_present(values):
      return {m: jnp.where(present[m][:, None], v, 0) for m, v in values.items()}

    embeddings, batch_stats = {}, {}
    for m in modalities:
      if m in backbones:
        embeddings[m], batch_stats[m] = encode_with_backbone(
          variables,
          m,
          backbones[m],
          inputs[m],
          present[m],
          masked=specs[m].masked,
          train=train,
          key=key,
        )
      else:
        embeddings[m] = encode(variables, m, inputs[m], present[m])
    embeddings = where_present(embeddings)
    projections = {
      m: _run(projector, variables, f"projector_{m}", embeddings[m]) for m in modalities
    }
    logits, fused = classify(
      variables, embeddings, present, train=train, key=key, rates=rates
    )
    outputs = Outputs(
      embeddings=embeddings,
      projections=where_present(projections),
      unimodal_logits=where_present(unimodal(variables, embeddings)),
      fused=fused,
      logits=logits,
    )
    moving = train and any(b.options["bn_mode"] != "frozen" for b in backbones.values())
    return outputs, {"batch_stats": batch_stats} if moving else {}

  def parts(params):
    """Keys of the top level are ``fusion`` and ``<part>_<modality>``."""
    label = lambda path, _: path[0].key.replace("_", "/", 1)
    return jax.tree.map_with_path(label, params)

  fused_width = sum(embedding_dim.values())
  if fusion != "concat" and fusion not in fusion_lib.DECISIONS:
    fused_width = fusion_dim
  return Network(
    modalities,
    init,
    apply,
    fuse,
    unimodal,
    parts,
    rates=types.MappingProxyType(own_rates),
    widths=types.MappingProxyType(embedding_dim),
    fused_width=fused_width,
    projection_width=projection_dim,
  )


def count_parameters(variables: Mapping[str, Any]) -> dict[str, int]:
  """Number of trainable scalars per top-level module, in the order of creation.

  Example:
    >>> count_parameters({"params": {"fusion": {"kernel": jnp.ones((2, 3))}}})
    {'fusion': 6}
  """
  return {
    name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(module))
    for name, module in variables["params"].items()
  }


def describe(variables: Mapping[str, Any]) -> str:
  """A parameter table for logs; ``jax.eval_shape(network.init, key)`` will do.

  Example:
    >>> print(describe({"params": {"fusion": {"kernel": jnp.ones((20, 100))}}}))
    fusion  2,000
    total   2,000
  """
  counts = count_parameters(variables)
  counts["total"] = sum(counts.values())
  left = max(map(len, counts))
  right = max(len(f"{n:,}") for n in counts.values())
  return "\n".join(f"{name:<{left}}  {n:>{right},}" for name, n in counts.items())


def _run(module: nn.Module, variables, name: str, *args, **kwargs) -> Any:
  """Applies one top-level module; float32 whatever it computes in."""
  out: Any = module.apply({"params": variables["params"][name]}, *args, **kwargs)
  return jax.tree.map(lambda a: a.astype(jnp.float32), out)


def _use_key(key: jax.Array | None, name: str) -> jax.Array:
  if key is None:
    raise ValueError(f"key=None with train=True, but {name} needs one.")
  return named_key(key, name)


def _per_modality(argument, value, modalities):
  if not isinstance(value, Mapping):
    return dict.fromkeys(modalities, value)
  if set(value) != set(modalities):
    raise ValueError(
      f"{argument} names the modalities {tuple(value)}, expected {modalities}."
    )
  return {m: value[m] for m in modalities}


def _backbones(encoder, specs, compute_dtype) -> dict[str, Backbone]:
  """The published encoders among ``encoder``, by modality."""
  backbones = {}
  for m, e in encoder.items():
    if isinstance(e, Backbone):
      backbones[m] = e
    elif e in BACKBONES:
      backbones[m] = make_backbone(e, compute_dtype=compute_dtype)
    elif e in FROM_SCRATCH:
      channels = specs[m].channels
      backbones[m] = make_from_scratch(e, channels, compute_dtype=compute_dtype)
  for m, backbone in backbones.items():
    sample = backbone.sample
    if len(specs[m].shape) != len(sample) or specs[m].channels != sample[-1]:
      raise ValueError(
        f"encoder[{m!r}]={backbone.kind!r} needs samples of shape {sample}, got "
        f"{specs[m].shape}."
      )
  return backbones


def _check_shapes(inputs, specs):
  for m, spec in specs.items():
    if jnp.shape(inputs[m])[1:] != spec.shape:
      raise ValueError(
        f"inputs[{m!r}] has shape {jnp.shape(inputs[m])}, expected (B, "
        f"{', '.join(map(str, spec.shape))}) for this {spec.kind}."
      )


def _check_names(argument, values, modalities):
  if missing := [m for m in modalities if m not in values]:
    raise ValueError(
      f"{argument} lacks the modalities {missing}; it has {tuple(values)}."
    )
