"""Weights, rates and directions against hand calculations and independent solvers."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import scipy.optimize

from mer_dg import losses
from tests.entropy._helpers import float64
from tests.losses._compiled import Compiled

ours = Compiled(losses)


@pytest.fixture(autouse=True)
def _float64():
  with float64():
    yield


def values(tree):
  return {name: float(v) for name, v in tree.items()}


def test_ogm_holds_back_who_is_ahead():
  two = losses.ogm_coefficients({"a": 3.0, "v": 2.0}, alpha=0.4)
  assert values(two) == pytest.approx({"a": 1 - np.tanh(0.4 * 1.5), "v": 1.0})
  # Three: the lead over the weakest, not over the others' mean.
  three = losses.ogm_coefficients({"a": 3.0, "v": 2.0, "f": 1.0}, alpha=0.4)
  expected = {"a": 1 - np.tanh(1.2), "v": 1 - np.tanh(0.8), "f": 1.0}
  assert values(three) == pytest.approx(expected)
  assert values(losses.ogm_coefficients({"a": 2.0, "v": 2.0}, alpha=0.4)) == {
    "a": 1.0,
    "v": 1.0,
  }


def test_modality_dropout_by_the_mean_lead():
  drop = losses.modality_dropout_probabilities
  assert values(drop({"a": 3.0, "v": 2.0})) == pytest.approx(
    {"a": np.tanh(0.5), "v": 0.0}
  )
  lead = {"a": (3 / 2 + 3) / 2, "v": (2 / 3 + 2) / 2, "f": (1 / 3 + 1 / 2) / 2}
  expected = {m: 0.2 + 0.8 * np.tanh(r - 1) if r > 1 else 0.0 for m, r in lead.items()}
  actual = drop({"a": 3.0, "v": 2.0, "f": 1.0}, base=0.2)
  assert values(actual) == pytest.approx(expected)
  assert expected["v"] > 0  # With three modalities two of them can be ahead.


@pytest.mark.parametrize(
  "fn",
  [
    lambda s: losses.ogm_coefficients(s, alpha=0.5),
    losses.modality_dropout_probabilities,
  ],
)
@pytest.mark.parametrize("score", [0.0, 1e-30, 0.5])
def test_scores_near_zero_are_finite_and_bounded(fn, score):
  scores = {"a": jnp.float32(score), "v": jnp.float32(0.5), "f": jnp.float32(0.0)}
  total = lambda s: sum(fn(s).values())
  value, grad = jax.jit(jax.value_and_grad(total))(scores)
  assert 0 <= value <= 3
  assert all(np.isfinite(g) for g in grad.values())
  assert all(0 <= v <= 1 for v in values(fn(scores)).values())


HEADS = ("a", "v", "fused")


def blend(train, val, previous_train, previous_val, **kwargs):
  named = [
    dict(zip(HEADS, x, strict=True)) for x in (train, val, previous_train, previous_val)
  ]
  return values(losses.gradient_blending_weights(*named, **kwargs))


def test_gradient_blending():
  # a: gain 0.5, gap grows by 0.5; v: 0.25 and 0.25; fused: rises by 0.5, gap by 1.
  args = (0.5, 0.25, 0.5), (1.0, 1.0, 2.0), (1.5, 0.75, 1.0), (1.5, 1.25, 1.5)
  eps = 0.25
  raw = np.array([0.5 / (0.5**2 + eps), 0.25 / (0.25**2 + eps), 0.5 / (1 + eps)])
  expected = dict(zip(HEADS, raw / raw.sum(), strict=True))
  assert blend(*args, eps=eps) == pytest.approx(expected)
  raw[2] = 0
  expected = dict(zip(HEADS, raw / raw.sum(), strict=True))
  assert blend(*args, eps=eps, gain="positive") == pytest.approx(expected)


def test_gradient_blending_without_overfitting_measured():
  # Gap of a unchanged to the bit: no weight. Nothing changed at all: equal weights.
  args = (0.5, 0.25, 0.5), (1.0, 1.0, 1.0), (1.0, 0.75, 0.75), (1.5, 1.25, 1.5)
  assert blend(*args, eps=0.0)["a"] == 0.0
  same = (1.0, 2.0, 3.0)
  assert blend(same, same, same, same, eps=0.0) == pytest.approx(
    dict.fromkeys(HEADS, 1 / 3)
  )
  grad = jax.grad(
    lambda train: losses.gradient_blending_weights(
      train, {"a": 1.0, "v": 2.0}, {"a": 1.0, "v": 2.0}, {"a": 1.0, "v": 2.0}, eps=0.0
    )["a"]
  )({"a": 1.0, "v": 2.0})
  assert all(np.isfinite(g) for g in grad.values())


def tree(seed):
  rng = np.random.default_rng(seed)
  return {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}


def flat(gradient):
  return np.concatenate([np.ravel(gradient[k]) for k in sorted(gradient)])


def test_mmpareto_adds_gradients_that_agree():
  g = tree(0)
  u = {k: x + 0.1 * tree(1)[k] for k, x in g.items()}
  assert flat(g) @ flat(u) > 0
  actual = ours.mmpareto_direction(g, u, gamma=1.2)
  for k in g:
    np.testing.assert_allclose(actual[k], 1.2 * (g[k] + u[k]), rtol=1e-12)


def test_mmpareto_of_gradients_in_conflict_against_a_numerical_solver():
  g = tree(0)
  u = {k: 0.3 * tree(1)[k] - 0.8 * x for k, x in g.items()}
  u["bias"] = u["bias"] + 1.0 * g["bias"]  # Agree in the bias, disagree as a whole.
  assert flat(g) @ flat(u) < 0 < g["bias"] @ u["bias"]
  length = lambda w: np.linalg.norm(w * flat(g) + (1 - w) * flat(u))
  w = scipy.optimize.minimize_scalar(
    length, bounds=(0, 1), method="bounded", options={"xatol": 1e-12}
  ).x
  assert 0.1 < w < 0.9
  actual = ours.mmpareto_direction(g, u)
  scales = {}
  for k in g:
    combined = 2 * w * g[k] + 2 * (1 - w) * u[k]
    scales[k] = np.linalg.norm(g[k] + u[k]) / np.linalg.norm(combined)
    np.testing.assert_allclose(actual[k], 1.5 * max(scales[k], 1) * combined, rtol=1e-6)
  # The length is restored tensor by tensor: up for one, left alone for the other.
  assert min(scales.values()) < 1 < max(scales.values())
  # It ascends neither loss in the whole before the lengths are restored.
  combined = w * flat(g) + (1 - w) * flat(u)
  assert min(combined @ flat(g), combined @ flat(u)) > 0


def test_mmpareto_without_one_gradient_follows_the_other():
  g = np.array([3.0, 4.0])
  zero = np.zeros(2)
  np.testing.assert_allclose(ours.mmpareto_direction(g, zero), 1.5 * g, rtol=1e-12)
  np.testing.assert_allclose(ours.mmpareto_direction(zero, g), 1.5 * g, rtol=1e-12)
  for pair in ((zero, zero), (g, -g)):
    np.testing.assert_array_equal(ours.mmpareto_direction(*pair), 0.0)
  half = jnp.asarray(g, jnp.bfloat16)
  assert ours.mmpareto_direction(half, half).dtype == jnp.bfloat16
  total = lambda g: jnp.sum(losses.mmpareto_direction(g, jnp.zeros(2)))
  grad = jax.jit(jax.grad(total))(zero)
  assert np.isfinite(grad).all()


def test_mmpareto_maps_over_runs():
  pairs = [tree(i) for i in range(4)]
  first = jax.tree.map(lambda *x: np.stack(x), *pairs[:2])
  second = jax.tree.map(lambda *x: np.stack(x), *pairs[2:])
  mapped = jax.jit(jax.vmap(losses.mmpareto_direction))(first, second)
  for i in range(2):
    alone = ours.mmpareto_direction(pairs[i], pairs[2 + i])
    for k in alone:
      np.testing.assert_allclose(mapped[k][i], alone[k], rtol=1e-12)


def test_gradient_reversal_is_the_identity_one_way_and_minus_scale_the_other():
  x = jnp.array([0.1, -2.0, 3e7])
  np.testing.assert_array_equal(losses.gradient_reversal(x, 0.3), x)
  loss = lambda x, scale: jnp.sum(jnp.sin(losses.gradient_reversal(x, scale)))
  grad, scale_grad = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, 0.3)
  np.testing.assert_allclose(grad, -0.3 * np.cos(x), rtol=1e-12)
  assert scale_grad == 0.0
  scales = jnp.array([0.0, 2.0])  # Traced, as a schedule is.
  grads = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(x, scales)
  np.testing.assert_allclose(grads, -scales[:, None] * np.cos(x)[None], rtol=1e-12)
  half = x.astype(jnp.bfloat16)
  assert losses.gradient_reversal(half, 0.3).dtype == jnp.bfloat16
  assert jax.grad(loss)(half, jnp.float32(0.3)).dtype == jnp.bfloat16
  with pytest.raises(TypeError, match="x must be floating, got int"):
    losses.gradient_reversal(jnp.arange(3), 1.0)


ONE, TWO = {"a": 1.0}, {"a": 1.0, "v": 1.0}
BAD = {
  "one modality, ogm": lambda: losses.ogm_coefficients(ONE, alpha=0.1),
  "one modality, dropout": lambda: losses.modality_dropout_probabilities(ONE),
  "no scalar": lambda: losses.ogm_coefficients({**ONE, "v": np.ones(2)}, alpha=0.1),
  "heads differ": lambda: losses.gradient_blending_weights(TWO, ONE, TWO, TWO, eps=0.1),
  "gain": lambda: losses.gradient_blending_weights(
    TWO, TWO, TWO, TWO, eps=0.1, gain="negative"
  ),
  "structures": lambda: losses.mmpareto_direction(TWO, ONE),
  "shapes": lambda: losses.mmpareto_direction(np.ones(2), np.ones(3)),
  "no tensor": lambda: losses.mmpareto_direction({}, {}),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_wrong_argument_is_one_sentence(name):
  with pytest.raises(ValueError, match=r"^[^\n]*\.$"):
    BAD[name]()
