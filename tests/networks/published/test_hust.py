import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.contracts import InputSpec
from mer_dg.networks import make_network
from mer_dg.networks.published import make_hust_cnn
from mer_dg.networks.published.hust import adaptive_max_pool

KEY = jax.random.key(0)
LAYERS = ((1, 8, 32), (8, 16, 8), (16, 32, 3), (32, 32, 3))


def test_parts_of_the_published_length():
  # methods: [0, 245), [244, 490), [489, 735), [734, 979) for 979 steps.
  steps = jnp.arange(979.0).reshape(1, -1, 1)
  np.testing.assert_array_equal(
    adaptive_max_pool(steps, 4)[0, :, 0], [244, 489, 734, 978]
  )
  np.testing.assert_array_equal(
    -adaptive_max_pool(-steps, 4)[0, :, 0], [0, 244, 489, 734]
  )


def random_variables(seed=0):
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(make_hust_cnn().init, KEY)

  def leaf(path, value):
    name = path[-1].key
    if name in ("scale", "var"):
      return rng.uniform(0.5, 1.5, value.shape).astype(np.float32)
    return (0.3 * rng.normal(size=value.shape)).astype(np.float32)

  return jax.tree.map_with_path(leaf, shapes)


@pytest.mark.parametrize("train", [False, True])
def test_equal_to_pytorch(train):
  torch = pytest.importorskip("torch")
  from torch import nn

  stages = []
  for i, (channels, features, window) in enumerate(LAYERS):
    pool = nn.MaxPool1d(2, stride=1) if i < 3 else nn.AdaptiveMaxPool1d(4)
    stages.append(
      nn.Sequential(
        nn.Conv1d(channels, features, window), nn.BatchNorm1d(features), nn.ReLU(), pool
      )
    )
  model = nn.Sequential(*stages, nn.Flatten())
  variables = random_variables()
  own = variables["layer4"]
  state = {}
  for i in range(4):
    conv, norm = (own["params"][f"layer{i + 1}_{part}"] for part in ("conv", "bn"))
    stats = own["batch_stats"][f"layer{i + 1}_bn"]
    state |= {
      f"{i}.0.weight": conv["kernel"].transpose(2, 1, 0),
      f"{i}.0.bias": conv["bias"],
      f"{i}.1.weight": norm["scale"],
      f"{i}.1.bias": norm["bias"],
      f"{i}.1.running_mean": stats["mean"],
      f"{i}.1.running_var": stats["var"],
      f"{i}.1.num_batches_tracked": np.int64(0),
    }
  tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
  model.load_state_dict(tensors)
  model.train(train)
  x = np.random.default_rng(1).normal(size=(5, 1024, 1)).astype(np.float32)
  with torch.no_grad():
    expected = model(torch.from_numpy(x.transpose(0, 2, 1).copy())).numpy()
  cnn = make_hust_cnn()
  z, stats = jax.jit(lambda v, x: cnn.layer4(v, x, train=train))(variables, x)
  assert z.shape == expected.shape == (5, 128)
  np.testing.assert_allclose(z, expected, atol=1e-5 * np.abs(expected).max())
  for i in range(4):
    for name in ("mean", "var"):
      np.testing.assert_allclose(
        stats[f"layer{i + 1}_bn"][name],
        model.state_dict()[f"{i}.1.running_{name}"].numpy(),
        rtol=1e-5,
        atol=1e-6,
      )


def test_initial_values_follow_pytorch():
  params = jax.jit(make_hust_cnn().init)(KEY)["layer4"]["params"]
  for i, (channels, _, window) in enumerate(LAYERS):
    bound = (channels * window) ** -0.5
    for value in params[f"layer{i + 1}_conv"].values():
      assert 0.5 * bound < np.abs(value).max() <= bound
  # Uniform: deviation bound / sqrt(3). 3072 numbers in the largest kernel.
  kernel = params["layer4_conv"]["kernel"]
  np.testing.assert_allclose(np.std(kernel), 96**-0.5 / 3**0.5, rtol=0.05)


def test_in_a_network_everything_is_trained_and_statistics_move():
  specs = {m: InputSpec("sequence", (64, 1)) for m in ("vibration", "sound")}
  network = make_network(specs, num_classes=3, encoder=make_hust_cnn(), dropout=0.0)
  variables = jax.jit(network.init)(KEY)
  assert "frozen" not in variables
  inputs = {m: jax.random.normal(KEY, (4, 64, 1)) for m in specs}
  present = {m: jnp.ones(4, bool) for m in specs}

  @jax.jit
  @jax.grad
  def gradient(params):
    filled = {**variables, "params": params}
    outputs, _ = network.apply(filled, inputs, present, train=True, key=KEY)
    return jnp.sum(outputs.logits**2)

  grads = gradient(variables["params"])
  for m in specs:
    # A bias before a batch norm has none: the mean takes it away again.
    for name, layer in grads[f"encoder_{m}"]["layer4"].items():
      for leaf in ("kernel",) if name.endswith("conv") else ("scale", "bias"):
        assert np.any(layer[leaf] != 0), (name, leaf)
  _, changed = jax.jit(
    lambda v: network.apply(v, inputs, present, train=True, key=KEY)
  )(variables)
  old = variables["batch_stats"]
  assert jax.tree.structure(changed["batch_stats"]) == jax.tree.structure(old)
  same = jax.tree.map(np.array_equal, changed["batch_stats"], old)
  assert not any(jax.tree.leaves(same))


def test_bad_words_and_inputs():
  with pytest.raises(ValueError, match="compute_dtype='float64' is not one of"):
    make_hust_cnn(compute_dtype="float64")
  cnn = make_hust_cnn()
  for shape in ((2, 48, 1), (2, 64, 2), (2, 64)):
    with pytest.raises(ValueError, match=r"must be \[B, T >= 49, 1\]"):
      cnn.trunk({}, jnp.zeros(shape))
