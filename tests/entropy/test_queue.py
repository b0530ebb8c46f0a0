import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import entropy


def test_keeps_the_latest_rows_under_scan():
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


def test_masked_rows_are_not_pushed_and_counter_stays_bounded():
  queue = entropy.fifo_init(3, 1)
  keep = jnp.array([True, False])
  for t in range(10):
    queue = entropy.fifo_push(queue, jnp.full((2, 1), t, jnp.float32), where=keep)
  assert sorted(queue.rows[:, 0].tolist()) == [7, 8, 9]
  assert queue.pushed < 6
  assert queue.where.all()


def test_as_reference_of_the_density_equals_the_concatenation():
  z = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
  queue = entropy.fifo_push(entropy.fifo_init(6, 3), z + 1)
  f = lambda z: entropy.kde_entropy(
    z, reference=queue.rows, reference_where=queue.where, bandwidth=1.0
  )
  want = -jnp.mean(entropy.kde_log_density(z, z + 1, bandwidth=1.0))
  np.testing.assert_allclose(f(z), want, rtol=1e-6)
  # The memory is detached.
  g = jax.grad(lambda z: entropy.fifo_push(queue, z).rows.sum())(z)
  assert not g.any()


def test_bad_input():
  with pytest.raises(ValueError, match="capacity must be >= 1"):
    entropy.fifo_init(0, 3)
  queue = entropy.fifo_init(2, 3)
  with pytest.raises(ValueError, match=r"z must have shape \[n <= 2, 3\].*\(3, 3\)"):
    entropy.fifo_push(queue, jnp.zeros((3, 3)))
