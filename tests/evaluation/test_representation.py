"""CKA, Procrustes and the domain probe against other formulas and other libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mer_dg import evaluation

N, P, Q = 24, 5, 3


@pytest.fixture(scope="module")
def pair():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(N, P)) + 2.0
  y = x[:, :Q] @ rng.normal(size=(Q, Q)) + 0.5 * rng.normal(size=(N, Q)) - 1.0
  return x.astype(np.float32), y.astype(np.float32)


def cka_of_covariances(x, y):
  """Kornblith et al. 2019, linear kernel: by features, not by Gram matrices."""
  x, y = (a.astype(np.float64) - a.mean(0) for a in (x, y))
  cross = np.linalg.norm(x.T @ y) ** 2
  return cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def hsic_song(x, y):
  """Song et al. 2012, eq. 5, from uncentred Gram matrices."""
  n = len(x)
  k, l = (a.astype(np.float64) @ a.T for a in (x, y))  # noqa: E741
  np.fill_diagonal(k, 0)
  np.fill_diagonal(l, 0)
  one = np.ones(n)
  terms = np.trace(k @ l)
  terms += (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
  terms -= 2 / (n - 2) * (one @ k @ l @ one)
  return terms / (n * (n - 3))


def test_plain_cka_is_that_of_covariances(pair):
  actual = evaluation.linear_cka(*pair)
  np.testing.assert_allclose(actual, cka_of_covariances(*pair), rtol=1e-5)


def test_debiased_cka_is_a_ratio_of_unbiased_hsics(pair):
  x, y = pair
  expected = hsic_song(x, y) / np.sqrt(hsic_song(x, x) * hsic_song(y, y))
  actual = evaluation.linear_cka(x, y, debiased=True)
  np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_only_the_debiased_form_is_zero_for_unrelated_embeddings():
  rng = np.random.default_rng(1)
  draws = rng.normal(size=(40, 2, 16, 64)).astype(np.float32)  # 16 rows, 64 dimensions.
  plain = jax.vmap(evaluation.linear_cka)(draws[:, 0], draws[:, 1])
  fair = jax.vmap(lambda a, b: evaluation.linear_cka(a, b, debiased=True))(
    draws[:, 0], draws[:, 1]
  )
  assert np.mean(plain) > 0.7  # Bias: about d / (d + n), here 0.8.
  # U-centred matrices live in n (n - 3) / 2 = 104 dimensions: the cosine of two random
  # ones has a deviation of 1 / sqrt(104); the bounds are three standard errors.
  assert abs(np.mean(fair)) < 3 * 0.098 / np.sqrt(40)
  np.testing.assert_allclose(np.std(fair), 0.098, rtol=3 / np.sqrt(2 * 40))


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_ignores_rotation_scale_and_shift_and_nothing_else(pair, debiased):
  x, _ = pair
  rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(P, P)))
  same = (3.0 * x @ rotation + 7.0).astype(np.float32)
  cka = lambda a, b: float(evaluation.linear_cka(a, b, debiased=debiased))
  assert cka(x, same) == pytest.approx(1.0, abs=1e-4)
  assert cka(x, x * np.array([5, 1, 1, 1, 1], np.float32)) < 0.95


def test_procrustes_is_that_of_scipy(pair):
  x, y = pair
  padded = np.concatenate([y, np.zeros((N, P - Q), np.float32)], axis=1)
  expected = scipy.spatial.procrustes(x, padded)[2]
  np.testing.assert_allclose(evaluation.procrustes(x, y), expected, rtol=1e-4)
  mirrored = x * np.array([-1, 1, 1, 1, 1], np.float32)  # A reflection is allowed.
  assert float(evaluation.procrustes(x, 2 * mirrored + 1)) < 1e-5


@pytest.mark.parametrize("name", ["linear_cka", "debiased", "procrustes"])
def test_masking_equals_deleting_whatever_stands_in_the_masked_rows(pair, name):
  x, y = pair
  fn = {
    "linear_cka": evaluation.linear_cka,
    "debiased": lambda *a: evaluation.linear_cka(*a, debiased=True),
    "procrustes": evaluation.procrustes,
  }[name]
  where = np.random.default_rng(3).random(N) < 0.6
  junk = np.where(where[:, None], x, np.nan), np.where(where[:, None], y, 1e30)
  expected = fn(x[where], y[where])
  np.testing.assert_allclose(jax.jit(fn)(*junk, where), expected, rtol=1e-4, atol=1e-6)


def test_what_is_undefined_is_nan():
  constant, varied = jnp.ones((5, 2)), jnp.arange(10.0).reshape(5, 2)
  three = jnp.arange(5) < 3
  for value in (
    evaluation.linear_cka(constant, varied),
    evaluation.linear_cka(varied, varied, three, debiased=True),
    evaluation.procrustes(varied, constant),
  ):
    assert np.isnan(value)
  assert evaluation.linear_cka(varied, varied, three) == pytest.approx(1.0)


def domains(rng, shapes, n=40, noise=0.0):
  """Rows around the class means of each domain; classes and domains of the rows."""
  z, label, domain = [], [], []
  for d, means in enumerate(shapes):
    y = np.arange(n) % len(means)
    z.append(means[y] + noise * rng.normal(size=(n, means.shape[1])))
    label.append(y)
    domain.append(np.full(n, d))
  z, label, domain = map(np.concatenate, (z, label, domain))
  return z.astype(np.float32), label, domain


def test_domains_are_compared_by_their_class_means():
  rng = np.random.default_rng(4)
  means = rng.normal(size=(6, 8))
  rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))
  other = rng.normal(size=(6, 8))
  z, label, domain = domains(rng, [means, 2 * means @ rotation + 1, other])
  out = jax.jit(
    evaluation.domain_similarity, static_argnames=("num_classes", "num_domains")
  )(z, label, domain, num_classes=6, num_domains=3)
  assert set(out) == {"cka", "cka_debiased", "procrustes"}
  for matrix in out.values():
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-5)
  # A rotated copy has the same shape; an unrelated one has the value of its means.
  np.testing.assert_allclose(out["cka"][0, 1], 1.0, atol=1e-4)
  np.testing.assert_allclose(out["procrustes"][0, 1], 0.0, atol=1e-4)
  np.testing.assert_allclose(
    out["cka"][0, 2], cka_of_covariances(means, other), rtol=1e-4
  )
  np.testing.assert_allclose(
    out["procrustes"][0, 2], scipy.spatial.procrustes(means, other)[2], rtol=1e-4
  )
  assert out["cka_debiased"][0, 2] < out["cka"][0, 2]


def test_classes_that_a_domain_lacks_are_left_out_of_its_pairs():
  rng = np.random.default_rng(5)
  means = rng.normal(size=(5, 4))
  z, label, domain = domains(rng, [means, means])
  keep = ~((domain == 1) & (label == 4))
  z[~keep] = 99.0
  out = evaluation.domain_similarity(
    z, label, domain, keep, num_classes=5, num_domains=3
  )
  np.testing.assert_allclose(out["cka"][0, 1], 1.0, atol=1e-4)
  assert np.isnan(out["cka"][0, 2])  # Domain 2 has no rows.
  assert np.isnan(out["procrustes"][2, 2])


def test_domain_probe_agrees_with_scikit_learn_on_held_out_rows():
  rng = np.random.default_rng(6)
  domain = np.arange(150) % 3
  shift = np.array([[0.0, 0.0], [0.8, 0.0], [0.0, 0.8]])
  z = (shift[domain] + rng.normal(size=(150, 2))).astype(np.float32)
  fit = np.arange(150) < 90
  out = evaluation.domain_probe(z, domain, fit, ~fit, num_domains=4)
  scaler = StandardScaler().fit(z[fit])
  reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000)
  reference.fit(scaler.transform(z[fit]), domain[fit])
  expected = reference.score(scaler.transform(z[~fit]), domain[~fit])
  # Both are optima of one convex problem; a row on the border may flip.
  np.testing.assert_allclose(out["accuracy"], expected, atol=1.5 / 60)
  assert out["chance"] == pytest.approx(1 / 3)  # Three domains occur, not four.
  assert 1 / 3 < out["balanced_accuracy"] < 1


def test_a_domain_that_leaves_no_trace_is_guessed_at_chance():
  rng = np.random.default_rng(7)
  z = rng.normal(size=(400, 3)).astype(np.float32)
  domain, fit = np.arange(400) % 2, np.arange(400) < 200
  out = evaluation.domain_probe(z, domain, fit, ~fit, num_domains=2)
  # 200 coin flips: 0.5 ± 0.035; three standard deviations.
  assert abs(out["balanced_accuracy"] - 0.5) < 0.11


@pytest.mark.parametrize(
  ("x", "y", "match"),
  [
    (jnp.ones((4,)), jnp.ones((4, 2)), "x must be floating"),
    (jnp.ones((4, 2)), jnp.ones((4, 2), int), "y must be floating"),
    (jnp.ones((4, 2)), jnp.ones((3, 2)), "the same rows, got 4 and 3"),
  ],
)
def test_bad_arguments(x, y, match):
  for fn in (evaluation.linear_cka, evaluation.procrustes):
    with pytest.raises(ValueError, match=match):
      fn(x, y)
