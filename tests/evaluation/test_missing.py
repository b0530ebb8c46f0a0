"""Missing modalities against hand calculations and against deleting them by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import evaluation
from mer_dg.contracts import InputSpec
from mer_dg.evaluation import missing
from mer_dg.networks import make_network

WIDTHS = {"v": 3, "a": 2, "f": 4}
N, K = 12, 3


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  z = {m: rng.normal(size=(N, d)).astype(np.float32) for m, d in WIDTHS.items()}
  present = {m: rng.random(N) < 0.8 for m in WIDTHS}
  weights = {m: rng.normal(size=(d, K)).astype(np.float32) for m, d in WIDTHS.items()}
  bias = {m: rng.normal(size=(K,)).astype(np.float32) for m in WIDTHS}

  def fuse(z, present):  # A modality acts through a weight and a bias when present.
    return sum(
      jnp.where(present[m][:, None], z[m] @ weights[m] + bias[m][None, :], 0.0)
      for m in WIDTHS
    )

  return z, present, rng.integers(0, K, N), fuse


def test_every_subset_once_the_full_one_first():
  names = [
    missing.subset_name(("v", "a", "f"), kept) for kept in missing.subsets(tuple("vaf"))
  ]
  assert names == [
    *("all", "without_f", "without_a", "without_v"),
    *("without_a+f", "without_v+f", "without_v+a"),
  ]
  assert len(missing.subsets(tuple("abcde"))) == 2**5 - 1


def test_zero_fill_is_prediction_without_the_modality(batch):
  z, present, label, fuse = batch
  out = evaluation.missing_modalities(fuse, z, present, label)
  assert len(out) == 7 * 5
  without = {m: p & (m != "a") for m, p in present.items()}
  expected = evaluation.classification_metrics(fuse(z, without), label)
  for name, value in expected.items():
    np.testing.assert_allclose(out[f"without_a/{name}"], value, rtol=1e-6)
  only = {m: p & (m == "a") for m, p in present.items()}
  np.testing.assert_allclose(
    out["without_v+f/nll"], evaluation.nll(fuse(z, only), label), rtol=1e-6
  )
  np.testing.assert_allclose(
    out["all/nll"], evaluation.nll(fuse(z, present), label), rtol=1e-6
  )


def test_mean_fill_puts_the_mean_in_and_calls_it_present(batch):
  z, present, label, fuse = batch
  fill = evaluation.mean_embeddings(z, present)
  for m in WIDTHS:
    np.testing.assert_allclose(fill[m], z[m][present[m]].mean(0), rtol=1e-5)
  out = evaluation.missing_modalities(fuse, z, present, label, fill=fill)
  filled = dict(z, a=np.tile(z["a"][present["a"]].mean(0), (N, 1)))
  here = dict(present, a=np.ones(N, bool))  # The others stay missing where they are.
  expected = evaluation.nll(fuse(filled, here), label)
  np.testing.assert_allclose(out["without_a/nll"], expected, rtol=1e-5)


def test_means_skip_missing_and_masked_rows_whatever_stands_there(batch):
  z, present, _, _ = batch
  where = np.arange(N) < 8
  keep = present["a"] & where
  junk = {"a": jnp.where(keep[:, None], z["a"], jnp.nan)}
  actual = evaluation.mean_embeddings(junk, {"a": present["a"]}, where)["a"]
  np.testing.assert_allclose(actual, z["a"][keep].mean(0), rtol=1e-5)
  nobody = evaluation.mean_embeddings(z, {m: np.zeros(N, bool) for m in z})
  assert not np.any(nobody["v"])


def test_a_real_network_under_jit_matches_applying_it_with_the_modality_absent():
  specs = {m: InputSpec("vector", (d,)) for m, d in WIDTHS.items()}
  network = make_network(
    specs, num_classes=K, encoder="linear", fusion="gated", embedding_dim=4,
    hidden_dim=4, fusion_dim=4, classifier_dim=4, projector_dim=4, projection_dim=4,
    dropout=0.0, embedding_dropout=0.0, input_clip=10.0,
    compute_dtype="float32",
  )  # fmt: skip
  variables = network.init(jax.random.key(0))
  rng = np.random.default_rng(1)
  inputs = {m: jnp.asarray(rng.normal(size=(N, d)), jnp.float32)
            for m, d in WIDTHS.items()}  # fmt: skip
  present = {m: jnp.ones(N, bool) for m in WIDTHS}
  label = jnp.asarray(rng.integers(0, K, N))
  apply = jax.jit(
    lambda present: network.apply(variables, inputs, present, train=False, key=None)[0]
  )

  @jax.jit
  def evaluate(z):
    fuse = lambda z, p: network.fuse(variables, z, p)
    return evaluation.missing_modalities(fuse, z, present, label)

  out = evaluate(apply(present).embeddings)
  absent = apply(present | {"v": jnp.zeros(N, bool)})
  np.testing.assert_allclose(
    out["without_v/nll"], evaluation.nll(absent.logits, label), rtol=1e-5
  )


def test_dicts_of_other_modalities_are_refused(batch):
  z, present, label, fuse = batch
  with pytest.raises(ValueError, match=r"present has modalities \['a', 'v'\]"):
    few = {m: present[m] for m in ("v", "a")}
    evaluation.missing_modalities(fuse, z, few, label)
  with pytest.raises(ValueError, match=r"fill has modalities \['a'\]"):
    evaluation.missing_modalities(fuse, z, present, label, fill={"a": z["a"][0]})
