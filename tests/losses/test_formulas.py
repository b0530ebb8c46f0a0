"""Each loss over rows against its formula, written again in NumPy as loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import losses
from tests.entropy._helpers import float64
from tests.losses._compiled import Compiled

ours = Compiled(losses)  # Sorts dicts, as jit does.


@pytest.fixture(autouse=True)
def _float64():
  with float64():
    yield


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_sum_exp(x):
  return np.log(np.sum(np.exp(x)))


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_supervised_contrastive(rng, views):
  label = np.array([0, 1, 0, 2, 1])  # With one view the row of class 2 has no positive.
  r = {f"m{i}": unit(rng.normal(size=(5, 4))) for i in range(views)}
  anchors = [(z[i], label[i]) for z in r.values() for i in range(5)]
  total = 0.0
  for a, (anchor, own) in enumerate(anchors):
    others = [b for b in range(len(anchors)) if b != a]
    s = {b: anchor @ anchors[b][0] / 0.2 for b in others}
    positives = [b for b in others if anchors[b][1] == own]
    log_z = log_sum_exp(np.array(list(s.values())))
    if positives:
      total += np.mean([s[b] - log_z for b in positives])
  expected = -(0.2 / 0.07) * total / len(anchors)
  close(ours.supervised_contrastive(r, label, temperature=0.2), expected)
  plain = ours.supervised_contrastive(r, label, temperature=0.2, base_temperature=0.2)
  close(plain, -total / len(anchors))


def mean_shift_by_loops(first, second, neighbours):
  size, joined = len(next(iter(first.values()))), []
  for m in first:
    e = np.concatenate([first[m], second[m]])
    angle = unit(e) @ unit(e).T
    shifted = []
    for i in range(2 * size):
      others = sorted(
        (j for j in range(2 * size) if j != i), key=lambda j: -angle[i, j]
      )
      shifted.append(unit(0.5 * e[i] + 0.5 * np.mean(e[others[:neighbours]], axis=0)))
    joined.append(np.array(shifted))
  joined = unit(np.concatenate(joined, axis=1))
  u, v = joined[:size], joined[size:]
  return np.mean(
    [log_sum_exp(u[i] @ v.T / 0.25) - u[i] @ v[i] / 0.25 for i in range(size)]
  )


@pytest.mark.parametrize("neighbours", [1, 3, 8, 50])
def test_mean_shift_contrastive(rng, neighbours):
  first = {m: unit(rng.normal(size=(6, d))) for m, d in (("a", 5), ("b", 3))}
  second = {m: unit(rng.normal(size=z.shape)) for m, z in first.items()}
  actual = ours.mean_shift_contrastive(first, second, neighbours=neighbours)
  close(actual, mean_shift_by_loops(first, second, neighbours))


def test_a_row_is_not_its_own_neighbour_even_among_duplicates():
  # Two equal rows and an orthogonal one, in one modality and both views: the nearest
  # neighbour of the third is its other view, so all rows stay where they are.
  z = {"a": np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])}
  # -log of the share of the own second view, at cosines 1, 1, 0 and 0, 0, 1.
  rows = [np.log(2 * np.e + 1) - 1, np.log(2 * np.e + 1) - 1, np.log(2 + np.e) - 1]
  close(
    losses.mean_shift_contrastive(z, z, neighbours=1, temperature=1.0), np.mean(rows)
  )


def test_relative_norm_alignment_in_the_order_given(rng):
  z = {m: rng.normal(size=(5, d)) for m, d in (("v", 4), ("a", 3), ("f", 6), ("t", 2))}
  n = {m: np.mean([np.sqrt(sum(row**2)) for row in x]) for m, x in z.items()}
  term = lambda top, bottom: (n[top] / n[bottom] - 1) ** 2
  rna = losses.relative_norm_alignment
  close(rna({m: z[m] for m in "va"}), term("v", "a"))
  close(rna({m: z[m] for m in "av"}), term("a", "v"))
  three = (term("v", "a") + term("v", "f") + term("f", "a")) / 3
  close(rna({m: z[m] for m in "vaf"}), three)
  four = (3 * three + term("v", "t") + term("t", "a") + term("t", "f")) / 6
  close(rna(z), four)
  # JAX sorts the keys of an argument, so the order must be given there.
  close(
    jax.jit(lambda z: rna(z, order=("v", "a", "f")))({m: z[m] for m in "vaf"}), three
  )


def test_relative_norm_alignment_leaves_dead_features_alone(rng):
  z = {
    "v": rng.normal(size=(4, 3)),
    "a": np.zeros((4, 2)),
    "f": rng.normal(size=(4, 2)),
  }
  value, grad = jax.jit(
    jax.value_and_grad(
      lambda z: losses.relative_norm_alignment(z, order=("v", "a", "f"))
    )
  )(jax.tree.map(jnp.asarray, z))
  n = {m: np.linalg.norm(x, axis=1).mean() for m, x in z.items()}
  close(value, (n["v"] / n["f"] - 1) ** 2 / 3)
  np.testing.assert_array_equal(grad["a"], 0.0)


def test_shared_specific_distance(rng):
  z = {"a": rng.normal(size=(5, 4)), "v": rng.normal(size=(5, 6))}
  expected = -np.mean(
    [
      np.mean((x[:, : d // 2] - x[:, d // 2 :]) ** 2)
      for x, d in ((z["a"], 4), (z["v"], 6))
    ]
  )
  close(ours.shared_specific_distance(z), expected)


def test_translation_distance_and_the_gradient_of_its_target(rng):
  z = {"a": rng.normal(size=(5, 4)), "v": rng.normal(size=(5, 6))}
  t = {("v", "a"): rng.normal(size=(5, 4)), ("a", "v"): rng.normal(size=(5, 6))}
  expected = np.mean(
    [np.linalg.norm(unit(t[pair]) - unit(z[pair[1]]), axis=1).mean() for pair in t]
  )
  close(ours.translation_distance(t, z), expected)
  only = {("v", "a"): t["v", "a"]}
  grad = jax.jit(jax.grad(lambda z: losses.translation_distance(only, z)))(z)
  assert np.abs(grad["a"]).max() > 0.01  # Not detached,
  np.testing.assert_array_equal(grad["v"], 0.0)  # and the source is no target.


def test_neighbours_are_nearest_by_angle_not_by_length(rng):
  # Row 1 points where row 0 does; row 2 is long, and far away in angle.
  z = np.array([[1.0, 0.0], [0.9, 0.1], [3.0, 9.0]])
  close(
    ours.mean_shift_contrastive({"a": z}, {"a": z[::-1]}, neighbours=2),
    mean_shift_by_loops({"a": z}, {"a": z[::-1]}, 2),
  )


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_directions_do_not_depend_on_scale_even_where_squares_leave_float32(rng, scale):
  z = {m: rng.normal(size=(3, 4)).astype(np.float32) for m in ("a", "v")}
  pair = {("v", "a"): rng.normal(size=(3, 4)).astype(np.float32)}
  run = jax.jit(jax.value_and_grad(losses.translation_distance))
  value, grad = run(pair, z)
  scaled, scaled_grad = run({k: np.float32(scale) * x for k, x in pair.items()}, z)
  np.testing.assert_allclose(scaled, value, rtol=1e-6)
  np.testing.assert_allclose(
    np.float32(scale) * scaled_grad["v", "a"], grad["v", "a"], rtol=1e-4, atol=1e-7
  )


def split(z, domain, num_domains):
  return [z[domain == s] for s in range(num_domains)]


@pytest.mark.parametrize("width", [2, 9])  # Fewer and more columns than rows.
def test_coral(rng, width):
  z, domain = rng.normal(size=(8, width)), np.array([0, 1, 2, 0, 1, 2, 0, 0])
  terms = []
  for x, y in itertools.combinations(split(z, domain, 3), 2):
    location = np.mean((x.mean(0) - y.mean(0)) ** 2)
    covariance = np.cov(x, rowvar=False) - np.cov(y, rowvar=False)  # ddof 1
    terms.append(location + np.mean(covariance**2))
  close(ours.coral(z, domain, num_domains=3), np.mean(terms))


def test_mmd(rng):
  z, domain = rng.normal(size=(8, 5)), np.array([0, 1, 2, 0, 1, 2, 0, 0])

  def kernel(x, y):
    square = np.array([[np.sum((a - b) ** 2) for b in y] for a in x])
    return sum(np.exp(-g * square).mean() for g in 10.0 ** np.arange(-3, 4))

  terms = [
    kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    for x, y in itertools.combinations(split(z, domain, 3), 2)
  ]
  close(ours.mmd(z, domain, num_domains=3), np.mean(terms))


@pytest.mark.parametrize("name", ["coral", "mmd"])
def test_equal_domains_have_no_distance_and_an_absent_one_no_say(rng, name):
  fn = getattr(ours, name)
  x, y = rng.normal(size=(2, 4, 3))
  twice = np.concatenate([x, x])
  domain = np.repeat([0, 1], 4)
  np.testing.assert_allclose(fn(twice, domain, num_domains=2), 0.0, atol=1e-11)
  z = np.concatenate([x, y])
  close(fn(z, 2 * domain, num_domains=4), fn(z, domain, num_domains=2))
  foreign = np.concatenate([z, 9 * x])  # Of domains that are not among the sources.
  outside = np.concatenate([domain, [-1, 2, 3, 99]])
  close(fn(foreign, outside, num_domains=2), fn(z, domain, num_domains=2))


def test_coral_needs_two_rows_of_a_domain_and_mmd_one(rng):
  z, domain = rng.normal(size=(5, 3)), np.array([0, 0, 1, 1, 2])
  two = ours.coral(z[:4], domain[:4], num_domains=2)
  close(ours.coral(z, domain, num_domains=3), two)
  assert ours.mmd(z, domain, num_domains=3) != ours.mmd(
    z[:4], domain[:4], num_domains=2
  )


def test_prototype_cross_entropy(rng):
  z, mu, label = rng.normal(size=(5, 4)), rng.normal(size=(3, 4)), [0, 2, 1, 1, 0]
  rows = []
  for x, y in zip(z, label, strict=True):
    d = np.array([np.sqrt(np.sum((x - m) ** 2)) for m in mu])
    rows.append(d[y] + log_sum_exp(-d))
  close(ours.prototype_cross_entropy(z, np.array(label), mu), np.mean(rows))


def test_a_prototype_at_its_row_and_one_far_away_have_a_finite_gradient(rng):
  z = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
  mu = jnp.stack([z[0], z[1], jnp.full(4, 1e30, jnp.float32)])
  value, grads = jax.jit(
    jax.value_and_grad(losses.prototype_cross_entropy, argnums=(0, 2))
  )(z, jnp.array([0, 1]), mu)
  distance = np.linalg.norm(z[0] - z[1])
  np.testing.assert_allclose(value, np.log1p(np.exp(-distance)), rtol=1e-5)
  assert all(np.isfinite(g).all() for g in grads)


def test_miro(rng):
  f, f0 = rng.normal(size=(2, 5, 3))
  variance = np.exp(rng.normal(size=3))
  expected = np.mean((f - f0) ** 2 / variance + np.log(variance)) / 2
  close(ours.miro(f, f0, 0.0, variance), expected)
  close(ours.miro(f, f0, f, variance), expected)  # The encoder's output,
  close(ours.miro(f, f0, lambda f: f, lambda f: variance), expected)  # or itself.
  shift = rng.normal(size=(1, 3))
  shifted = np.mean((f + shift - f0) ** 2 / variance + np.log(variance)) / 2
  close(ours.miro(f, f0, shift, variance[None]), shifted)
  close(ours.miro(f, f0, f + shift, np.tile(variance, (5, 1))), shifted)
  images, images0 = rng.normal(size=(2, 5, 4, 4, 3))
  expected = np.mean((images - images0) ** 2 / variance + np.log(variance)) / 2
  close(ours.miro(images, images0, 0.0, variance), expected)


def test_miro_makes_no_nan_on_the_way():
  # Whoever debugs with jax_debug_nans must not be stopped by rows that do not count.
  z = jnp.zeros((2, 3))
  with jax.debug_nans(True):
    assert losses.miro(z, z, z, jnp.ones(3), where=jnp.array([True, False])) == 0.0


def test_entropy_weights_per_sample_and_through_the_entropy(rng):
  logits = {m: 2 * rng.normal(size=(5, 3)) for m in ("v", "a", "fused")}
  p = {m: np.exp(x) / np.exp(x).sum(1, keepdims=True) for m, x in logits.items()}
  h = np.stack([-(q * np.log(q)).sum(1) for q in p.values()], axis=1)
  w = np.exp(-h / 0.7)
  close(losses.entropy_weights(logits, temperature=0.7), w / w.sum(1, keepdims=True))
  impossible = {"a": np.array([[0.0, -np.inf]]), "v": np.array([[0.0, 0.0]])}
  weights, grad = jax.jit(
    jax.value_and_grad(lambda x: losses.entropy_weights(x, temperature=1.0)[0, 0])
  )(jax.tree.map(jnp.asarray, impossible))
  close(weights, 2 / 3)  # exp(0) against exp(-log 2)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grad))


Z = np.zeros((4, 2))
LABEL = np.zeros(4, np.int32)
BAD = {
  "one modality": lambda: losses.relative_norm_alignment({"a": Z}),
  "another order": lambda: losses.relative_norm_alignment(
    {"a": Z, "v": Z}, order=("a", "f")
  ),
  "unequal batches": lambda: losses.shared_specific_distance({"a": Z, "v": Z[:3]}),
  "odd width": lambda: losses.shared_specific_distance({"a": Z, "v": Z[:, :1]}),
  "no pair": lambda: losses.translation_distance({}, {"a": Z, "v": Z}),
  "unknown modality": lambda: losses.translation_distance(
    {("a", "f"): Z}, {"a": Z, "v": Z}
  ),
  "a pair of one": lambda: losses.translation_distance(
    {("a", "a"): Z}, {"a": Z, "v": Z}
  ),
  "translated width": lambda: losses.translation_distance(
    {("a", "v"): Z[:, :1]}, {"a": Z, "v": Z}
  ),
  "projections of two widths": lambda: losses.supervised_contrastive(
    {"a": Z, "v": Z[:, :1]}, LABEL, temperature=0.1
  ),
  "label shape": lambda: losses.supervised_contrastive(
    {"a": Z}, LABEL[:3], temperature=0.1
  ),
  "floating label": lambda: losses.prototype_cross_entropy(Z, Z[:, 0], Z),
  "temperature": lambda: losses.supervised_contrastive(
    {"a": Z}, LABEL, temperature=0.0
  ),
  "where shape": lambda: losses.coral(Z, LABEL, num_domains=2, where=np.ones(3, bool)),
  "one domain": lambda: losses.coral(Z, LABEL, num_domains=1),
  "no kernel": lambda: losses.mmd(Z, LABEL, num_domains=2, gammas=()),
  "negative gamma": lambda: losses.mmd(Z, LABEL, num_domains=2, gammas=(-1.0,)),
  "other modalities": lambda: losses.mean_shift_contrastive({"a": Z}, {"v": Z}),
  "view shape": lambda: losses.mean_shift_contrastive({"a": Z}, {"a": Z[:, :1]}),
  "neighbours": lambda: losses.mean_shift_contrastive({"a": Z}, {"a": Z}, neighbours=0),
  "prototype width": lambda: losses.prototype_cross_entropy(Z, LABEL, Z[:, :1]),
  "reference shape": lambda: losses.miro(Z, Z[:3], 0.0, np.ones(2)),
  "variance shape": lambda: losses.miro(Z, Z, 0.0, np.ones(3)),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_wrong_argument_is_one_sentence(name):
  with pytest.raises(ValueError, match=r"^[^\n]*\.$") as error:
    BAD[name]()
  assert str(error.value).count(". ") == 0


def test_what_is_no_dict_or_not_floating_is_a_type_error():
  with pytest.raises(
    TypeError, match="embeddings must map names to arrays, got ndarray"
  ):
    losses.relative_norm_alignment(Z)
  with pytest.raises(TypeError, match=r"embeddings\['a'\] must be floating, got int32"):
    losses.relative_norm_alignment({"a": LABEL[:, None], "v": Z})
