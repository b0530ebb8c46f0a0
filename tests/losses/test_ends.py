"""Losses of numbers at the ends of float32: finite and right where the quantity is.

Expected values are those of the same rows at an ordinary size, where the quantity does
not depend on it, or worked out beside it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import losses, mixing
from tests.entropy._helpers import normal

LARGEST = float(np.finfo(np.float32).max)
Z = normal(0, 8, 4, dtype=np.float32)
SIGN = np.sign(Z)  # times the largest number: nothing is larger
PAIRS = lambda z: {("a", "b"): z[:, 2:], ("b", "a"): z[:, :2]}
SPLIT = lambda z: {"a": z[:, :2], "b": z[:, 2:]}

SCALE_FREE = {
  "translation_distance": lambda z: losses.translation_distance(PAIRS(z), SPLIT(z)),
  "relative_norm_alignment": lambda z: losses.relative_norm_alignment(
    {"a": z[:, :3], "b": z}
  ),
  "mean_shift_contrastive": lambda z: losses.mean_shift_contrastive(
    SPLIT(z), SPLIT(jnp.roll(z, 1, axis=0)), neighbours=3
  ),
}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
@pytest.mark.parametrize("name", SCALE_FREE)
def test_scale_free_at_the_largest_number(name, wrap):
  f = wrap(SCALE_FREE[name])
  np.testing.assert_allclose(f(SIGN * LARGEST), f(SIGN), rtol=1e-5)


def test_domains_far_apart():
  domain = jnp.arange(8) % 2
  mmd = lambda z: losses.mmd(z, domain, num_domains=2)
  # No two rows are near: 7 kernels, of which each sees itself only; 4 rows a domain.
  np.testing.assert_allclose(mmd(1e30 * Z), 7 * 2 / 4, rtol=1e-6)
  # One row far away leaves the others their distances: 7 of 8 are as they were.
  far = Z.copy()
  far[0] = 1e12
  half = np.where(np.arange(8)[:, None] == 0, 1e4, Z).astype(np.float32)
  np.testing.assert_allclose(mmd(far), mmd(half), rtol=1e-4)
  coral = losses.coral(1e30 * Z, domain, num_domains=2)
  assert coral == jnp.inf


def test_prototypes_of_a_far_row():
  # |z - a| - |z - b| for z = (s, 0): tends to b_1 - a_1 = 2 as s grows.
  prototypes = jnp.array([[-1.0, 3.0], [1.0, -5.0]])
  for far in (1e9, 1e20, LARGEST):
    loss = losses.prototype_cross_entropy(
      jnp.array([[far, 0.0]]), jnp.array([1]), prototypes
    )
    np.testing.assert_allclose(loss, np.log1p(np.exp(-2)), rtol=1e-5)


def test_gradients_of_any_length():
  f, u = Z[:4], Z[4:]
  expected = losses.mmpareto_direction(f, u)
  for size in (1e-25, 1e25):
    found = losses.mmpareto_direction(size * f, size * u) / size
    np.testing.assert_allclose(found, expected, rtol=1e-4)
  # The short one's weight is |f|^2 / |u|^2 = 1e-12 where they are at right angles.
  found = losses.mmpareto_direction(jnp.array([1.0, 0.0]), jnp.array([0.0, 1e6]))
  np.testing.assert_allclose(found[0] / found[1], 1e6, rtol=1e-5)


def test_gaps_of_any_size():
  def weights(size):
    table = lambda *values: {str(i): v * size for i, v in enumerate(values)}
    found = losses.gradient_blending_weights(
      table(0.5, 0.5), table(1.0, 0.75), table(1.0, 1.0), table(1.25, 1.5), eps=0.0
    )
    return jnp.stack(list(found.values()))

  for size in (1e-15, 1e25):
    np.testing.assert_allclose(weights(size), weights(1.0), rtol=1e-5)


def test_sums_that_overflow():
  values = jnp.array([1.0, 1.0, -1.0, 0.5]) * LARGEST
  where = jnp.array([True, True, True, False])
  np.testing.assert_allclose(losses.masked_mean(values, where), LARGEST / 3, rtol=1e-6)
  # What the rows do not say is not nan: similarities of 1e50 have no difference.
  z = {"a": 1e25 * Z, "b": -1e25 * Z}
  loss = losses.supervised_contrastive(z, jnp.arange(8) % 2, temperature=0.1)
  assert loss == jnp.inf


def test_a_vast_logit_leaves_no_probability_to_others():
  logits = jnp.array([[LARGEST, -LARGEST]] * 2)
  z = {"a": jnp.zeros((2, 1)), "b": jnp.zeros((2, 1))}
  mixed = mixing.modality_mix(jax.random.key(0), z, jnp.array([0, 1]), num_classes=2)
  sure = mixed._replace(targets=jnp.array([[1.0, 0.0]] * 2))
  loss, aux = mixing.modality_mix_loss(sure, logits)
  assert (loss, aux["kl"]) == (0, 0)
