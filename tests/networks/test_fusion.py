"""One battery over all fusions, through the seam."""

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.contracts import InputSpec
from mer_dg.networks import fusion as fusion_lib
from mer_dg.networks import make_network
from tests.factories import quick_jit

KEY = jax.random.key(0)
ROWS = 4
NAMES = ("a", "b/c", "d e")


def build(fusion, modalities, **kwargs):
  """Modalities of different kinds and embedding widths."""
  names = NAMES[:modalities]
  shapes = ((3,), (5,), (2,))
  network = make_network(
    {m: InputSpec("vector", s) for m, s in zip(names, shapes, strict=False)},
    num_classes=3,
    fusion=fusion,
    embedding_dim={m: 4 + i for i, m in enumerate(names)},
    hidden_dim=16,  # Enough that no row meets dead ReLUs only.
    fusion_dim=8,
    classifier_dim=16,
    projector_dim=5,
    projection_dim=2,
    **kwargs,
  )
  # All parameters random, biases and scales too: no path is silent by accident.
  rng = np.random.default_rng(0)
  draw = lambda s: rng.normal(scale=0.5, size=s.shape).astype(np.float32)
  variables = jax.eval_shape(network.init, KEY)
  variables = {
    "params": jax.tree.map(draw, variables["params"]),
    "scaling": {
      m: {"center": np.zeros(s, np.float32), "inv_scale": np.ones(s, np.float32)}
      for m, s in zip(names, shapes, strict=False)
    },
  }
  inputs = {
    m: rng.normal(size=(ROWS, *s)).astype(np.float32)
    for m, s in zip(names, shapes, strict=False)
  }
  return network, variables, inputs


@pytest.mark.parametrize("modalities", [1, pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("fusion", fusion_lib.FUSIONS)
def test_a_missing_modality_has_no_influence_and_no_gradient(fusion, modalities):
  network, variables, inputs = build(fusion, modalities)
  last = network.modalities[-1]
  # Row 0 has all modalities, row 1 lacks the last one, row 2 has none (padding),
  # row 3 has only the last one.
  present = {m: np.array([True, m != last, False, m == last]) for m in inputs}
  key = jax.random.key(3)

  @quick_jit
  def train(inputs, fill):
    outputs, state = network.apply(variables, inputs, present, train=True, key=key)
    assert state == {}
    # What stands in the embedding of a missing modality is ignored as well.
    z = {m: jnp.where(present[m][:, None], z, fill) for m, z in outputs[0].items()}
    return outputs, network.fuse(variables, z, present, train=True, key=key)

  @quick_jit
  def evaluate(params, inputs):
    """Outputs, the same logits again, and the gradients of row 1."""

    def loss(params, inputs):
      v = {**variables, "params": params}
      outputs, _ = network.apply(v, inputs, present, train=False)
      logits = network.fuse(v, outputs.embeddings, present, train=False)
      return sum(jnp.sum(x[1] ** 2) for x in jax.tree.leaves(outputs)), (
        outputs,
        logits,
      )

    (_, aux), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, inputs)
    return *aux, *grads

  outputs, again = train(inputs, 0.0)
  quiet, quiet_again, _, _ = evaluate(variables["params"], inputs)
  # fuse() repeats apply(), in training with the same key.
  np.testing.assert_allclose(again, outputs.logits, atol=1e-6)
  np.testing.assert_allclose(quiet_again, quiet.logits, atol=1e-6)
  for leaf in jax.tree.leaves((outputs, quiet)):
    assert leaf.dtype == jnp.float32
    assert np.all(np.isfinite(leaf))

  # Content of what is missing: NaN instead of numbers changes not one bit.
  hidden = {m: np.where(present[m][:, None], x, np.nan) for m, x in inputs.items()}
  same = np.testing.assert_array_equal
  jax.tree.map(same, train(hidden, jnp.nan), (outputs, again))
  quiet_hidden, _, params, by_input = evaluate(variables["params"], hidden)
  jax.tree.map(same, quiet_hidden, quiet)

  for values in outputs[:3]:
    for m, value in values.items():
      same(value[~present[m]], 0.0)
      assert np.all(np.any(np.asarray(value)[present[m]] != 0, axis=-1))

  # With the last modality missing: exactly zero gradient for all that belongs to it.
  for part in ("encoder", "projector", "head"):
    for leaf in jax.tree.leaves(params[f"{part}_{last}"]):
      same(leaf, 0.0)
  same(by_input[last], 0.0)
  for m in network.modalities[:-1]:
    assert np.any(by_input[m][1] != 0)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(params[f"encoder_{m}"]))
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((params, by_input)))


@pytest.mark.parametrize("fusion", fusion_lib.FUSIONS)
def test_every_present_modality_moves_the_logits(fusion):
  network, variables, inputs = build(fusion, 3)
  present = {m: np.ones(ROWS, bool) for m in inputs}

  @quick_jit
  def logits(inputs):
    return network.apply(variables, inputs, present, train=False)[0].logits

  base = logits(inputs)
  for m, x in inputs.items():
    assert np.all(np.any(np.abs(logits({**inputs, m: x + 1}) - base) > 1e-5, axis=1))


def test_late_fusion_is_the_mean_log_probability():
  network, variables, inputs = build("late", 3)
  present = {m: jnp.array([True, i > 0, i == 2, False]) for i, m in enumerate(NAMES)}
  outputs, _ = network.apply(variables, inputs, present, train=False)
  for row, names in enumerate([NAMES, NAMES[1:], NAMES[2:]]):
    log_p = [jax.nn.log_softmax(outputs.unimodal_logits[m][row]) for m in names]
    np.testing.assert_allclose(outputs.logits[row], np.mean(log_p, axis=0), rtol=1e-5)
  np.testing.assert_array_equal(outputs.logits[3], 0.0)
  assert variables["params"]["fusion"] == {}


def test_average_fusion_is_the_mean_probability():
  network, variables, inputs = build("average", 3)
  present = {m: jnp.array([True, i > 0, i == 2, False]) for i, m in enumerate(NAMES)}
  outputs, _ = network.apply(variables, inputs, present, train=False)
  for row, names in enumerate([NAMES, NAMES[1:], NAMES[2:]]):
    p = [jax.nn.softmax(outputs.unimodal_logits[m][row]) for m in names]
    np.testing.assert_allclose(
      np.exp(outputs.logits[row]), np.mean(p, axis=0), rtol=1e-5
    )
  np.testing.assert_array_equal(outputs.logits[3], 0.0)
  assert variables["params"]["fusion"] == {}


def test_lowrank_is_the_explicit_outer_product():
  # Liu et al. eq. 3 with the weight tensor of eq. 4 written out, M = 2.
  module = fusion_lib.LowRank(features=3, rank=2)
  z = [jax.random.normal(KEY, (1, 4)), jax.random.normal(jax.random.key(1), (1, 5))]
  present = jnp.ones((1, 2), bool)
  shapes = jax.eval_shape(module.init, KEY, z, present)["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: rng.normal(size=s.shape), meta.unbox(shapes))
  factors = []
  for i in range(2):
    layer = params[f"factor_{i}"]
    factor = np.concatenate([layer["kernel"], layer["bias"][None]])
    factors.append(factor.reshape(-1, 2, 3))
  tensor = np.einsum("irf,jrf,r->ijf", *factors, params["rank_weights"])
  ones = [np.append(z_m[0], 1.0) for z_m in z]
  expected = np.einsum("i,j,ijf->f", *ones, tensor) + params["bias"]
  actual = module.apply({"params": params}, z, present)[0]
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def without_last(fusion, fuser):
  """Takes out the parameters of the last of three modalities; widths are 4, 5, 6."""
  last = ("input_2", "factor_2", "modulate_2")
  fuser = {k: v for k, v in fuser.items() if k not in last}
  if fusion == "bottleneck":
    fuser["scale"] = fuser["scale"][:2]
  if fusion == "gated":  # Gates of all three, from all three.
    kernel, bias = fuser["gates"]["kernel"], fuser["gates"]["bias"]
    fuser["gates"] = {"kernel": kernel[:9, :16], "bias": bias[:16]}
  if fusion == "film":  # The first is modulated by 5 + 6, the second by 4 + 6 numbers.
    for i, width in enumerate((5, 4)):
      layer = fuser[f"modulate_{i}"]
      fuser[f"modulate_{i}"] = {**layer, "kernel": layer["kernel"][:width]}
  return fuser


@pytest.mark.parametrize(
  "fusion", ["sum", "gated", "film", "lowrank", "attention", "bottleneck"]
)
def test_three_modalities_without_the_last_are_two(fusion):
  network, variables, inputs = build(fusion, 3)
  two, _, _ = build(fusion, 2)
  params = dict(variables["params"])
  fuser = without_last(fusion, params["fusion"]["fuser"])
  params["fusion"] = {**params["fusion"], "fuser": fuser}
  present = {m: np.full(ROWS, m != "d e") for m in inputs}

  @quick_jit
  def logits(params, two_params):
    v = {**variables, "params": params}, {**variables, "params": two_params}
    pair = zip((network, two), v, strict=True)
    return [n.apply(v, inputs, present, train=False)[0].logits for n, v in pair]

  expected, actual = logits(variables["params"], params)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_bad_names_and_widths():
  with pytest.raises(ValueError, match=r"fusion='mean' is not one of .*'concat'"):
    build("mean", 1)
  with pytest.raises(ValueError, match="fusion_dim=6 must be divisible by the 4"):
    make_network(
      {"a": InputSpec("vector", (2,))}, num_classes=2, fusion="attention", fusion_dim=6
    )
