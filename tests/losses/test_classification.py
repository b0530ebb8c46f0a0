"""Cross-entropy against scipy; a masked row counts as a deleted one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mer_dg.losses import cross_entropy, masked_mean


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  return rng.normal(size=(7, 4)).astype(np.float32), rng.integers(0, 4, 7)


def test_equals_scipy(batch):
  logits, label = batch
  log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
  expected = -log_p[np.arange(7), label].mean()
  np.testing.assert_allclose(cross_entropy(logits, jnp.asarray(label)), expected, 1e-6)


def test_soft_targets_mix_the_hard_losses(batch):
  # Cross-entropy is linear in the target.
  logits, label = batch
  other = (label + 1) % 4
  soft = 0.7 * np.eye(4)[label] + 0.3 * np.eye(4)[other]
  expected = 0.7 * cross_entropy(logits, jnp.asarray(label)) + 0.3 * cross_entropy(
    logits, jnp.asarray(other)
  )
  np.testing.assert_allclose(
    cross_entropy(logits, jnp.asarray(soft, jnp.float32)), expected, rtol=1e-5
  )


def test_a_target_of_zero_ignores_a_logit_of_minus_infinity():
  logits = jnp.array([[0.0, 0.0, -jnp.inf]])
  soft = jnp.array([[0.5, 0.5, 0.0]])
  np.testing.assert_allclose(cross_entropy(logits, soft), np.log(2.0), rtol=1e-6)


def test_masking_equals_deleting_in_value_and_gradient(batch):
  logits, label = batch
  keep = np.array([1, 0, 1, 1, 0, 1, 1], bool)
  poisoned = np.where(keep[:, None], logits, np.inf)
  loss = lambda z, y, where: cross_entropy(z, jnp.asarray(y), where=where)
  value, grad = jax.value_and_grad(loss)(poisoned, label, jnp.asarray(keep))
  expected, expected_grad = jax.value_and_grad(loss)(logits[keep], label[keep], None)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(grad[keep], expected_grad, rtol=1e-5)
  np.testing.assert_array_equal(grad[~keep], 0.0)


def test_weights_are_weights(batch):
  logits, label = batch
  weights = np.array([2.0, 0, 0, 0, 0, 1.0, 0], np.float32)
  doubled = np.array([0, 0, 5])
  expected = cross_entropy(logits[doubled], jnp.asarray(label[doubled]))
  actual = cross_entropy(logits, jnp.asarray(label), where=jnp.asarray(weights))
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_no_row_is_zero_with_zero_gradient(batch):
  logits, label = batch
  loss = lambda z: cross_entropy(z, jnp.asarray(label), where=jnp.zeros(7, bool))
  value, grad = jax.value_and_grad(loss)(logits)
  assert value == 0.0
  np.testing.assert_array_equal(grad, 0.0)
  assert masked_mean(jnp.ones(3), jnp.zeros(3, bool)) == 0.0


def test_bfloat16_logits_are_computed_in_float32(batch):
  logits, label = batch
  half = jnp.asarray(logits, jnp.bfloat16)
  value = cross_entropy(half, jnp.asarray(label))
  assert value.dtype == jnp.float32
  np.testing.assert_array_equal(
    value, cross_entropy(half.astype(jnp.float32), jnp.asarray(label))
  )


@pytest.mark.parametrize(
  ("logits", "targets"), [((3,), (3,)), ((3, 2), (2,)), ((3, 2), (3, 3))]
)
def test_wrong_shapes(logits, targets):
  with pytest.raises(ValueError, match="must be"):
    cross_entropy(jnp.zeros(logits), jnp.zeros(targets, jnp.int32))
