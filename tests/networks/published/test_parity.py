"""Every activation equals that of the published definition in PyTorch."""

import jax
import numpy as np
import pytest

from mer_dg.networks.published import BACKBONES, encode, from_torch, make_backbone
from tests.networks.published import _parity

torch = pytest.importorskip("torch")

from tests.networks.published import _torch_reference  # noqa: E402

# Largest deviation over largest magnitude, in float32. Measured: at most 1e-5 in any
# activation; 1e-4 is what a difference in summation order can never reach.
TOLERANCE = 1e-4


def relative(actual, expected):
  expected = np.asarray(expected)
  assert actual.shape == expected.shape
  return np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected))


def numpy_state(model):
  return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module", params=BACKBONES)
def case(request):
  """A small network, its random reference and the converted variables."""
  kind = request.param
  model = _torch_reference.build(kind, _parity.DEPTHS, _parity.WIDTH)
  _torch_reference.randomise(model, seed=1)
  backbone = make_backbone(
    kind, depths=_parity.DEPTHS, width=_parity.WIDTH, bn_mode="batch"
  )
  variables, report = from_torch(backbone, numpy_state(model))
  assert report.ok, str(report)
  return kind, model, backbone, variables


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_reference_has_the_published_names_and_shapes(kind):
  with torch.device("meta"):
    model = _torch_reference.build(kind, head=True)
  actual = {name: tuple(t.shape) for name, t in model.state_dict().items()}
  assert actual == _parity.published_keys(kind)


@pytest.mark.parametrize("train", [False, True])
def test_every_activation(case, train):
  kind, model, _, variables = case
  before = numpy_state(model)
  before = {name: value.copy() for name, value in before.items()}
  x = _parity.random_input(kind)
  with torch.no_grad():
    expected, maps, z = _torch_reference.activations(
      model, torch.from_numpy(_parity.to_torch_layout(x).copy()), train=train
    )
  after = {name: value.copy() for name, value in numpy_state(model).items()}
  model.load_state_dict({name: torch.from_numpy(v) for name, v in before.items()})
  actual, my_maps, my_z, stats = _parity.all_activations(
    kind, variables, x, depths=_parity.DEPTHS, width=_parity.WIDTH, train=train
  )

  compared = set()
  for path, value in actual.items():
    name = _parity.torch_module(kind, path)
    if name in expected:
      error = relative(_parity.to_torch_layout(value), expected[name])
      assert error < TOLERANCE, (path, error)
      compared.add(name)
      if name.endswith("_lateral"):  # A lone convolution inside a container there.
        compared.add(f"{name}.conv")
  assert set(expected) == compared  # None was left out.
  if kind == "slowfast_r101":
    for mine, theirs in zip((my_maps["slow"], my_maps["fast"]), maps, strict=True):
      assert relative(_parity.to_torch_layout(mine), theirs) < TOLERANCE
  else:
    assert relative(_parity.to_torch_layout(my_maps), maps) < TOLERANCE
  assert relative(my_z, z) < TOLERANCE

  # Running statistics: moved in training only, by the unbiased variance.
  backbone = make_backbone(kind, depths=_parity.DEPTHS, width=_parity.WIDTH)
  wanted, _ = from_torch(backbone, after)
  for part in ("trunk", "layer4"):
    pairs = zip(
      jax.tree.leaves(stats[part]),
      jax.tree.leaves(wanted[part]["batch_stats"]),
      jax.tree.leaves(variables[part]["batch_stats"]),
      strict=True,
    )
    for mine, theirs, old in pairs:
      assert relative(mine, theirs) < TOLERANCE
      assert np.array_equal(mine, old) == (not train)


def test_gradients_of_layer4_in_training(case):
  kind, model, backbone, variables = case
  x = _parity.random_input(kind, seed=3)
  model.train()
  net = _torch_reference.network(model)
  before = {name: value.clone() for name, value in model.state_dict().items()}
  with torch.no_grad():
    if kind == "vggsound_resnet18":  # As the references: its trunk is in eval mode.
      model.eval()
    maps = net.trunk(torch.from_numpy(_parity.to_torch_layout(x).copy()))
  model.train()
  z = net.last(maps)
  weight = np.random.default_rng(4).normal(size=tuple(z.shape)).astype(np.float32)
  torch.sum(z * torch.from_numpy(weight)).backward()
  gradients = {
    name: p.grad.numpy().copy()
    for name, p in model.named_parameters()
    if p.grad is not None
  }
  model.zero_grad(set_to_none=True)
  model.load_state_dict(before)

  @jax.jit
  @jax.grad
  def gradient(params):
    filled = {**variables, "layer4": {**variables["layer4"], "params": params}}
    z, _ = encode(backbone, filled, x, train=True)
    return (z * weight).sum()

  actual = gradient(variables["layer4"]["params"])
  # Where there is no gradient there are no statistics either: fill in zeros.
  rest = {k: v.numpy() for k, v in before.items() if k not in gradients}
  expected, _ = from_torch(backbone, {**rest, **gradients})
  expected = expected["layer4"]["params"]
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for mine, theirs in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    # Looser than for activations: sums over all samples and pixels cancel.
    assert relative(mine, theirs) < 1e-3
