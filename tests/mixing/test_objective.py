"""The modality-mix loss: values, equivalences, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mer_dg import mixing

B, K = 10, 3
SIZES = {"audio": 4, "flow": 2, "video": 3}


def make_batch(seed=0, rows=B):
  keys = jax.random.split(jax.random.key(seed), 4)
  x = {
    m: jax.random.normal(k, (rows, d))
    for k, (m, d) in zip(keys, SIZES.items(), strict=False)
  }
  return x, jax.random.randint(keys[3], (rows,), 0, K)


def make_params(seed=1, width=5):
  keys = iter(jax.random.split(jax.random.key(seed), 20))
  normal = lambda *shape: 0.5 * jax.random.normal(next(keys), shape)
  return {
    "encoder": {m: (normal(d, 8), normal(8, width)) for m, d in SIZES.items()},
    "head": {m: normal(width, K) for m in SIZES},
    "gate": {m: normal(width, width) for m in SIZES},
    "fusion": (normal(3 * width, 6), normal(6, K)),
  }


def encode(params, x):
  relu = jax.nn.relu
  return {m: relu(x[m] @ w1) @ w2 for m, (w1, w2) in sorted(params["encoder"].items())}


def concat(params, z):
  w1, w2 = params["fusion"]
  return jnp.tanh(jnp.concatenate([z[m] for m in sorted(z)], axis=-1) @ w1) @ w2


def gated(params, z):
  gates = {m: jax.nn.sigmoid(z[m] @ params["gate"][m]) for m in z}
  return concat(params, {m: gates[m] * z[m] for m in z})


def product(params, z):  # every embedding acts on every other
  joint = functools.reduce(jnp.multiply, [1.0 + z[m] for m in sorted(z)])
  return joint @ params["head"]["audio"]


def late(params, z):
  return sum(z[m] @ params["head"][m] for m in z) / len(z)


def heads(params, z):
  return {m: z[m] @ params["head"][m] for m in z}


def both_ways(fuse):
  """Loss as a function of the parameters, mixing embeddings and mixing inputs."""
  x, y = make_batch()
  mix = functools.partial(
    mixing.modality_mix, jax.random.key(7), num_classes=K, eligible=jnp.arange(B) != 4
  )

  def loss(params, mixed, z):
    return mixing.modality_mix_loss(
      mixed, fuse(params, z), unimodal_logits=heads(params, z)
    )[0]

  def of_embeddings(params):
    mixed = mix(encode(params, x), y)
    return loss(params, mixed, mixed.embeddings)

  def of_inputs(params):
    mixed = mix(x, y)
    return loss(params, mixed, encode(params, mixed.embeddings))

  both = (jax.value_and_grad(of_embeddings), jax.value_and_grad(of_inputs))
  return jax.jit(lambda params: [f(params) for f in both])(make_params())


@pytest.mark.parametrize("fuse", [concat, gated, product, late])
def test_mixing_embeddings_equals_mixing_inputs(fuse):
  (value, grad), (expected, expected_grad) = both_ways(fuse)
  assert value > 0.5
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  compare = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
  jax.tree.map(compare, grad, expected_grad)


def mixed_of(z, y, **options):
  return mixing.modality_mix(jax.random.key(3), z, y, num_classes=K, **options)


def test_values_against_optax():
  x, _ = make_batch()
  y = jnp.array([0] * 8 + [1, 2])  # many rows have three sources of one label
  params = make_params()
  mixed = mixed_of(encode(params, x), y)
  logits, unimodal = concat(params, mixed.embeddings), heads(params, mixed.embeddings)
  weights = {"audio": 0.5, "flow": 1.0, "video": 2.0}
  loss, aux = mixing.modality_mix_loss(
    mixed,
    logits,
    unimodal_logits=unimodal,
    unimodal_weight=0.3,
    modality_weights=weights,
  )
  w = np.asarray(mixed.weight)
  assert 0 < w.sum() < B

  def mean(logits, target):
    return np.average(optax.softmax_cross_entropy(logits, target), weights=w)

  expected = mean(logits, mixed.targets)
  each = {m: mean(unimodal[m], jax.nn.one_hot(y[mixed.source[m]], K)) for m in SIZES}
  np.testing.assert_allclose(aux["fused"], expected, rtol=1e-5)
  expected += 0.3 * sum(weights[m] * each[m] for m in SIZES)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  kl = optax.kl_divergence(jax.nn.log_softmax(logits), mixed.targets)
  np.testing.assert_allclose(aux["kl"], np.average(kl, weights=w), rtol=1e-4)
  assert aux["n_mixed"] == w.sum()


def test_identity_maps_give_the_standard_loss():
  # One eligible row: every map is the identity. Weight 0 says that such rows are no
  # mixed rows; set to one, the loss is plain CE.
  x, y = make_batch()
  params = make_params()
  eligible = jnp.arange(B) < 7
  z = encode(params, x)
  mixed = mixed_of(z, y, eligible=jnp.arange(B) == 3)
  np.testing.assert_array_equal(mixed.weight, 0)
  jax.tree.map(np.testing.assert_array_equal, mixed.embeddings, z)
  mixed = mixed._replace(weight=eligible.astype(jnp.float32))
  logits = concat(params, z)
  loss, _ = mixing.modality_mix_loss(mixed, logits)
  plain = optax.softmax_cross_entropy_with_integer_labels(logits, y)[:7].mean()
  np.testing.assert_allclose(loss, plain, rtol=1e-6)


@pytest.mark.parametrize("eligible", [0, 1, 6])
def test_rows_without_weight_do_nothing_whatever_they_hold(eligible):
  x, y = make_batch()
  y = jnp.arange(B) % K
  params = make_params()
  bad = jnp.arange(B) >= max(eligible, 1)

  def loss(logits, unimodal):
    mixed = mixed_of(encode(params, x), y, eligible=jnp.arange(B) < eligible)
    return mixing.modality_mix_loss(mixed, logits, unimodal_logits=unimodal)

  logits = concat(params, encode(params, x))
  unimodal = heads(params, encode(params, x))
  poison = lambda u: jnp.where(bad[:, None], jnp.nan, u)
  run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
  clean = run(logits, unimodal)
  dirty = run(poison(logits), jax.tree.map(poison, unimodal))
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(dirty))
  if eligible < 2:
    assert all((g == 0).all() for g in jax.tree.leaves((dirty[0][0], dirty[1])))


def test_missing_modality_leaves_its_own_objective():
  x, y = make_batch()
  y = jnp.arange(B) % K
  params = make_params()
  has = {m: jnp.ones((B,), bool) for m in SIZES} | {"flow": jnp.arange(B) < 5}
  z = encode(params, x)
  mixed = mixed_of(z, y, present=has)
  unimodal = heads(params, mixed.embeddings)
  only = {"audio": 0.0, "flow": 1.0, "video": 0.0}
  _, aux = mixing.modality_mix_loss(
    mixed, jnp.zeros((B, K)), unimodal_logits=unimodal, modality_weights=only
  )
  rows = optax.softmax_cross_entropy(unimodal["flow"], mixed.unimodal_targets["flow"])
  w = np.asarray(mixed.weight) * (np.arange(B) < 5)
  assert 0 < w.sum() < np.asarray(mixed.weight).sum()
  np.testing.assert_allclose(aux["unimodal"], np.average(rows, weights=w), rtol=1e-5)


def test_target_and_share_carry_no_gradient():
  x, y = make_batch()
  state = mixing.init_exploration(SIZES)

  def total(z, eta, gap):
    explored = state._replace(gap=gap)
    mixed = mixed_of(z, y, proportions="exploration", exploration=explored, eta=eta)
    out = (mixed.targets**2).sum() + (mixed.proportions**2).sum() + mixed.weight.sum()
    return out + sum((t**2).sum() for t in mixed.unimodal_targets.values())

  grads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(x, 1.0, state.gap)
  assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_regression_is_absolute_error_of_mixed_targets():
  y = jnp.array([-2.0, 0.0, 1.0, 3.0])
  z = {m: jnp.arange(4.0)[:, None] for m in ("audio", "text")}
  mixed = mixing.modality_mix(jax.random.key(0), z, y, num_classes=None)
  predictions = {m: z[:, 0] for m, z in mixed.embeddings.items()}
  loss, aux = mixing.modality_mix_loss(
    mixed, jnp.ones((4, 1)), unimodal_logits=predictions, unimodal_weight=1.0
  )
  source = mixed.source
  expected = np.abs(1 - (y[source["audio"]] + y[source["text"]]) / 2).mean()
  for m in z:  # hard swap: the prediction of a row is the number of its source
    expected += np.abs(source[m] - y[source[m]]).mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert "kl" not in aux


def test_low_precision_logits_are_summed_in_float32():
  x, y = make_batch()
  mixed = mixed_of(x, y)
  loss, _ = mixing.modality_mix_loss(mixed, jnp.zeros((B, K), jnp.bfloat16))
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, np.log(3.0), rtol=1e-6)


def test_eligible_share_is_of_valid_rows():
  x, y = make_batch()
  mask = jnp.arange(B) < 8
  mixed = mixed_of(x, y, eligible=jnp.arange(B) < 6)
  _, aux = mixing.modality_mix_loss(mixed, jnp.zeros((B, K)), mask=mask)
  assert aux["eligible_share"] == 0.75
  assert aux["n_eligible"] == 6


def test_target_kl_is_zero_for_the_target_itself_and_finite_for_one_hot():
  t = jnp.array([[0.2, 0.8, 0.0], [0.0, 1.0, 0.0]])
  np.testing.assert_allclose(
    mixing.target_kl(t, jnp.log(jnp.array([[0.2, 0.8, 1e-30]] * 2)))[0], 0, atol=1e-6
  )
  # By hand: KL([.2 .8 0] || uniform over 3) = log 3 - H(.2, .8).
  entropy = -0.2 * np.log(0.2) - 0.8 * np.log(0.8)
  np.testing.assert_allclose(
    mixing.target_kl(t, jnp.zeros((2, 3))), [np.log(3) - entropy, np.log(3)], rtol=1e-6
  )


def test_bad_input():
  x, y = make_batch()
  mixed = mixed_of(x, y)
  logits = jnp.zeros((B, K))
  loss = mixing.modality_mix_loss
  with pytest.raises(ValueError, match=r"logits has shape \(10, 4\)"):
    loss(mixed, jnp.zeros((B, K + 1)))
  with pytest.raises(ValueError, match="unimodal_logits has modalities"):
    loss(mixed, logits, unimodal_logits={"audio": logits})
