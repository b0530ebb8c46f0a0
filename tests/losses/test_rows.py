"""What every loss over rows promises, whatever it computes."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from mer_dg import losses
from tests.entropy._helpers import float64
from tests.losses._cases import all_cases

CASES = all_cases(8)
KEEP = np.array([1, 0, 1, 1, 0, 1, 1, 1], bool)  # Both domains keep two rows or more.
# What has no rows is tested in test_balance.py and test_adversarial.py.
ROWLESS = {
  "gradient_blending_weights",
  "gradient_reversal",
  "masked_mean",
  "mmpareto_direction",
  "modality_dropout_probabilities",
  "ogm_coefficients",
}


@pytest.fixture(params=sorted(CASES))
def case(request):
  return CASES[request.param]


@functools.cache
def compiled(fn):
  return jax.jit(jax.value_and_grad(fn))


def value_and_grad(case, floats, where, dtype, integers=None):
  """Of the floats; one program per case, type and number of rows."""
  floats = jax.tree.map(lambda x: jnp.asarray(x, dtype), floats)
  integers = case.integers if integers is None else integers
  where = None if where is None else jnp.asarray(where)
  return jax.device_get(compiled(case.fn)(floats, integers, where))


def assert_finite(tree):
  for leaf in jax.tree.leaves(tree):
    assert np.isfinite(leaf).all()


def test_every_loss_is_here():
  assert set(CASES) | ROWLESS == set(losses.__all__)


def test_masking_equals_deleting_whatever_stands_in_the_masked_rows(case):
  rng = np.random.default_rng(1)

  def poison(x):
    bad = rng.choice([np.inf, -np.inf, np.nan, 1e30], size=x.shape)
    return np.where(KEEP.reshape(-1, *(1,) * (x.ndim - 1)), x, bad)

  wrong = np.arange(8) - 4  # Row 1: no class and no domain; row 4: 0, which is both.
  with float64():
    value, grad = value_and_grad(
      case,
      jax.tree.map(poison, case.floats),
      KEEP,
      np.float64,
      None if case.integers is None else np.where(KEEP, case.integers, wrong),
    )
    expected, expected_grad = value_and_grad(
      case,
      jax.tree.map(lambda x: x[KEEP], case.floats),
      None,
      np.float64,
      jax.tree.map(lambda x: x[KEEP], case.integers),
    )
  assert expected != 0.0
  np.testing.assert_allclose(value, expected, rtol=1e-9)
  for actual, wanted in zip(
    jax.tree.leaves(grad), jax.tree.leaves(expected_grad), strict=True
  ):
    np.testing.assert_allclose(actual[KEEP], wanted, rtol=1e-7, atol=1e-12)
    np.testing.assert_array_equal(actual[~KEEP], 0.0)


def test_no_row_is_zero_with_zero_gradient(case):
  value, grad = value_and_grad(case, case.floats, np.zeros(8, bool), np.float32)
  assert value == 0.0
  for leaf in jax.tree.leaves(grad):
    np.testing.assert_array_equal(leaf, 0.0)


HOSTILE = {
  "given": lambda x: x,
  "zero": np.zeros_like,
  "duplicated": lambda x: np.broadcast_to(x[:1], x.shape),
  "tiny": lambda x: x * 1e-30,
  "huge": lambda x: x * 1e4,
}


@pytest.mark.parametrize("rows", HOSTILE)
def test_finite_for_hostile_rows_in_float32(case, rows):
  floats = jax.tree.map(HOSTILE[rows], case.floats)
  one = None if case.integers is None else np.zeros_like(case.integers)
  for integers in (None, one):  # One class, or one domain.
    for kept in (1, 2, 8):
      where = np.arange(8) < kept
      assert_finite(value_and_grad(case, floats, where, np.float32, integers))


def test_gradient_matches_differences(case):
  with float64():
    jax.test_util.check_grads(
      jax.jit(lambda floats: case.fn(floats, case.integers, jnp.asarray(KEEP))),
      (jax.tree.map(jnp.asarray, case.floats),),
      order=1,
      modes=["rev"],
      rtol=1e-6,
      atol=1e-6,
    )


def test_vmap_of_two_equals_two(case):
  floats = [case.floats, jax.tree.map(lambda x: x[::-1] + 0.1, case.floats)]
  masks = [KEEP, KEEP[::-1]]
  stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x), jnp.float32), *floats)
  fn = jax.jit(jax.vmap(jax.value_and_grad(case.fn), in_axes=(0, None, 0)))
  values, grads = fn(stacked, case.integers, jnp.asarray(np.stack(masks)))
  for i in range(2):
    value, grad = value_and_grad(case, floats[i], masks[i], np.float32)
    np.testing.assert_allclose(values[i], value, rtol=2e-5, atol=1e-6)
    for together, alone in zip(
      jax.tree.leaves(grads), jax.tree.leaves(grad), strict=True
    ):
      np.testing.assert_allclose(together[i], alone, rtol=1e-3, atol=1e-5)


def test_dtype_is_float32_and_float64_in_float64(case):
  # Shapes suffice: nothing is computed.
  def dtype_of(dtype):
    floats = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), case.floats)
    return jax.eval_shape(
      lambda f: case.fn(f, case.integers, jnp.asarray(KEEP)), floats
    ).dtype

  assert dtype_of(np.float32) == np.float32
  assert dtype_of(jnp.bfloat16) == np.float32
  with float64():
    assert dtype_of(np.float64) == np.float64
