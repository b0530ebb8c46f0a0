import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import entropy
from mer_dg.entropy import regularizer
from tests.entropy import _helpers

compiled = _helpers.Compiled(entropy)
FEATURES = {
  "video": _helpers.normal(0, 12, 6, dtype=np.float32),
  "audio": _helpers.normal(1, 12, 4, dtype=np.float32),
}


def test_is_the_weighted_sum_of_minus_the_entropies():
  order = []

  @jax.jit
  def both(video, audio):
    loss, nats = entropy.entropy_regularizer(
      {"video": video, "audio": audio}, bandwidth=1.0, weights={"audio": 0.5}
    )
    order.extend(nats)  # jit sorts the keys of what it returns
    return loss, nats

  loss, nats = both(FEATURES["video"], FEATURES["audio"])
  video, audio = (
    jax.jit(lambda z: entropy.kde_entropy(z, bandwidth=1.0))(FEATURES[m])
    for m in ("video", "audio")
  )
  np.testing.assert_allclose(loss, -(video + 0.5 * audio), rtol=1e-6)
  assert order == ["video", "audio"]
  np.testing.assert_allclose(nats["audio"], audio, rtol=1e-6)


def test_logdet_is_the_released_loss_with_the_matching_gaussian_entropy():
  with _helpers.float64():
    z = {m: jnp.asarray(x, jnp.float64) for m, x in FEATURES.items()}
    loss, nats = compiled.entropy_regularizer(z, estimator="logdet")
    want = sum(compiled.mer_loss(x) for x in z.values())
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    # log det Sigma = 2 sum log sigma + log det C, epsilons as in the loss.
    x = z["audio"]
    sigma = jnp.sqrt(jnp.var(x, axis=0, ddof=1) + 1e-4)
    log_det_c = -4 * compiled.spectral_entropy_loss(x)
    want = 2 * np.log(2 * np.pi * np.e) + jnp.sum(jnp.log(sigma)) + log_det_c / 2
    np.testing.assert_allclose(nats["audio"], want, rtol=1e-12)
    # For many rows it approaches the plain Gaussian entropy.
    x = jnp.asarray(_helpers.normal(2, 2000, 3))
    want = compiled.gaussian_entropy(x)
    np.testing.assert_allclose(compiled.logdet_entropy(x), want, atol=2e-3)


@pytest.mark.parametrize("estimator", regularizer.ESTIMATORS)
def test_traced_weights_masks_and_absent_modalities_under_vmap(estimator):
  # Three runs: all rows; a modality without any row; five rows.
  where = {
    "video": jnp.arange(12)[None, :] < jnp.array([12, 12, 5])[:, None],
    "audio": jnp.arange(12)[None, :] < jnp.array([12, 0, 5])[:, None],
  }
  weights = {"video": jnp.array([1.0, 2.0, 0.0]), "audio": jnp.ones(3)}

  def loss(z, w, keep):
    return entropy.entropy_regularizer(z, estimator=estimator, weights=w, where=keep)

  z = {m: jnp.stack([x] * 3) for m, x in FEATURES.items()}
  f = jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True)))
  (value, nats), g = f(z, weights, where)
  assert nats["audio"][1] == 0
  assert not g["audio"][1].any()  # no row: no push
  assert not g["video"][2].any()  # weight zero
  assert not g["audio"][2, 5:].any()  # masked rows
  assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((value, nats, g)))
  for run, n in ((0, 12), (2, 5)):
    alone = {m: x[:n] for m, x in FEATURES.items()}
    w = {m: x[run] for m, x in weights.items()}
    alone_f = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (want, _), want_g = alone_f(alone, w, None)
    np.testing.assert_allclose(value[run], want, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(g["video"][run, :n], want_g["video"], atol=2e-4)


def test_all_rows_masked_is_zero_loss_with_zero_gradient():
  def one(estimator):
    return jax.value_and_grad(
      lambda z, w: entropy.entropy_regularizer({"a": z}, estimator=estimator, where=w)[
        0
      ]
    )

  every = jax.jit(lambda z, w: {e: one(e)(z, w) for e in regularizer.ESTIMATORS})
  results = every(jnp.full((6, 3), jnp.nan), jnp.zeros(6, bool))
  for estimator, (value, g) in results.items():
    assert value == 0, estimator
    assert not g.any(), estimator


@pytest.mark.parametrize(
  ("kw", "match"),
  [
    ({"estimator": "nope"}, "estimator='nope' is not one of .*'kde'"),
    ({"weights": {"text": 1.0}}, "weights has modalities .*text"),
    ({"where": {"text": np.ones(12, bool)}}, "where has modalities .*text"),
    ({"where": np.ones(11, bool)}, r"where .*video.* must have shape \(12,\)"),
  ],
)
def test_bad_input(kw, match):
  with pytest.raises(ValueError, match=match):
    entropy.entropy_regularizer(FEATURES, **kw)
  with pytest.raises(ValueError, match="features must be a non-empty dict"):
    entropy.entropy_regularizer({})
