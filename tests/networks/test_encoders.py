import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.contracts import InputSpec
from mer_dg.networks import encoders, initialization

KEY = jax.random.key(0)


def build(name, spec, *, hidden_dim=16, **kwargs):
  """The module and drawn parameters."""
  module = encoders.make_encoder(
    name, spec, embedding_dim=5, hidden_dim=hidden_dim, **kwargs
  )
  x = jnp.zeros((1, *spec.shape[:-1], spec.channels))

  @jax.jit
  def init(key):
    return initialization.draw(key, module.init(key, x)["params"])

  return module, {"params": init(KEY)}


@pytest.mark.parametrize(
  ("spec", "auto"),
  [
    (InputSpec("vector", (7,)), "Mlp"),
    (InputSpec("sequence", (2, 1)), "SequenceEncoder"),
    (InputSpec("sequence", (9, 4), masked=True), "SequenceEncoder"),
    (InputSpec("image", (4, 4, 1)), "GridEncoder"),
    (InputSpec("image", (1, 70, 3)), "GridEncoder"),
    (InputSpec("clip", (3, 8, 6, 3)), "GridEncoder"),
  ],
)
def test_every_kind_has_encoders_of_the_right_width(spec, auto):
  x = jax.random.normal(KEY, (3, *spec.shape[:-1], spec.channels))
  for name in ("auto", "mlp", "linear"):
    module, variables = build(name, spec, hidden_dim=64)
    z = jax.jit(module.apply)(variables, x)
    assert z.shape == (3, 5)
    assert np.all(np.isfinite(z))
    assert np.ptp(z, axis=0).min() > 1e-4  # Rows differ: the input arrives.
    assert type(module).__name__ == (auto if name == "auto" else "Mlp")


def test_bad_names():
  spec = InputSpec("vector", (3,))
  with pytest.raises(ValueError, match=r"encoder='cnn' is not one of .*'mlp'"):
    build("cnn", spec)
  with pytest.raises(ValueError, match="got a vector"):
    build("conv", spec)


# The second case is long enough to be cut into patches of two steps.
@pytest.mark.parametrize(("steps", "pads"), [(21, (1, 4, 11)), (301, (1, 102))])
def test_padding_does_not_exist(steps, pads):
  spec = InputSpec("sequence", (steps, 4), masked=True)
  module, variables = build("conv", spec, hidden_dim=32)
  apply = jax.jit(module.apply)
  x = jax.random.normal(KEY, (2, steps, 3))
  expected = apply(variables, x)
  for pad in pads:
    # NaN, so that the padding's content cannot pass unseen.
    padded = jnp.pad(x, ((0, 0), (0, pad), (0, 0)), constant_values=jnp.nan)
    mask = jnp.broadcast_to(jnp.arange(steps + pad) < steps, padded.shape[:2])
    # Equal but for the order in which XLA sums.
    np.testing.assert_allclose(apply(variables, padded, mask), expected, atol=2e-6)

  def loss(params, x, mask):
    return jnp.sum(module.apply({"params": params}, x, mask) ** 2)

  expected = jax.jit(jax.grad(loss))(variables["params"], x, None)
  actual = jax.jit(jax.grad(loss))(variables["params"], padded, mask)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, e, atol=1e-3 * float(jnp.abs(e).max()) + 1e-6)


def test_few_valid_steps_are_finite_in_value_and_gradient():
  module, variables = build("conv", InputSpec("sequence", (6, 3), masked=True))
  mask = jnp.arange(6)[None, :] < jnp.arange(4)[:, None]  # 0, 1, 2 and 3 valid steps.
  x = jnp.ones((4, 6, 2))  # Constant: zero variance everywhere.
  loss = lambda v, x: module.apply(v, x, mask).sum()
  leaves = jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(variables, x))
  assert all(np.all(np.isfinite(leaf)) for leaf in leaves)


def test_statistics_match_numpy_on_the_valid_part():
  x = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
  lengths = np.array([4, 6])
  mask = np.arange(6)[None, :] < lengths[:, None]
  statistics = encoders.masked_statistics(jnp.asarray(x), jnp.asarray(mask))
  steps = encoders.mean_absolute_step(jnp.asarray(x), jnp.asarray(mask))
  for i, length in enumerate(lengths):
    valid = x[i, :length]
    expected = [valid.mean(0), valid.std(0), valid.max(0)]
    actual = [s[i] for s in statistics]
    np.testing.assert_allclose(actual, expected, atol=1e-4)  # The variance floor, 1e-5.
    expected = np.abs(np.diff(valid, axis=0)).mean(0)
    np.testing.assert_allclose(steps[i], expected, rtol=1e-5)


def test_patchify_keeps_neighbours_together():
  x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  y = encoders.patchify(x, (2, 3))
  assert y.shape == (2, 2, 2, 18)
  # The patch at grid cell (1, 0) holds rows 2-3 and columns 0-2.
  np.testing.assert_array_equal(y[1, 1, 0], x[1, 2:4, 0:3].ravel())


def train_accuracy(spec, x, y, *, steps=60):
  """Accuracy after plain gradient descent on the embedding as logits."""
  module, variables = build("conv", spec)

  def loss(params):
    logits = module.apply({"params": params}, x)
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])

  @jax.jit
  def train(params):
    def step(params, _):
      grads = jax.grad(loss)(params)
      return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), None

    return jax.lax.scan(step, params, None, length=steps)[0]

  logits = module.apply({"params": train(variables["params"])}, x)
  return np.mean(np.argmax(logits, axis=-1) == y)


def test_sequence_encoder_sees_order_that_statistics_cannot():
  # Rising and falling saw teeth: the same values, hence the same statistics.
  ramp = (np.arange(24)[None, :] + np.arange(8)[:, None]) % 8 / 4 - 1
  x = np.concatenate([ramp, ramp[:, ::-1]])[:, :, None].astype(np.float32)
  y = np.repeat([0, 1], 8)
  mask = jnp.ones(x.shape[:2], bool)
  for statistic in (
    *encoders.masked_statistics(jnp.asarray(x), mask),
    encoders.mean_absolute_step(jnp.asarray(x), mask),
  ):
    np.testing.assert_allclose(statistic[:8], statistic[8:], atol=1e-6)
  assert train_accuracy(InputSpec("sequence", (24, 1)), jnp.asarray(x), y) > 0.95


def test_image_encoder_sees_position():
  # One bright pixel; the class is its quadrant.
  rng = np.random.default_rng(0)
  row, column = rng.integers(0, 12, size=(2, 64))
  x = np.zeros((64, 12, 12, 1), np.float32)
  x[np.arange(64), row, column] = 10.0
  y = 2 * (row >= 6) + (column >= 6)
  assert train_accuracy(InputSpec("image", (12, 12, 1)), jnp.asarray(x), y) > 0.95
