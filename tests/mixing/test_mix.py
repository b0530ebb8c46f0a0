"""Invariants of mixed batches, over random masks, labels and options."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import mixing

B, K = 12, 4
SCORE = {"a": 0.9, "video": 0.9, "audio": 0.3, "flow": 0.6}
NAMES = {1: ("a",), 2: ("video", "audio"), 3: ("video", "audio", "flow")}

few = hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
# One compilation per entry; everything else about a batch is data.
OPTIONS = {
  "hard-1": {"m": 1},
  "hard-2": {"m": 2},
  "hard-3": {"m": 3, "proportions": "exploration"},
}


def mix(seed, z, labels, **options):
  """`modality_mix`, compiled once instead of operation by operation."""
  known = {k: v for k, v in options.items() if isinstance(v, int | str | dict | None)}
  data = {k: v for k, v in options.items() if k not in known}
  run = lambda z, labels, data: mixing.modality_mix(
    jax.random.key(seed), z, labels, **known, **data
  )
  return jax.jit(run)(z, labels, data)


def exploration_of(names, score):
  """State after one update whose true-class probabilities are ``score``."""
  logits = {
    m: jnp.log(jnp.array([[s, 1.0 - s]])) for m, s in zip(names, score, strict=True)
  }
  state = mixing.init_exploration(names)
  return mixing.exploration_score(state, logits, jnp.array([0]))


@functools.cache
def compiled(name, missing):
  options = dict(OPTIONS[name])
  names = NAMES[options.pop("m")]
  state = exploration_of(names, [SCORE[m] for m in names])

  def run(seed, z, labels, eligible, present):
    return mixing.modality_mix(
      jax.random.key(seed),
      z,
      labels,
      num_classes=K,
      eligible=eligible,
      present=present if missing else None,
      exploration=state,
      **options,
    )

  return names, jax.jit(run)


def draw_batch(seed, names, missing, rows=B, share=0.7):
  """A random batch whose first embedding column is the row's own number."""
  rng = np.random.default_rng(seed)
  z = {m: rng.normal(size=(rows, 3)).astype(np.float32) for m in names}
  for m in names:
    z[m][:, 0] = np.arange(rows)
  labels = rng.integers(0, K, rows).astype(np.int32)
  eligible = rng.random(rows) < rng.choice([0.0, 0.2, share, 1.0])
  present = {m: rng.random(rows) < share if missing else np.ones(rows, bool) for m in z}
  return z, labels, eligible, present


def rows_of(mixed):
  return {m: np.asarray(s) for m, s in mixed.source.items()}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("missing", [False, True], ids=["full", "missing"])
@few
@hypothesis.given(seed=st.integers(0, 10_000))
def test_columns_targets_and_weights(name, missing, seed):
  names, run = compiled(name, missing)
  batch = z, labels, eligible, present = draw_batch(seed, names, missing)
  mixed = run(seed, *batch)
  counts = np.asarray(mixed.weight) > 0
  for m in names:
    source = rows_of(mixed)[m]
    members = np.flatnonzero(eligible & present[m])
    # The column permutes the rows that are eligible and have the modality …
    np.testing.assert_array_equal(np.sort(source[members]), members)
    # … and no other row, which is how a missing modality is never a source.
    others = np.setdiff1d(np.arange(B), members)
    np.testing.assert_array_equal(source[others], others)
    np.testing.assert_array_equal(mixed.unimodal_targets[m], np.eye(K)[labels[source]])
    np.testing.assert_array_equal(mixed.embeddings[m], z[m][source])
  np.testing.assert_allclose(mixed.targets.sum(-1), 1, atol=1e-6)
  np.testing.assert_allclose(mixed.proportions.sum(-1), 1, atol=1e-6)
  assert (np.asarray(mixed.targets) >= 0).all()
  assert (np.asarray(mixed.proportions) >= 0).all()
  if missing:
    here = np.stack([present[m] for m in sorted(names)], axis=1)
    lacking = ~here & here.any(axis=1, keepdims=True)
    assert (np.asarray(mixed.proportions)[lacking] == 0).all()
  # Only eligible rows count, and only if their sources do not share one label.
  assert not (counts & ~eligible).any()
  shown = [np.where(present[m], labels[rows_of(mixed)[m]], -1) for m in names]
  differ = np.array([len({s[i] for s in shown if s[i] >= 0}) > 1 for i in range(B)])
  assert not (counts & ~differ).any()
  if not missing and eligible.sum() >= 2:
    np.testing.assert_array_equal(counts, eligible & differ)
  if eligible.sum() < 2:
    assert not counts.any()


@pytest.mark.parametrize("name", ["hard-2", "hard-3"])
@few
@hypothesis.given(seed=st.integers(0, 10_000))
def test_modalities_of_a_row_come_from_different_samples(name, seed):
  names, run = compiled(name, False)
  batch = draw_batch(seed, names, False)
  eligible = batch[2]
  source = np.stack(list(rows_of(run(seed, *batch)).values()))
  for i in np.flatnonzero(eligible):
    needed = min(len(names), eligible.sum())
    if needed == len(names) or eligible.sum() < 2:
      assert len(set(source[:, i])) == max(needed, 1)
    else:
      assert len(set(source[:, i])) >= min(2, needed)


@pytest.mark.parametrize("name", OPTIONS)
def test_padding_changes_nothing(name):
  names, run = compiled(name, True)
  z, labels, eligible, present = draw_batch(5, names, True, share=0.9)
  eligible = eligible.copy()
  eligible[:8], eligible[8:] = True, False
  long = run(3, z, labels, eligible, present)
  cut = lambda tree: jax.tree.map(lambda x: x[:8], tree)
  short = run(3, *cut((z, labels, eligible, present)))
  jax.tree.map(np.testing.assert_array_equal, cut(long), short)
  assert short.weight.sum() > 0 or len(names) == 1


def test_order_of_the_dict_changes_nothing():
  z, labels, eligible, _ = draw_batch(0, NAMES[3], False)

  @jax.jit  # Arguments of jit come sorted, so the dicts are made inside.
  def run(leaves):
    results = []
    for names in (NAMES[3], NAMES[3][::-1], ("flow", "video", "audio")):
      mixed = mixing.modality_mix(
        jax.random.key(0),
        {m: leaves[m] for m in names},
        labels,
        num_classes=K,
        eligible=eligible,
        exploration=exploration_of(names, [SCORE[m] for m in names]),
        proportions="exploration",
      )
      assert list(mixed.embeddings) == list(names)
      results.append(mixed)
    return results

  one, *others = run(z)
  for other in others:
    jax.tree.map(np.testing.assert_array_equal, one, other)


@few
@hypothesis.given(seed=st.integers(0, 10_000))
def test_relabelling_classes_relabels_targets(seed):
  names, run = compiled("hard-3", False)
  z, labels, *rest = draw_batch(seed, names, False)
  new = np.random.default_rng(seed + 1).permutation(K)
  one, other = run(seed, z, labels, *rest), run(seed, z, new[labels], *rest)
  np.testing.assert_allclose(one.targets, other.targets[:, new], atol=1e-7)
  np.testing.assert_array_equal(one.weight, other.weight)
  jax.tree.map(np.testing.assert_array_equal, one.embeddings, other.embeddings)


def test_every_mixed_row_of_a_small_batch_is_equally_likely():
  # Three rows, two modalities: sources of the first modality are a uniform row, those
  # of the second one of the two others. 3 * 2 cells, 6 * 500 draws of 3 rows each.
  z = {"a": jnp.zeros((3, 1)), "b": jnp.zeros((3, 1))}
  draw = lambda seed: mix(seed, z, jnp.arange(3), num_classes=3).source
  source = jax.jit(jax.vmap(draw))(jnp.arange(3000))
  table = np.zeros((3, 3))
  np.add.at(table, (np.asarray(source["a"]), np.asarray(source["b"])), 1)
  assert (np.diag(table) == 0).all()
  share = table[~np.eye(3, dtype=bool)] / table.sum()
  # A row of one batch fixes its others: 3000 independent batches, 5 standard errors.
  np.testing.assert_allclose(share, 1 / 6, atol=5 * np.sqrt(1 / 6 * 5 / 6 / 3000))


def test_targets_by_hand():
  # Labels all differ, so the target holds each share at the label of its source.
  labels = np.arange(4, dtype=np.int16)
  z = {m: np.arange(4.0)[:, None] for m in ("a", "b")}
  state = exploration_of(("a", "b"), (0.8, 0.2))  # gap of b = 1 - 0.2 / 0.8 = 3 / 4
  mixed = mix(
    1,
    z,
    labels,
    num_classes=4,
    proportions="exploration",
    exploration=state,
    eta=2.0,
  )
  share_b = (1 + 2 * 0.75) / (1 + 1 + 2 * 0.75)  # 5 / 7
  expected = np.zeros((4, 4))
  expected[np.arange(4), np.asarray(mixed.source["a"])] += 1 - share_b
  expected[np.arange(4), np.asarray(mixed.source["b"])] += share_b
  np.testing.assert_allclose(mixed.targets, expected, atol=1e-6)
  np.testing.assert_array_equal(mixed.weight, 1)


def test_three_modalities_with_coinciding_labels_give_two_thirds():
  z = {m: jnp.zeros((6, 1)) for m in "abc"}
  labels = jnp.array([0, 0, 0, 1, 1, 1])
  mixed = mix(0, z, labels, num_classes=2)
  targets = np.sort(np.asarray(mixed.targets)[np.asarray(mixed.weight) > 0], axis=1)
  assert len(targets)
  np.testing.assert_allclose(targets, [[1 / 3, 2 / 3]] * len(targets), atol=1e-6)


def test_one_modality_returns_the_batch_itself_and_no_mixed_row():
  names, run = compiled("hard-1", False)
  z, labels, eligible, present = draw_batch(9, names, False)
  eligible = np.arange(B) % 3 > 0
  mixed = run(0, z, labels, eligible, present)
  np.testing.assert_array_equal(mixed.embeddings["a"], z["a"])
  np.testing.assert_array_equal(mixed.targets, np.eye(K)[labels])
  np.testing.assert_array_equal(mixed.weight, 0)


def test_regression_targets_mix_linearly():
  y = jnp.array([-2.0, 0.0, 1.0, 5.0])
  z = {m: jnp.ones((4, 2)) for m in ("text", "audio")}
  mixed = mix(0, z, y, num_classes=None)
  expected = (y[mixed.source["text"]] + y[mixed.source["audio"]]) / 2
  np.testing.assert_allclose(mixed.targets, expected, atol=1e-6)


def test_tokens_and_integer_inputs_swap_whole_rows():
  z = {"a": jnp.arange(24.0).reshape(4, 3, 2), "b": jnp.arange(4, dtype=jnp.uint8)}
  mixed = mix(0, z, jnp.arange(4), num_classes=4)
  np.testing.assert_array_equal(mixed.embeddings["a"], z["a"][mixed.source["a"]])
  np.testing.assert_array_equal(mixed.embeddings["b"], mixed.source["b"])
  assert mixed.embeddings["b"].dtype == jnp.uint8


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_tiny_batches(rows):
  z = {m: jnp.ones((rows, 2)) for m in "abcd"}  # more modalities than rows
  mixed = mix(0, z, jnp.arange(rows), num_classes=3)
  np.testing.assert_array_equal(mixed.weight, float(rows > 1))


def test_hyperparameters_and_state_may_be_batched():
  names = ("audio", "video")
  z = {m: jnp.ones((4, 2)) for m in names}

  def run(score, eta):
    logits = {m: jnp.log(jnp.stack([s, 1 - s])[None]) for m, s in score.items()}
    state = mixing.init_exploration(names)
    state = mixing.exploration_score(state, logits, jnp.array([0]))
    return mixing.modality_mix(
      jax.random.key(0),
      z,
      jnp.arange(4),
      num_classes=4,
      exploration=state,
      eta=eta,
      proportions="exploration",
    )

  score = {"audio": jnp.array([0.2, 0.8]), "video": jnp.array([0.8, 0.2])}
  mixed = jax.jit(jax.vmap(run))(score, jnp.array([0.0, 2.0]))
  np.testing.assert_allclose(
    mixed.proportions[:, 0], [[1 / 2, 1 / 2], [2 / 7, 5 / 7]], atol=1e-6
  )
