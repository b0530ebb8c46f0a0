"""Batches are exactly the rows they claim; scaling is robust and source-only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.data.arrays import (
  eval_blocks,
  fit_scaling,
  gather_batch,
  put,
  sample_batch,
  to_arrays,
)
from mer_dg.data.dataset import make_dataset
from mer_dg.data.sampling import draw_batch, make_pool


def _dataset(inputs, **changes):
  n = len(next(iter(inputs.values())))
  made = {
    "name": "toy",
    "inputs": inputs,
    "label": np.arange(n) % 2,
    "domain": np.arange(n) // (n // 2),
    "class_names": ["x", "y"],
    "domain_names": ["p", "q"],
  }
  return make_dataset(**(made | changes))


# --- arrays and batches --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int16])
def test_padding_becomes_zero_and_is_marked(dtype):
  x = np.arange(1, 25).reshape(4, 3, 2).astype(dtype)
  arrays = to_arrays(_dataset({"s": x}, lengths={"s": np.array([3, 2, 1, 3])}))
  s = arrays.inputs["s"]
  assert s.dtype == dtype
  assert s[:, :, -1].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]
  assert s[1].tolist() == [[7, 8, 1], [9, 10, 1], [0, 0, 0]]
  np.testing.assert_array_equal(s[0, :, :-1], x[0])


def test_what_stands_in_padding_and_missing_rows_changes_nothing():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(6, 4, 2)).astype(np.float32)
  length = np.array([4, 3, 2, 1, 4, 4])
  present = np.arange(6) != 4
  junk = x.copy()
  junk[np.arange(4)[None, :] >= length[:, None]] = np.nan
  junk[4] = np.inf
  made = [
    to_arrays(_dataset({"s": a}, lengths={"s": length}, present={"s": present}))
    for a in (x, junk)
  ]
  np.testing.assert_array_equal(made[0].inputs["s"], made[1].inputs["s"])
  assert not made[0].inputs["s"][4].any()  # Not even valid steps.


def test_unpadded_modalities_are_stored_as_they_are():
  x = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
  arrays = to_arrays(_dataset({"pic": x}))
  np.testing.assert_array_equal(arrays.inputs["pic"], x[..., None])
  assert arrays.inputs["pic"].dtype == np.uint8


def test_batch_holds_the_drawn_rows():
  rng = np.random.default_rng(0)
  dataset = _dataset(
    {"a": rng.normal(size=(20, 3)).astype(np.float32)},
    present={"a": np.arange(20) % 3 > 0},
    index=np.arange(100, 120),
  )
  pool = make_pool([np.arange(9), np.array([12, 15])])
  arrays = put(to_arrays(dataset))
  key, step = jax.random.key(0), jnp.int32(3)
  batch = sample_batch(arrays, key, step, pool, 4)
  rows, domain, mask = map(np.asarray, draw_batch(key, step, pool, 4))
  assert mask.tolist() == [True] * 4 + [True] * 2 + [False] * 2
  np.testing.assert_array_equal(batch["domain"], [0, 0, 0, 0, 1, 1, 1, 1])
  np.testing.assert_array_equal(domain, batch["domain"])
  np.testing.assert_array_equal(batch["mask"], mask)
  np.testing.assert_array_equal(batch["label"], dataset.label[rows])
  np.testing.assert_array_equal(batch["index"], rows + 100)
  np.testing.assert_array_equal(batch["present"]["a"], (rows % 3 > 0) & mask)
  expected = np.where((rows % 3 > 0)[:, None], dataset.inputs["a"][rows], 0)
  np.testing.assert_array_equal(batch["inputs"]["a"], expected)
  types = {k: batch[k].dtype for k in ("label", "domain", "index", "mask")}
  assert types == {
    "label": "int32",
    "domain": "int32",
    "index": "int32",
    "mask": "bool",
  }


@pytest.mark.parametrize(("count", "blocks"), [(0, 1), (3, 1), (4, 1), (9, 3)])
def test_eval_blocks_cover_rows_once(count, blocks):
  rows = np.arange(50, 50 + count)
  cut, mask = eval_blocks(rows, 4)
  assert cut.shape == mask.shape == (blocks, 4)
  np.testing.assert_array_equal(cut[mask], rows)


def test_gather_runs_on_numpy_and_on_the_device_alike():
  arrays = to_arrays(_dataset({"a": np.arange(8.0).reshape(4, 2)}))
  rows, domain, mask = np.array([3, 0]), np.array([0, 1]), np.array([True, False])
  left = gather_batch(arrays, rows, domain, mask)
  right = gather_batch(put(arrays), *map(jnp.asarray, (rows, domain, mask)))
  jax.tree.map(np.testing.assert_array_equal, left, right)


# --- scaling -------------------------------------------------------------------------


def _normal(n=4000, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  scale = np.array([0.01, 1.0, 300.0])[:channels]
  center = np.array([5.0, 0.0, -1000.0])[:channels]
  return (center + scale * rng.normal(size=(n, channels))).astype(np.float32)


def test_normal_data_become_standard_normal():
  x = _normal()
  fit = fit_scaling(_dataset({"a": x}), np.arange(4000))["a"]
  z = (x - fit["center"]) * fit["inv_scale"]
  # Standard errors: median 1.25 / sqrt(n) = 0.02, the spread about 0.02.
  np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=0.08)
  np.testing.assert_allclose(z.std(axis=0), 1.0, atol=0.08)
  assert fit["center"].dtype == fit["inv_scale"].dtype == np.float32


def test_the_range_is_that_of_the_training_rows():
  x = _normal()
  x[0], x[3999] = 1e9, -1e9  # A broken reading; a row that does not train.
  pixels = np.zeros((4000, 4, 4, 1), np.uint8)
  found = fit_scaling(_dataset({"a": x, "b": pixels}), np.arange(3999))
  z = lambda side: (found["a"][side] - found["a"]["center"]) * found["a"]["inv_scale"]
  # 3.09 deviations hold 99.8 % of a normal distribution.
  np.testing.assert_allclose(z("high"), 3.09, atol=0.5)
  np.testing.assert_allclose(z("low"), -3.09, atol=0.5)
  assert np.isinf(found["b"]["high"]).all()


@pytest.mark.parametrize("outlier", [1e6, -1e30])
def test_one_outlier_changes_nothing(outlier):
  x = _normal(n=200)
  broken = x.copy()
  broken[17] = outlier
  clean, dirty = (
    fit_scaling(_dataset({"a": a}), np.arange(200))["a"] for a in (x, broken)
  )
  sigma = 1.0 / clean["inv_scale"]
  # One of 200 values moves a quantile by about half a per cent of the data.
  assert (np.abs(dirty["center"] - clean["center"]) < 0.03 * sigma).all()
  np.testing.assert_allclose(dirty["inv_scale"], clean["inv_scale"], rtol=0.1)


def test_five_per_cent_of_broken_readings_do_little():
  x = _normal(n=1000)
  x[:45] = 1e6
  fit = fit_scaling(_dataset({"a": x}), np.arange(1000))["a"]
  np.testing.assert_allclose(fit["inv_scale"], [100.0, 1.0, 1 / 300], rtol=0.35)


def test_a_quiet_channel_with_bursts_is_not_blown_up():
  rng = np.random.default_rng(0)
  x = 1e-4 * rng.normal(size=(2000, 1))  # Noise, and 15 % bursts of size 1.
  x[:300] = rng.normal(size=(300, 1))
  fit = fit_scaling(_dataset({"a": x}), np.arange(2000))["a"]
  assert 1.0 < fit["inv_scale"][0] < 10.0


@pytest.mark.parametrize("share", [0.08, 0.004])
def test_a_channel_that_is_nearly_always_equal_is_still_scaled(share):
  x = np.full((5000, 1), 2.0, np.float32)
  count = int(share * 5000)
  x[:count, 0] += np.linspace(-3, 3, count)
  fit = fit_scaling(_dataset({"a": x}), np.arange(5000))["a"]
  assert fit["center"] == 2.0
  assert 0.3 < fit["inv_scale"][0] < 30.0


@pytest.mark.parametrize("value", [0.0, 7.0, -1e8, 1e-3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8])
def test_constant_channels_are_switched_off(value, dtype):
  if dtype != np.float32:
    value = {0.0: 0, 7.0: 7, -1e8: 100, 1e-3: 255}[value]
  x = np.full((50, 2), value, dtype)
  x[:, 1] = np.arange(50)
  fit = fit_scaling(_dataset({"a": x}), np.arange(50))["a"]
  assert fit["inv_scale"][0] == 0.0
  assert fit["inv_scale"][1] > 0.0


def test_float32_rounding_of_a_constant_is_no_signal():
  x = np.full((100, 1), 1e5, np.float32)
  x[::2] = np.nextafter(x[::2], np.float32(2e5))
  fit = fit_scaling(_dataset({"a": x}), np.arange(100))["a"]
  assert fit["inv_scale"][0] == 0.0


def test_uint8_is_scaled_by_exact_mean_and_deviation():
  rng = np.random.default_rng(0)
  # 200 rows: more than one block, and a last block that is not full.
  x = rng.integers(0, 256, (200, 5, 4, 3), dtype=np.uint8)
  fit = fit_scaling(_dataset({"pic": x}), np.arange(0, 200, 2))["pic"]
  values = x[::2].reshape(-1, 3).astype(np.float64)
  np.testing.assert_allclose(fit["center"], values.mean(axis=0), rtol=1e-6)
  np.testing.assert_allclose(fit["inv_scale"], 1 / values.std(axis=0), rtol=1e-6)


def test_only_the_given_rows_valid_steps_and_present_rows_are_read():
  rng = np.random.default_rng(0)
  n = 60
  inputs = {
    "a": rng.normal(size=(n, 3)).astype(np.float32),
    "s": rng.normal(size=(n, 6, 2)).astype(np.float16),
    "pic": rng.integers(0, 256, (n, 4, 4), dtype=np.uint8),
  }
  length = rng.integers(1, 7, n)
  present = rng.random(n) < 0.7
  rows = np.sort(rng.permutation(n)[:30])
  used = np.isin(np.arange(n), rows)

  garbage = {m: x.copy() for m, x in inputs.items()}
  for m, unused in {"a": ~used | ~present, "s": ~used, "pic": ~used}.items():
    garbage[m][unused] = 77
  garbage["s"][np.arange(6)[None, :] >= length[:, None]] = np.nan

  fits = [
    fit_scaling(_dataset(x, lengths={"s": length}, present={"a": present}), rows)
    for x in (inputs, garbage)
  ]
  jax.tree.map(np.testing.assert_array_equal, *fits)
  # The oracle: the same statistic of the same values, gathered by hand.
  steps = np.concatenate([inputs["s"][i, : length[i]] for i in rows]).astype(np.float64)
  np.testing.assert_allclose(
    fits[0]["s"]["center"], np.median(steps, axis=0), rtol=1e-6
  )


def test_a_modality_missing_in_all_training_rows_is_switched_off():
  x = _normal(n=20)
  dataset = _dataset({"a": x}, present={"a": np.arange(20) >= 10})
  fit = fit_scaling(dataset, np.arange(10))["a"]
  np.testing.assert_array_equal(fit["inv_scale"], 0.0)
