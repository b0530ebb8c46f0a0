"""Batches are uniform shuffles, balanced over domains, and depend on the step alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mer_dg.data.sampling import Pool, draw_batch, make_pool, shuffled

_WIDTH = 257


@jax.jit
def _order(key, n):
  """The permutation of 0..n-1 in the first n of `_WIDTH` places; n is traced."""
  return shuffled(key, jnp.minimum(jnp.arange(_WIDTH), n - 1), n)


def test_shuffle_is_a_bijection_for_every_n():
  for n in range(1, _WIDTH + 1):
    order = np.asarray(_order(jax.random.key(n), jnp.int32(n)))[:n]
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize("n", [10_007, 2**30 - 1])
def test_shuffle_of_many_rows_stays_in_range_and_injective(n):
  at = np.linspace(0, n - 1, 5000).astype(np.int32)
  image = np.asarray(jax.jit(shuffled)(jax.random.key(0), at, jnp.int32(n)))
  assert image.min() >= 0
  assert image.max() < n
  assert len(np.unique(image)) == len(at)


@jax.jit
def _orders(keys, n):
  place = jnp.minimum(jnp.arange(16), n - 1)
  return jax.vmap(lambda k: shuffled(k, place, n))(keys)


@pytest.fixture(scope="module")
def keys():
  return jax.random.split(jax.random.key(42), 24_000)


# Keys are fixed, so these p-values are too; a bias of a few per cent in one cell
# makes them smaller than 1e-10 (four rounds instead of 24 give 0).
_LEAST_P = 1e-3


@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_permutation_is_equally_likely(keys, n):
  orders = np.asarray(_orders(keys, jnp.int32(n)))[:, :n]
  codes = {p: i for i, p in enumerate(itertools.permutations(range(n)))}
  count = np.bincount([codes[tuple(o)] for o in orders.tolist()], minlength=len(codes))
  assert stats.chisquare(count).pvalue > _LEAST_P


@pytest.mark.parametrize("n", [5, 7, 16])
def test_positions_and_pairs_are_uniform(keys, n):
  orders = np.asarray(_orders(keys, jnp.int32(n)))[:, :n]
  for place in range(n):
    count = np.bincount(orders[:, place], minlength=n)
    assert stats.chisquare(count).pvalue > _LEAST_P
  for i, j in [(0, 1), (0, n - 1), (1, 2)]:
    pair = orders[:, i] * n + orders[:, j]
    count = np.bincount(pair, minlength=n * n).reshape(n, n)
    assert stats.chisquare(count[~np.eye(n, dtype=bool)]).pvalue > _LEAST_P


def test_large_n_is_uniform_in_position_and_in_neighbours(keys):
  n = 10_000
  place = jnp.array([0, 1, n - 1])
  draw = jax.jit(jax.vmap(lambda k: shuffled(k, place, jnp.int32(n))))
  first, second, last = np.asarray(draw(keys)).T
  for values in (first, second, last, (first - second) % n, (first + last) % n):
    # 50 bins of 200 values each; a difference is never 0, 1 value in 10^4.
    assert stats.chisquare(np.bincount(values // 200, minlength=50)).pvalue > _LEAST_P


# --- batches -------------------------------------------------------------------------

_PER_DOMAIN = 8
_SIZES = (24, 19, 5)  # 3 whole batches; 2 and a rest; fewer rows than its share.


def _pool(sizes=_SIZES, width=30):
  """Rows 0, 1, 2, ... dealt to domains of the given sizes."""
  ends = np.cumsum(sizes)
  return make_pool(
    [np.arange(e - s, e) for s, e in zip(sizes, ends, strict=True)], width
  )


_draw = jax.jit(draw_batch, static_argnums=3)


def _rows(step, key=None, pool=None):
  key = jax.random.key(0) if key is None else key
  pool = _pool() if pool is None else pool
  out = _draw(key, jnp.int32(step), pool, _PER_DOMAIN)
  return tuple(np.asarray(x).reshape(-1, _PER_DOMAIN) for x in out)


def test_batch_is_balanced_without_duplicates():
  starts = np.cumsum(_SIZES) - _SIZES
  for step in range(40):
    rows, domain, mask = _rows(step)
    for d, (start, size) in enumerate(zip(starts, _SIZES, strict=True)):
      assert (domain[d] == d).all()
      assert mask[d].sum() == min(size, _PER_DOMAIN)
      # Padding rows are rows of the same domain, and the mask says so.
      assert ((rows[d] >= start) & (rows[d] < start + size)).all()
      drawn = rows[d][mask[d]]
      assert len(np.unique(drawn)) == len(drawn)


def test_an_epoch_visits_every_row_once_and_the_next_is_another():
  first = np.concatenate([_rows(t)[0][0] for t in range(3)])
  second = np.concatenate([_rows(t)[0][0] for t in range(3, 6)])
  np.testing.assert_array_equal(np.sort(first), np.arange(24))
  np.testing.assert_array_equal(np.sort(second), np.arange(24))
  assert (first != second).any()


def test_what_an_epoch_leaves_out_changes():
  seen = np.zeros(19, int)
  for epoch in range(30):  # 16 of 19 rows per epoch of two steps.
    rows = np.concatenate([_rows(2 * epoch)[0][1], _rows(2 * epoch + 1)[0][1]]) - 24
    assert len(np.unique(rows)) == 16
    seen[rows] += 1
  assert seen.sum() == 30 * 16
  # Each row is in an epoch with probability 16/19: 25.3 +- 2.0 of 30.
  assert seen.min() >= 17


def test_a_small_domain_gives_all_it_has_every_step():
  for step in range(10):
    rows, _, mask = _rows(step)
    np.testing.assert_array_equal(np.sort(rows[2][mask[2]]), 43 + np.arange(5))


def test_depends_on_key_and_step_only():
  np.testing.assert_array_equal(_rows(7)[0], _rows(7)[0])
  assert (_rows(7)[0] != _rows(8)[0]).any()
  assert (_rows(7)[0] != _rows(7, jax.random.key(1))[0]).any()
  # A wider pool is the same pool: what lies beyond count is never drawn.
  np.testing.assert_array_equal(_rows(7)[0], _rows(7, pool=_pool(width=100))[0])


def test_equal_domains_are_not_drawn_in_step():
  # Streams of two domains must not use one permutation, or pairs of rows recur.
  rows, _, _ = _rows(0, pool=_pool((24, 24, 24)))
  assert (rows[0] != rows[1] - 24).any()
  assert (rows[1] != rows[2] - 24).any()


def test_vmap_over_pools_keys_and_steps_equals_a_loop():
  pools = [_pool((24, 19, 5), 30), _pool((30, 8, 9), 30)]
  stacked = Pool(*map(np.stack, zip(*pools, strict=True)))
  keys = jax.random.split(jax.random.key(5), 2)
  steps = jnp.array([3, 11])
  every = jax.jit(jax.vmap(draw_batch, (0, 0, 0, None)), static_argnums=3)
  together = every(keys, steps, stacked, _PER_DOMAIN)
  for i in range(2):
    alone = _draw(keys[i], steps[i], pools[i], _PER_DOMAIN)
    for left, right in zip(together, alone, strict=True):
      np.testing.assert_array_equal(left[i], right)


def test_one_program_for_all_domain_sizes():
  traced = []

  @jax.jit
  def draw(key, step, pool):
    traced.append(1)
    return draw_batch(key, step, pool, _PER_DOMAIN)

  for sizes in [(24, 19, 5), (9, 20, 30), (1, 1, 1)]:
    draw(jax.random.key(0), jnp.int32(0), _pool(sizes))
  assert len(traced) == 1


def test_late_steps_do_not_overflow():
  rows, _, mask = _rows(2**31 - 1)
  assert ((rows >= 0) & (rows < sum(_SIZES))).all()
  assert mask[0].all()
