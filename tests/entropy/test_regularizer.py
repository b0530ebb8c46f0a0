"""The loss over modalities, its memory, and training with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mer_dg
from mer_dg import entropy
from mer_dg.entropy import regularizer
from tests.entropy._helpers import float64, normal

FEATURES = {
  "video": normal(0, 12, 6, dtype=np.float32),
  "audio": normal(1, 12, 4, dtype=np.float32),
}


def _loss(features, **options):
  return jax.jit(lambda z: entropy.entropy_regularizer(z, **options))(features)


def test_is_the_weighted_sum_of_minus_the_entropies_on_the_sphere():
  order = []

  @jax.jit
  def both(video, audio):
    loss, nats = entropy.entropy_regularizer(
      {"video": video, "audio": audio}, weights={"audio": 0.5}
    )
    order.extend(nats)  # jit sorts the keys of what it returns
    return loss, nats

  loss, nats = both(FEATURES["video"], FEATURES["audio"])
  want = {m: jax.jit(entropy.sphere_entropy)(z) for m, z in FEATURES.items()}
  for m in FEATURES:
    np.testing.assert_allclose(nats[m], want[m]["entropy"], rtol=1e-5)
  np.testing.assert_allclose(loss, -(nats["video"] + 0.5 * nats["audio"]), rtol=1e-6)
  assert order == ["video", "audio"]


def test_normalisations_are_what_they_say():
  z = FEATURES["video"] * np.float32([1, 1, 1, 1, 1e19, 0]) + 3  # a dead column, a vast
  f = lambda z: entropy.kde_entropy(z, bandwidth=1.0)
  for how, rows in (
    ("none", FEATURES["video"]),
    ("unit", z / np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True)),
    ("standardize", (z - z.mean(0)) / np.sqrt(z.astype(np.float64).var(0) + 1e-6)),
  ):
    got, _ = _loss(
      {"a": FEATURES["video"] if how == "none" else z},
      normalize=how,
      kernel="gaussian",
      bandwidth=1.0,
    )
    want = -jax.jit(f)(rows.astype(np.float32))
    np.testing.assert_allclose(got, want, rtol=1e-4, err_msg=how)


def test_logdet_is_the_released_loss_of_raw_features():
  with float64():
    z = {m: x.astype(np.float64) for m, x in FEATURES.items()}
    loss, nats = _loss(z, estimator="logdet", spectral_weight=3.0)
    want = sum(jax.jit(lambda z: entropy.mer_loss(z, spectral_weight=3.0))(x)
               for x in z.values())  # fmt: skip
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    want = jax.jit(entropy.logdet_entropy)(z["audio"])
    np.testing.assert_allclose(nats["audio"], want, rtol=1e-12)


@pytest.mark.parametrize("estimator", regularizer.ESTIMATORS)
def test_traced_weights_masks_and_absent_modalities_under_vmap(estimator):
  # Runs: all rows; a modality without any row (nan there); five rows; nothing at all.
  video, audio = np.array([12, 12, 5, 0]), np.array([12, 0, 5, 0])
  where = {
    "video": np.arange(12)[None, :] < video[:, None],
    "audio": np.arange(12)[None, :] < audio[:, None],
  }
  weights = {"video": np.float32([1, 2, 0, 1]), "audio": np.ones(4, np.float32)}
  z = {m: np.stack([x] * 4) for m, x in FEATURES.items()}
  z["audio"][1], z["video"][3], z["audio"][3] = np.nan, np.nan, np.nan

  def loss(z, w, keep):
    return entropy.entropy_regularizer(z, estimator=estimator, weights=w, where=keep)

  f = jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True)))
  (value, nats), g = f(z, weights, where)
  assert nats["audio"][1] == 0
  assert not g["audio"][1].any()  # no row: no push
  assert not g["video"][2].any()  # weight zero
  assert not g["audio"][2, 5:].any()  # masked rows
  assert value[3] == 0
  assert not g["video"][3].any()
  assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((value, nats, g)))
  # Deleting rows by hand gives the third run.
  short = {m: np.stack([x[2, :5]] * 4) for m, x in z.items()}
  (want, _), want_g = f(short, weights, {m: np.ones((4, 5), bool) for m in z})
  np.testing.assert_allclose(value[2], want[2], rtol=2e-5, atol=1e-5)
  np.testing.assert_allclose(g["audio"][2, :5], want_g["audio"][2], atol=2e-4)


@pytest.mark.parametrize(
  ("kw", "match"),
  [
    ({"estimator": "nope"}, "estimator='nope' is not one of .*'kde'"),
    ({"normalize": "nope"}, "normalize='nope' is not one of .*'unit'"),
    ({"weights": {"text": 1.0}}, "weights has modalities .*text"),
    ({"where": {"text": np.ones(12, bool)}}, "where has modalities .*text"),
    ({"where": np.ones(11, bool)}, r"where .*video.* must have shape \(12,\)"),
    (
      {"estimator": "knn", "memory": {"video": entropy.fifo_init(3, 6)}},
      "memory needs estimator='kde'",
    ),
  ],
)
def test_bad_input(kw, match):
  with pytest.raises(ValueError, match=match):
    entropy.entropy_regularizer(FEATURES, **kw)
  with pytest.raises(ValueError, match="features must be a non-empty dict"):
    entropy.entropy_regularizer({})


# --- memory ---------------------------------------------------------------------------


def test_queue_keeps_the_latest_rows_under_scan():
  def step(queue, row_block):
    queue = entropy.fifo_push(queue, row_block)
    return queue, (queue.rows, queue.where)

  blocks = jnp.arange(14.0).reshape(7, 2, 1)
  _, (rows, where) = jax.jit(lambda q: jax.lax.scan(step, q, blocks))(
    entropy.fifo_init(5, 1)
  )
  for t in range(7):
    kept = sorted(float(x) for x in rows[t, :, 0][where[t]])
    pushed = list(range(2 * (t + 1)))
    assert kept == [float(x) for x in pushed[-5:]]


def test_masked_rows_are_not_pushed_and_the_counter_stays_bounded():
  queue, keep = entropy.fifo_init(3, 1), jnp.array([True, False])
  push = jax.jit(lambda q, t: entropy.fifo_push(q, jnp.full((2, 1), t), where=keep))
  for t in range(10):
    queue = push(queue, float(t))
  assert sorted(queue.rows[:, 0].tolist()) == [7, 8, 9]
  assert queue.pushed < 6
  assert queue.where.all()


def test_regularizer_with_a_queue_sees_earlier_rows_as_constants():
  z, earlier = FEATURES["video"], normal(5, 4, 6, dtype=np.float32)
  queue = entropy.fifo_push(entropy.fifo_init(6, 6), earlier)
  got, _ = _loss({"video": z}, memory={"video": queue}, bandwidth=0.5)
  f = lambda z: entropy.kde_entropy(z, kernel="vmf", bandwidth=0.5, memory=earlier)
  np.testing.assert_allclose(got, -jax.jit(f)(z), rtol=1e-5)
  assert not jax.grad(lambda z: entropy.fifo_push(queue, z[:4]).rows.sum())(z).any()


def test_bad_queues():
  with pytest.raises(ValueError, match="capacity must be >= 1"):
    entropy.fifo_init(0, 3)
  with pytest.raises(ValueError, match=r"z must have shape \[n <= 2, 3\].*\(3, 3\)"):
    entropy.fifo_push(entropy.fifo_init(2, 3), jnp.zeros((3, 3)))


# --- training -------------------------------------------------------------------------


def _train(steps, **options):
  """README's example on two small encoders; root mean squares of the features."""
  keys = jax.random.split(jax.random.key(0), 8)
  label = jax.random.randint(keys[0], (64,), 0, 4)
  rows, params = {}, {"head": jax.random.normal(keys[7], (64, 4)) / 8}
  for i, m in enumerate(("video", "audio")):
    classes = jax.random.normal(keys[i + 1], (4, 10))
    rows[m] = classes[label] + jax.random.normal(keys[i + 3], (64, 10))
    first, second = jax.random.split(keys[i + 5])
    params[m] = (
      jax.random.normal(first, (10, 32)) / 10**0.5,
      jax.random.normal(second, (32, 32)) / 32**0.5,
    )
  tx = optax.adam(1e-3)

  def loss(params, batch, label):
    z = {m: jax.nn.relu(x @ params[m][0]) @ params[m][1] for m, x in batch.items()}
    logits = jnp.concatenate([*z.values()], axis=1) @ params["head"]
    mer, _ = mer_dg.entropy_regularizer(z, **options)
    return mer_dg.cross_entropy(logits, label) + 0.1 * mer, z

  def step(state, i):
    params, opt_state = state
    at = jax.random.randint(jax.random.fold_in(keys[0], i), (32,), 0, 64)
    batch = {m: x[at] for m, x in rows.items()}
    g, z = jax.grad(loss, has_aux=True)(params, batch, label[at])
    updates, opt_state = tx.update(g, opt_state, params)
    size = jnp.max(jnp.stack([jnp.sqrt(jnp.mean(x**2)) for x in z.values()]))
    return (optax.apply_updates(params, updates), opt_state), size

  run = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(steps))[1])
  return np.asarray(run((params, tx.init(params))))


def test_ten_thousand_steps_stay_bounded_by_default_and_raw_features_do_not():
  size = _train(10_000, kernel="gaussian", bandwidth=0.3)
  assert np.isfinite(size).all()
  assert size.max() < 5  # 1.0 at the start; the cross-entropy alone ends at 2.3
  # The same entropy of raw features, whose scale has no maximum.
  assert _train(1_000, normalize="none", kernel="gaussian", bandwidth=1.0)[-1] > 50
