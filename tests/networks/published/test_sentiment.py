import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.contracts import InputSpec
from mer_dg.networks import make_network
from mer_dg.networks.published import make_sentiment_encoder
from mer_dg.networks.published.sentiment import sinusoids

KEY = jax.random.key(0)
CHANNELS = 7


@pytest.fixture(scope="module")
def built():
  encoder = make_sentiment_encoder(CHANNELS)
  return encoder, jax.jit(encoder.init)(KEY)


def test_equal_to_pytorch(built):
  torch = pytest.importorskip("torch")
  from torch import nn

  encoder, variables = built
  # Random norms and biases, which start at one and zero.
  rng = np.random.default_rng(0)
  noisy = lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
  params = jax.tree.map(noisy, variables["layer4"]["params"])
  layer = nn.TransformerEncoderLayer(
    40, 8, dim_feedforward=160, activation="relu", batch_first=True, norm_first=True
  )
  # PyTorch says that the fast path does not know norm_first.
  model = nn.TransformerEncoder(
    layer, 5, norm=nn.LayerNorm(40), enable_nested_tensor=False
  )
  state = {"norm.weight": params["norm"]["scale"], "norm.bias": params["norm"]["bias"]}
  for i in range(5):
    own = params[f"layer{i}"]
    for name, theirs in (
      ("in_proj", "self_attn.in_proj_"),
      ("out_proj", "self_attn.out_proj."),
      ("linear1", "linear1."),
      ("linear2", "linear2."),
    ):
      state[f"layers.{i}.{theirs}weight"] = own[name]["kernel"].T
      state[f"layers.{i}.{theirs}bias"] = own[name]["bias"]
    for name in ("norm1", "norm2"):
      state[f"layers.{i}.{name}.weight"] = own[name]["scale"]
      state[f"layers.{i}.{name}.bias"] = own[name]["bias"]
  assert state["layers.0.self_attn.in_proj_weight"].shape == (120, 40)
  tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
  model.load_state_dict(tensors)
  model.eval()
  x = rng.normal(size=(3, 11, CHANNELS)).astype(np.float32)
  project = nn.Conv1d(CHANNELS, 40, 1)
  with torch.no_grad():
    project.weight.copy_(
      torch.from_numpy(np.array(params["project"]["kernel"]).T[:, :, None].copy())
    )
    project.bias.copy_(torch.from_numpy(np.array(params["project"]["bias"])))
    y = project(torch.from_numpy(x.transpose(0, 2, 1).copy())).permute(0, 2, 1)
    y = y * 40**0.5 + torch.from_numpy(np.array(sinusoids(11, 40)))
    expected = model(y)[:, 0].numpy()
  z, _ = jax.jit(encoder.layer4)({"layer4": {"params": params}}, x)
  assert z.shape == (3, 40)
  np.testing.assert_allclose(z, expected, atol=1e-4 * np.abs(expected).max())


def test_initial_values(built):
  params = built[1]["layer4"]["params"]
  for i in range(5):
    for name, channels, features in (
      ("in_proj", 40, 120),
      ("out_proj", 40, 40),
      ("linear1", 40, 160),
      ("linear2", 160, 40),
    ):
      bound = (6 / (channels + features)) ** 0.5  # Xavier, uniform.
      kernel = params[f"layer{i}"][name]["kernel"]
      assert kernel.shape == (channels, features)
      assert 0.95 * bound < np.abs(kernel).max() <= bound * (1 + 1e-6)
      np.testing.assert_array_equal(params[f"layer{i}"][name]["bias"], 0.0)


def test_dropout_in_training_only(built):
  encoder, variables = built
  x = jax.random.normal(KEY, (2, 6, CHANNELS))
  run = jax.jit(lambda key: encoder.layer4(variables, x, train=True, key=key)[0])
  first, again, other = (run(jax.random.key(i)) for i in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-2
  calm, _ = jax.jit(encoder.layer4)(variables, x)
  assert np.abs(first - calm).max() > 1e-2
  with pytest.raises(ValueError, match="key=None with train=True"):
    encoder.layer4(variables, x, train=True)


def test_in_a_network():
  specs = {"text": InputSpec("sequence", (6, CHANNELS))}
  encoder = make_sentiment_encoder(CHANNELS)
  network = make_network(specs, num_classes=2, encoder=encoder)
  variables = jax.jit(network.init)(KEY)
  inputs = {"text": jax.random.normal(KEY, (3, 6, CHANNELS))}
  present = {"text": jnp.ones(3, bool)}
  run = jax.jit(lambda v, key: network.apply(v, inputs, present, train=True, key=key))
  outputs, changed = run(variables, KEY)
  assert changed == {}
  assert outputs.embeddings["text"].shape == (3, 40)
  other, _ = run(variables, jax.random.key(1))
  assert np.abs(outputs.embeddings["text"] - other.embeddings["text"]).max() > 1e-2
  # A validity channel is no feature of this encoder: padded steps reach it as zeros,
  # whatever stands in them.
  masked = {"text": InputSpec("sequence", (6, CHANNELS + 1), masked=True)}
  padded = make_network(masked, num_classes=2, encoder=encoder)
  valid = jnp.broadcast_to(jnp.arange(6)[:, None] < 4, (3, 6, 1))
  embed = lambda net, x: net.apply(variables, {"text": x}, present)[0].embeddings[
    "text"
  ]
  expected = embed(network, jnp.where(valid, inputs["text"], 0.0))
  for rest in (0.0, 99.0):
    x = jnp.where(valid, inputs["text"], rest)
    found = embed(padded, jnp.concatenate([x, valid], axis=-1))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_bad_words():
  with pytest.raises(ValueError, match="channels=0 must be >= 1"):
    make_sentiment_encoder(0)
  with pytest.raises(ValueError, match="compute_dtype='int8' is not one of"):
    make_sentiment_encoder(3, compute_dtype="int8")
  with pytest.raises(ValueError, match=r"must be \[B, T, 7\]"):
    make_sentiment_encoder(7).trunk({}, jnp.zeros((2, 5, 6)))
