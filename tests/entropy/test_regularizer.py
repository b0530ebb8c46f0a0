import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import entropy
from mer_dg.entropy import regularizer
from tests.entropy import _helpers

FEATURES = {
  "video": _helpers.normal(0, 12, 6, dtype=np.float32),
  "audio": _helpers.normal(1, 12, 4, dtype=np.float32),
}


def test_is_the_weighted_sum_of_minus_the_entropies():
  loss, nats = entropy.entropy_regularizer(
    FEATURES, bandwidth=1.0, weights={"audio": 0.5}
  )
  video = entropy.kde_entropy(FEATURES["video"], bandwidth=1.0)
  audio = entropy.kde_entropy(FEATURES["audio"], bandwidth=1.0)
  np.testing.assert_allclose(loss, -(video + 0.5 * audio), rtol=1e-6)
  assert list(nats) == ["video", "audio"]
  np.testing.assert_allclose(nats["audio"], audio, rtol=1e-6)


def test_logdet_is_the_released_loss_with_the_matching_gaussian_entropy():
  with _helpers.float64():
    z = {m: jnp.asarray(x, jnp.float64) for m, x in FEATURES.items()}
    loss, nats = entropy.entropy_regularizer(z, estimator="logdet")
    want = sum(entropy.mer_loss(x) for x in z.values())
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    # log det Sigma = 2 sum log sigma + log det C, epsilons as in the loss.
    x = z["audio"]
    sigma = jnp.sqrt(jnp.var(x, axis=0, ddof=1) + 1e-4)
    log_det_c = -4 * entropy.spectral_entropy_loss(x)
    want = 2 * np.log(2 * np.pi * np.e) + jnp.sum(jnp.log(sigma)) + log_det_c / 2
    np.testing.assert_allclose(nats["audio"], want, rtol=1e-12)
    # For many rows it approaches the plain Gaussian entropy.
    x = jnp.asarray(_helpers.normal(2, 2000, 3))
    want = entropy.gaussian_entropy(x)
    np.testing.assert_allclose(entropy.logdet_entropy(x), want, atol=2e-3)


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
    (want, _), want_g = jax.value_and_grad(loss, has_aux=True)(alone, w, None)
    np.testing.assert_allclose(value[run], want, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(g["video"][run, :n], want_g["video"], atol=2e-4)


def test_all_rows_masked_is_zero_loss_with_zero_gradient():
  for estimator in regularizer.ESTIMATORS:
    f = lambda z, e=estimator: entropy.entropy_regularizer(
      {"a": z}, estimator=e, where=jnp.zeros(6, bool)
    )[0]
    value, g = jax.value_and_grad(f)(jnp.full((6, 3), jnp.nan))
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
