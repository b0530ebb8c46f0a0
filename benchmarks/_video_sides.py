"""Both sides of `video_torch.py`: the MER-DG step on EPIC in PyTorch, and ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import functools
import importlib.util
import math
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from configs import epic_kitchens
from mer_dg.contracts import InputSpec, Task
from mer_dg.data.video.reader import input_specs
from mer_dg.experiments import Config, validate
from mer_dg.experiments.video_config import KINDS
from mer_dg.methods import build_method, merge_recipes
from mer_dg.networks import (
  Backbone,
  make_backbone,
  make_network,
  place_weights,
)
from mer_dg.networks.published import from_torch
from mer_dg.training.state import make_hyper, make_state, run_keys
from mer_dg.training.step import make_train_step

MODALITIES = ("video", "audio", "flow")
CLASSES = 8
SOURCES = 2
METHOD = "mer_kde"


def _layer_stacks():
  """The module of the parity tests that has the layers in PyTorch.

  By its path: other packages install a ``tests`` of theirs, which would be found first.
  """
  root = pathlib.Path(__file__).resolve().parents[1]
  path = root / "tests/networks/published/_torch_reference.py"
  spec = importlib.util.spec_from_file_location("_torch_reference", path)
  if spec is None or spec.loader is None:
    raise ImportError(f"{path}: cannot be imported.")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # `torch.compile` looks for it there.
  spec.loader.exec_module(module)
  return module


reference = _layer_stacks()


class Problem(NamedTuple):
  """What both sides build.

  Attributes:
    config: Of `configs/epic_kitchens.py`, checked.
    specs: Shape of one sample of each modality.
    backbones: Our encoders; their options hold for both sides.
  """

  config: Config
  specs: dict[str, InputSpec]
  backbones: dict[str, Backbone]


def make_problem(
  *,
  dtype: str,
  depths: Sequence[int] = (),
  width: int = 64,
  shapes: Mapping[str, tuple[int, ...]] | None = None,
  dropout: bool = True,
  projector_dim: int | None = None,
  optimizer: Mapping[str, float] | None = None,
) -> Problem:
  """The EPIC problem in a dtype; smaller, and without dropout, for the check.

  Args:
    dtype: "float32" or "bfloat16".
    depths: Blocks per layer of all encoders; () is the published ones.
    width: Channels of the stems.
    shapes: Of one sample of each modality; None is what the reader makes.
    dropout: False sets all rates to 0.
    projector_dim: Hidden width of the projectors; None is the config's.
    optimizer: Learning rate and decay that differ from the config's.
  """
  c = epic_kitchens.get_config("D3,vaf")
  c.method, c.network.compute_dtype = METHOD, dtype
  if projector_dim is not None:
    c.network.projector_dim = projector_dim
  c.optimizer.update(optimizer or {})
  if not dropout:
    c.network.dropout = 0.0
  backbones = {
    m: make_backbone(
      KINDS[m],
      depths=tuple(depths) or None,
      width=width,
      compute_dtype=dtype,
      dropout=None if dropout else 0.0,
    )
    for m in MODALITIES
  }
  specs = input_specs(MODALITIES)
  if shapes is not None:
    specs = {m: InputSpec(specs[m].kind, shapes[m]) for m in MODALITIES}
  return Problem(validate(c), specs, backbones)


def random_rows(problem: Problem, batch: int) -> tuple[dict[str, np.ndarray], Any]:
  """Standard normal inputs ``{m: [B, ...]}`` and labels ``[B]``."""
  rng = np.random.default_rng(0)
  inputs = {
    m: rng.standard_normal((batch, *spec.shape), np.float32)
    for m, spec in problem.specs.items()
  }
  return inputs, rng.integers(0, CLASSES, batch).astype(np.int32)


# --- PyTorch -------------------------------------------------------------------------


def kernel_entropy(z: torch.Tensor, bandwidth: float) -> torch.Tensor:
  """Leave-one-out Gaussian kernel entropy of ``z [n, d]`` on the unit sphere, nats."""
  z = F.normalize(z.float(), dim=1, eps=1e-6)
  n, d = z.shape
  square = (z[:, None] - z[None]).square().sum(-1)  # No product: TF32 is too coarse.
  itself = torch.eye(n, dtype=torch.bool, device=z.device)
  log_k = (-square / (2 * bandwidth**2)).masked_fill(itself, -math.inf)
  log_p = torch.logsumexp(log_k, 1) - math.log(n - 1)
  return -log_p.mean() + d * (math.log(bandwidth) + 0.5 * math.log(2 * math.pi))


class Peer(nn.Module):
  """Network and loss: ``(inputs {m: [B, C, ...]}, label [B]) -> scalar``."""

  def __init__(self, problem: Problem):
    super().__init__()
    options = problem.config.network
    hidden, width = options.projector_dim, options.projection_dim
    self.mer = problem.config.recipes[METHOD]["mer"]
    self.rates = {m: b.options["dropout"] for m, b in problem.backbones.items()}
    self.encoders, self.projectors = nn.ModuleDict(), nn.ModuleDict()
    for seed, (m, backbone) in enumerate(problem.backbones.items()):
      size = backbone.options["depths"], backbone.options["width"]
      model = reference.randomise(reference.build(backbone.kind, *size), seed)
      # Running statistics, and gradients for layer4 alone.
      self.encoders[m] = model.eval().requires_grad_(False)
      for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layer4." in name)
      d = backbone.embedding_dim
      hiddens = [
        part
        for i in (d, hidden)
        for part in (nn.Linear(i, hidden), nn.LayerNorm(hidden), nn.ReLU())
      ]
      self.projectors[m] = nn.Sequential(*hiddens, nn.Linear(hidden, width))
    total = sum(b.embedding_dim for b in problem.backbones.values())
    self.classifier = nn.Sequential(
      nn.Linear(total, options.classifier_dim),
      nn.ReLU(),
      nn.Dropout(options.dropout),
      nn.Linear(options.classifier_dim, CLASSES),
    )

  def forward(self, inputs, label):
    z, entropy = [], 0.0
    for m, model in self.encoders.items():
      net = reference.network(model)
      with torch.no_grad():
        maps = net.trunk(inputs[m])
      z.append(F.dropout(net.last(maps), self.rates[m]))
      projection = self.projectors[m](z[-1])
      entropy = entropy + kernel_entropy(projection, self.mer["bandwidth"])
    logits = self.classifier(torch.cat(z, 1)).float()
    return F.cross_entropy(logits, label) - self.mer["weight"] * entropy


def copy_heads(model: Peer, params: Mapping[str, Any]) -> None:
  """Copies projectors and classifier from our parameters, in place."""
  pairs = []
  for m, projector in model.projectors.items():
    names = ("Dense_0", "LayerNorm_0", None, "Dense_1", "LayerNorm_1", None)
    ours = params[f"projector_{m}"]
    pairs += [
      (layer, ours[name])
      for layer, name in zip(projector, (*names, "projection"), strict=True)
      if name
    ]
  own = params["fusion"]["classifier"]
  pairs += [(model.classifier[0], own["Dense_0"]), (model.classifier[3], own["logits"])]
  with torch.no_grad():
    for layer, own in pairs:
      weight = own["kernel"].T if "kernel" in own else own["scale"]
      layer.weight.copy_(torch.from_numpy(np.array(weight)))
      layer.bias.copy_(torch.from_numpy(np.array(own["bias"])))


def torch_steps(
  model: Peer, problem: Problem, inputs, label, *, compiled: str = "off"
) -> Callable[[int], float]:
  """Returns ``steps -> last loss``, which takes steps and waits for them.

  Args:
    model: Goes to the device and learns.
    problem: The problem.
    inputs: As of `random_rows`.
    label: As of `random_rows`.
    compiled: "off", or a mode of `torch.compile`.
  """
  device = torch_device()
  for m, encoder in model.encoders.items():
    form = torch.channels_last if m == "audio" else torch.channels_last_3d
    encoder.to(memory_format=form)
  model.to(device)
  # The permuted array is channels-last already; nothing is copied but to the device.
  x = {m: torch.from_numpy(v).movedim(-1, 1).to(device) for m, v in inputs.items()}
  y = torch.from_numpy(label).long().to(device)
  words = vars(problem.config.optimizer)
  optimizer = torch.optim.Adam(
    [p for p in model.parameters() if p.requires_grad],
    lr=words["lr"],
    weight_decay=words["weight_decay"],
    fused=device.type == "cuda",
  )
  # No compiled graph with a free batch axis, nor anything of the last problem.
  torch.compiler.reset()
  forward = model
  if compiled != "off":
    forward = torch.compile(model, mode=compiled, dynamic=False)
  half = problem.config.network.compute_dtype == "bfloat16"

  def run(steps: int) -> float:
    for _ in range(steps):
      optimizer.zero_grad(set_to_none=True)
      with torch.autocast(device.type, torch.bfloat16, enabled=half):
        loss = forward(x, y)
      loss.backward()
      optimizer.step()
    if device.type == "cuda":
      torch.cuda.synchronize()
    return float(loss.detach())

  return run


def torch_device() -> torch.device:
  """Where JAX computes, for PyTorch.

  Raises:
    RuntimeError: If PyTorch cannot compute there.
  """
  platform = jax.default_backend()
  if platform == "cpu":
    return torch.device("cpu")
  if platform != "gpu" or not torch.cuda.is_available():
    raise RuntimeError(
      f"JAX computes on {platform!r}, but this PyTorch ({torch.__version__}) has no "
      "such device. Install one with CUDA, or set JAX_PLATFORMS=cpu."
    )
  return torch.device("cuda")


# --- ours ----------------------------------------------------------------------------


def our_steps(
  model: Peer, problem: Problem, inputs, label
) -> tuple[Callable[[int], float], float]:
  """`torch_steps` of our step, and its GFLOP per clip as XLA counts them.

  The encoders' weights are taken from ``model``, and it is given our heads.
  """
  config, batch = problem.config, len(label)
  options = {**vars(config.network), "encoder": problem.backbones}
  network = make_network(problem.specs, num_classes=CLASSES, **options)
  horizon = dict(schedule="constant", total_steps=config.total_steps)
  widths, steps = tuple(network.widths.values()), config.total_steps
  task = Task(MODALITIES, CLASSES, SOURCES, batch, steps, widths, network.fused_width)
  method = build_method(METHOD, merge_recipes(METHOD, config.recipes), task)
  hyper = make_hyper(network, method, vars(config.optimizer))
  make = functools.partial(
    make_state, network, method, scaling={}, hyper=hyper, **horizon
  )
  state = jax.jit(lambda seed: make(seed=seed))(np.uint32(0))
  copy_heads(model, state.params["net"])
  placed = place_weights(state.variables, problem.backbones, _converted(model, problem))
  placed = jax.device_put(placed)
  params = {**state.params, "net": placed.pop("params")}
  state = state.replace(params=params, model_state=placed)
  rows = dict(
    inputs=inputs,
    present={m: np.ones(batch, bool) for m in MODALITIES},
    label=label,
    mask=np.ones(batch, bool),
    domain=(np.arange(batch) % SOURCES).astype(np.int32),
  )
  step = make_train_step(network, method, **horizon)

  def one(state, rows):
    key = jax.random.fold_in(run_keys(state.key).step, state.step)
    return step(state, rows, key)

  rows = jax.device_put(rows)
  lowered = jax.jit(one, donate_argnums=0).lower(state, rows)
  # Before optimisation: a compiler's calls into libraries count as nothing.
  flops = (lowered.cost_analysis() or {}).get("flops", math.nan)
  compiled = lowered.compile()

  def run(steps: int) -> float:
    nonlocal state
    for _ in range(steps):
      state, metrics = compiled(state, rows)
    jax.block_until_ready(state)
    return float(metrics["loss"])

  return run, flops / batch / 1e9


def _converted(model: Peer, problem: Problem) -> dict[str, Any]:
  """Encoders of ``model`` as our variables."""
  weights = {}
  for m, backbone in problem.backbones.items():
    # Copies: JAX may use the memory of an array, and PyTorch's tensors will change.
    state = model.encoders[m].state_dict()
    tensors = {k: v.cpu().numpy().copy() for k, v in state.items()}
    weights[m], report = from_torch(backbone, tensors)
    if not report.ok:
      raise ValueError(f"the PyTorch encoder of {m} does not convert: {report}")
  return weights
