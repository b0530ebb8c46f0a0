"""Re-pairing keeps labels and uses every row once; reliance by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import evaluation
from mer_dg.evaluation import evaluators


def re_pair(label, domain, seed=0, modalities=("a", "b", "c"), where=None):
  fn = jax.jit(evaluation.re_pair_within_class, static_argnames="modalities")
  out = fn(jnp.asarray(label), jnp.asarray(domain), jax.random.key(seed),
           modalities, where)  # fmt: skip
  return {m: np.asarray(rows) for m, rows in out.items()}


@pytest.fixture(scope="module")
def rows():
  rng = np.random.default_rng(0)
  return rng.integers(0, 5, 200), rng.integers(0, 4, 200)


def test_a_permutation_within_class_that_leaves_nobody_in_place(rows):
  label, domain = rows
  out = re_pair(label, domain)
  np.testing.assert_array_equal(out["a"], np.arange(200))  # The first one stays.
  for m in ("b", "c"):
    np.testing.assert_array_equal(np.sort(out[m]), np.arange(200))
    np.testing.assert_array_equal(label[out[m]], label)
    assert np.all(out[m] != np.arange(200))
  assert np.any(out["b"] != out["c"])  # Each modality on its own.
  assert np.mean(out["b"] == out["c"]) < 0.2


def test_partners_come_from_other_domains_where_no_domain_is_a_majority(rows):
  label, domain = rows
  for k in range(5):  # The draw has no majority: what the test rests on.
    counts = np.bincount(domain[label == k])
    assert counts.max() <= counts.sum() / 2
  for seed in range(3):
    out = re_pair(label, domain, seed)
    assert np.all(domain[out["b"]] != domain)


@pytest.mark.parametrize(("big", "small"), [(7, 3), (6, 5), (5, 5), (9, 1)])
def test_a_majority_meets_itself_no_more_than_it_must(big, small):
  label = np.zeros(big + small, int)
  domain = np.repeat([0, 1], [big, small])
  out = re_pair(label, domain)
  # The small domain has room for ``small`` rows of the big one.
  assert np.sum(domain[out["b"]] == domain) == max(big - small, 0)
  assert np.all(out["b"] != np.arange(big + small))


def test_a_class_in_one_domain_is_re_paired_within_it_and_a_single_row_stays():
  label, domain = np.array([3, 3, 3, 3, 1]), np.array([2, 2, 2, 2, 0])
  out = re_pair(label, domain)["b"]
  assert out[4] == 4
  assert sorted(out[:4]) == [0, 1, 2, 3]
  assert np.all(out[:4] != np.arange(4))


def test_key_decides_and_nothing_else(rows):
  label, domain = rows
  first = re_pair(label, domain, seed=1)["b"]
  np.testing.assert_array_equal(first, re_pair(label, domain, seed=1)["b"])
  assert np.mean(first == re_pair(label, domain, seed=2)["b"]) < 0.2


def test_every_partner_in_another_domain_is_about_equally_likely():
  label, domain = np.zeros(9, int), np.repeat([0, 1, 2], 3)
  fn = jax.vmap(
    lambda key: evaluation.re_pair_within_class(
      jnp.asarray(label), jnp.asarray(domain), key, ("a", "b")
    )["b"]
  )
  out = np.asarray(jax.jit(fn)(jax.random.split(jax.random.key(0), 3000)))
  share = np.bincount(out[:, 0], minlength=9) / 3000
  assert not share[:3].any()
  # 1/6 each; 3000 draws have a deviation of 0.007.
  np.testing.assert_allclose(share[3:], 1 / 6, atol=0.03)


def test_masked_rows_keep_to_themselves(rows):
  label, domain = rows
  where = np.random.default_rng(1).random(200) < 0.7
  out = re_pair(label, domain, where=jnp.asarray(where))["b"]
  np.testing.assert_array_equal(out[~where], np.flatnonzero(~where))
  np.testing.assert_array_equal(np.sort(out[where]), np.flatnonzero(where))
  np.testing.assert_array_equal(label[out], label)
  # As if the masked rows were not there: nobody meets the own domain.
  for k in range(5):
    counts = np.bincount(domain[where & (label == k)])
    assert counts.max() <= counts.sum() / 2
  assert np.all(domain[out[where]] != domain[where])


def code(n=400):
  """Class 1 where two random bits are equal: only the pair of them names the class."""
  rng = np.random.default_rng(2)
  label, bit = rng.integers(0, 2, n), rng.integers(0, 2, n)
  other = np.where(label == 1, bit, 1 - bit)
  z = {m: jnp.asarray(2.0 * b - 1.0)[:, None] for m, b in (("a", bit), ("b", other))}
  present = {m: jnp.ones(n, bool) for m in z}
  return z, present, jnp.asarray(label), jnp.asarray(rng.integers(0, 2, n))


def test_reading_a_code_is_reliance_and_reading_each_modality_is_not():
  z, present, label, domain = code()
  rows = evaluation.re_pair_within_class(label, domain, jax.random.key(0), ["a", "b"])
  product = lambda z, _: jnp.concatenate([0 * z["a"], z["a"] * z["b"]], axis=1)
  out = evaluation.cooccurrence_reliance(product, z, present, label, rows)
  assert out["paired/accuracy"] == 1.0
  # Re-paired bits are independent given the class: half of the products are right,
  # give or take 0.035 for 400 rows.
  assert abs(out["cooccurrence_reliance"] - 0.5) < 0.1
  truth = 2.0 * label[:, None] - 1.0
  told = {"a": truth, "b": truth}  # Each modality names the class by itself.
  out = evaluation.cooccurrence_reliance(
    lambda z, _: jnp.concatenate([0 * z["a"], z["a"] + z["b"]], axis=1),
    told, present, label, rows,
  )  # fmt: skip
  assert out["cooccurrence_reliance"] == 0.0


def test_presence_moves_with_its_embedding_and_masked_rows_are_not_judged():
  z = {"a": jnp.ones((4, 1)), "b": jnp.ones((4, 1))}
  present = {"a": jnp.ones(4, bool), "b": jnp.array([True, False, True, True])}
  # Right exactly where b is present.
  fuse = lambda z, p: jnp.stack([p["b"] * 1.0, 0.5 + 0 * z["a"][:, 0]], axis=1)
  label, where = jnp.zeros(4, int), jnp.array([True, True, False, False])
  rows = {"a": jnp.arange(4), "b": jnp.array([2, 3, 0, 1])}
  out = evaluation.cooccurrence_reliance(fuse, z, present, label, rows, where)
  assert out["paired/accuracy"] == 0.5
  assert out["re-paired/accuracy"] == 1.0
  assert out["cooccurrence_reliance"] == -0.5


def test_bad_arguments():
  label = jnp.zeros(3, int)
  with pytest.raises(ValueError, match="label and domain must be"):
    evaluation.re_pair_within_class(label, jnp.zeros(4, int), jax.random.key(0), ["a"])
  with pytest.raises(ValueError, match="modalities is empty"):
    evaluation.re_pair_within_class(label, label, jax.random.key(0), [])
  z, present = {"a": jnp.ones((3, 1))}, {"a": jnp.ones(3, bool)}
  with pytest.raises(ValueError, match=r"rows has modalities \['b'\]"):
    evaluation.cooccurrence_reliance(lambda z, p: z, z, present, label, {"b": label})


def lost(z, label, domain):
  """What re-pairing across domains, and inside them, takes of sign(a + b)."""
  n = len(label)
  fuse = lambda z, _: jnp.concatenate([-(z["a"] + z["b"]), z["a"] + z["b"]], axis=1)
  present = {m: jnp.ones(n, bool) for m in z}
  every = jnp.ones(n, bool)
  seen = evaluators.Seen(fuse(z, present), z, present, label, domain, every, ~every)
  asked = {e.name: e.fn for e in evaluators.evaluators("accuracy", 2, 2)}
  found = asked["prediction"](seen, fuse) | asked["re-paired validation"](seen, fuse)
  of = lambda name, metric: float(found[f"val/{name}{metric}"])
  return {
    (name, metric): of("", metric) - of(f"{name}/", metric)
    for name in ("re-paired", "re-paired_within")
    for metric in ("accuracy", "nll", "margin")
  }


def test_two_re_pairings_tell_cancelling_a_domain_from_reading_together():
  rng = np.random.default_rng(0)
  label, domain = rng.integers(0, 2, 400), rng.integers(0, 2, 400)
  sign, place = 2.0 * label - 1, 6.0 * domain - 3
  # "b" tells the domain, which "a" then lacks: right with partners of the same domain.
  z = {"a": jnp.asarray(sign + place)[:, None], "b": jnp.asarray(-place)[:, None]}
  found = lost(z, jnp.asarray(label), jnp.asarray(domain))
  assert found["re-paired", "accuracy"] > 0.4
  assert found["re-paired", "margin"] == pytest.approx(0.0, abs=1.0)  # Both ways.
  assert found["re-paired", "nll"] < -1
  for metric in ("accuracy", "nll", "margin"):
    assert abs(found["re-paired_within", metric]) < 1e-6
  # A noise that both share and that cancels has to be read from one sample.
  noise = 6.0 * rng.integers(0, 2, 400) - 3
  z = {"a": jnp.asarray(sign + noise)[:, None], "b": jnp.asarray(-noise)[:, None]}
  found = lost(z, jnp.asarray(label), jnp.asarray(domain))
  assert found["re-paired", "accuracy"] > 0.15
  assert found["re-paired_within", "accuracy"] > 0.15
  assert found["re-paired_within", "nll"] < -0.5
