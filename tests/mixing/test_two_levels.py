"""Exploration score, confident samples, gradient routing and the stage schedule."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import mixing

few = hypothesis.settings(max_examples=40, deadline=None, derandomize=True)


def logits_for(p):
  """Two-class logits whose probability of class 0 is ``p``, ``[B, 2]``."""
  p = jnp.asarray(p)
  return jnp.log(jnp.stack([p, 1 - p], axis=-1))


# Exploration ----------------------------------------------------------------------


def test_running_score_by_hand():
  y = jnp.array([0, 0, 1, 0])
  mask = jnp.array([True, True, True, False])
  a, v = [0.2, 0.4, 0.1, 1.0], [0.9, 0.6, 0.7, 0.0]
  state = mixing.init_exploration(("v", "a"))
  options = {"beta": 0.9, "mask": mask}
  update = lambda state, a, v: mixing.exploration_score(
    state, {"a": logits_for(a), "v": logits_for(v)}, y, **options
  )
  state = update(state, a, v)
  first_a, first_v = (0.2 + 0.4 + 0.9) / 3, (0.9 + 0.6 + 0.3) / 3  # 0.5 and 0.6
  np.testing.assert_allclose([state.score["a"], state.score["v"]], [first_a, first_v])
  np.testing.assert_allclose(state.gap["a"], 1 - 0.5 / 0.6, rtol=1e-5)
  assert state.gap["v"] == 0
  assert state.focus == 0
  state = update(state, v, a)
  second_a, second_v = 0.9 * 0.5 + 0.1 * 0.6, 0.9 * 0.6 + 0.1 * 0.5
  np.testing.assert_allclose(state.score["a"], second_a, rtol=1e-6)
  np.testing.assert_allclose(state.gap["a"], 1 - second_a / second_v, rtol=1e-5)


@few
@hypothesis.given(hnp.arrays(np.float32, 3, elements=st.floats(0, 1, width=32)))
def test_focus_and_gap_are_consistent(p):
  y = jnp.array([0])
  logits = {m: logits_for(p[None, j] * 0.98 + 0.01) for j, m in enumerate("abc")}
  state = mixing.exploration_score(mixing.init_exploration("abc"), logits, y)
  gap = np.array([state.gap[m] for m in "abc"])
  assert ((gap >= 0) & (gap < 1)).all()
  assert gap.min() == 0
  assert gap[state.focus] == gap.max()


def test_missing_modality_keeps_its_score_and_is_never_the_focus():
  y = jnp.array([0, 0])
  logits = {"a": logits_for([0.1, 0.1]), "v": logits_for([0.8, 0.6])}
  absent = {"a": jnp.zeros(2, bool), "v": jnp.array([True, False])}
  start = mixing.init_exploration(("a", "v"))
  state = mixing.exploration_score(start, logits, y, present=absent)
  assert state.score["a"] == 0
  np.testing.assert_allclose(state.score["v"], 0.8, rtol=1e-6)
  assert state.focus == 1  # the only one that is known
  np.testing.assert_array_equal([state.gap["a"], state.gap["v"]], 0)
  state = mixing.exploration_score(state, logits, y)
  np.testing.assert_allclose(state.score["a"], 0.1, rtol=1e-6)  # its first batch
  assert state.focus == 0


def test_an_empty_batch_changes_nothing():
  y = jnp.array([0])
  logits = {"a": logits_for([0.3]), "v": logits_for([0.6])}
  state = mixing.exploration_score(mixing.init_exploration("av"), logits, y)
  after = mixing.exploration_score(state, logits, y, mask=jnp.zeros(1, bool))
  jax.tree.map(np.testing.assert_array_equal, state, after)


def test_exploration_of_a_regression():
  y = jnp.array([1.0, -1.0])
  outputs = {"a": jnp.array([[1.0], [0.0]]), "v": jnp.array([3.0, 1.0])}
  state = mixing.exploration_score(mixing.init_exploration("av"), outputs, y)
  np.testing.assert_allclose(state.score["a"], (1 + np.exp(-1.0)) / 2, rtol=1e-6)
  np.testing.assert_allclose(state.score["v"], np.exp(-2.0), rtol=1e-6)


def test_no_gradient_through_the_score():
  def total(p):
    logits = {"a": logits_for(p), "v": logits_for([0.5])}
    start = mixing.init_exploration("av")
    state = mixing.exploration_score(start, logits, jnp.array([0]))
    return sum(sum(d.values()) for d in (state.score, state.gap))

  np.testing.assert_array_equal(jax.grad(total)(jnp.array([0.3])), 0)


# Confident samples ----------------------------------------------------------------


def test_threshold_rule():
  confidence, ok = (
    jnp.array([0.9, 0.7, 0.69, 0.9]),
    jnp.array([True, True, True, False]),
  )
  chosen = mixing.select_confident(confidence, ok, threshold=0.7)
  np.testing.assert_array_equal(chosen, [True, True, False, False])
  swept = jax.vmap(lambda t: mixing.select_confident(confidence, ok, threshold=t))
  np.testing.assert_array_equal(swept(jnp.array([0.5, 0.95])).sum(axis=1), [3, 0])


@few
@hypothesis.given(
  seed=st.integers(0, 1000), fraction=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.8, 1.0])
)
def test_quantile_rule_against_a_loop(seed, fraction):
  rng = np.random.default_rng(seed)
  n = 40
  confidence = rng.integers(0, 12, n).astype(np.float32) / 12  # with ties
  ok, valid, labels = rng.random(n) < 0.7, rng.random(n) < 0.8, rng.integers(0, 4, n)
  expected = np.zeros(n, bool)
  for c in range(4):
    rows = np.flatnonzero(valid & (labels == c))
    ranked = sorted(rows, key=lambda i: (-confidence[i], i))
    expected[ranked[: int(np.ceil(round(fraction * len(rows), 6)))]] = True
  chosen = mixing.select_confident(
    confidence, ok, rule="quantile", fraction=fraction, labels=labels, mask=valid
  )
  np.testing.assert_array_equal(chosen, expected & ok)
  some = rng.integers(0, n, 15)  # Repeats and invalid rows among them.
  counted = mixing.select_confident(
    confidence,
    ok,
    rule="quantile",
    fraction=fraction,
    labels=labels,
    mask=valid,
    rows=some,
  )
  np.testing.assert_array_equal(counted, (expected & ok)[some])


def test_quantile_rule_keeps_rare_classes_and_ranks_regressions_together():
  confidence = jnp.array([0.9, 0.8, 0.7, 0.6, 0.01])
  ok = jnp.ones(5, bool)
  labels = jnp.array([0, 0, 0, 0, 1])
  rule = {"rule": "quantile", "fraction": 0.25}
  chosen = mixing.select_confident(confidence, ok, labels=labels, **rule)
  np.testing.assert_array_equal(chosen, [True, False, False, False, True])
  chosen = mixing.select_confident(confidence, ok, **rule)
  np.testing.assert_array_equal(chosen, [True, True, False, False, False])


def test_table_keeps_the_last_visit_and_ignores_padding():
  table = mixing.init_confidence_table(4)
  update = jax.jit(mixing.update_confidence_table)
  y = jnp.array([0, 1, 0])
  mask = jnp.array([True, True, False])
  table = update(table, jnp.array([3, 0, 0]), logits_for([0.9, 0.8, 0.9]), y, mask=mask)
  np.testing.assert_allclose(table.confidence, [0.2, 0, 0, 0.9], rtol=1e-6)
  np.testing.assert_array_equal(table.correct, [False, False, False, True])
  np.testing.assert_array_equal(table.label, [1, -1, -1, 0])
  outside = jnp.array([-1, 0, 7])  # ids that are not in the table write nothing
  table = update(table, outside, logits_for([0.9, 0.3, 0.9]), y, mask=mask | ~mask)
  np.testing.assert_allclose(table.confidence, [0.7, 0, 0, 0.9], rtol=1e-6)
  assert table.correct[0]
  seen = table.label >= 0
  chosen = mixing.select_confident(
    table.confidence, table.correct, rule="quantile", labels=table.label, mask=seen
  )
  np.testing.assert_array_equal(chosen, [True, False, False, True])


# Routing --------------------------------------------------------------------------


def explored(scores):
  logits = {m: logits_for([s]) for m, s in scores.items()}
  state = mixing.init_exploration(tuple(scores))
  return mixing.exploration_score(state, logits, jnp.array([0]))


SCORES = {"video": 0.9, "audio": 0.6, "flow": 0.3}


def routed_gradients(route, scores):
  """Gradients towards encoder weights of a loss that couples all modalities."""
  x = {m: jnp.ones((5, 2)) * (1.0 + j) for j, m in enumerate(SCORES)}
  y = jnp.array([0, 1, 2, 0, 1])

  def loss(weights, state):
    z = {m: jnp.tanh(x[m] @ weights[m]) for m in SCORES}
    mixed = mixing.modality_mix(jax.random.key(0), z, y, num_classes=3)
    z = mixed.embeddings
    z = mixing.route_gradients(z, state) if route == "focus" else z
    logits = sum(z.values()) * z["audio"] + z["flow"] ** 2
    value, _ = mixing.modality_mix_loss(mixed, logits, unimodal_logits=z)
    return value

  keys = dict(zip(SCORES, jax.random.split(jax.random.key(1), 3), strict=True))
  weights = {m: jax.random.normal(keys[m], (2, 3)) for m in SCORES}
  return jax.jit(jax.value_and_grad(loss))(weights, explored(scores))


@pytest.mark.parametrize("weakest", SCORES)
def test_focus_stops_the_other_encoders(weakest):
  scores = SCORES | {weakest: 0.1}
  value, grad = routed_gradients("focus", scores)
  full_value, full = routed_gradients("all", scores)
  np.testing.assert_allclose(value, full_value, rtol=1e-6)
  for m in SCORES:
    if m == weakest:
      assert np.abs(full[m]).max() > 1e-3
      np.testing.assert_allclose(grad[m], full[m], rtol=1e-5)
    else:
      np.testing.assert_array_equal(grad[m], 0)


def test_focus_stops_infinite_gradients():
  state = explored({"a": 0.1, "v": 0.9})

  def loss(z):
    z = mixing.route_gradients(z, state)
    return jnp.sqrt(z["v"]).sum() + z["a"].sum()  # d sqrt(z) / dz is infinite at 0

  grad = jax.grad(loss)({"a": jnp.zeros(2), "v": jnp.zeros(2)})
  np.testing.assert_array_equal(grad["v"], 0)
  np.testing.assert_array_equal(grad["a"], 1)


# Stages ---------------------------------------------------------------------------


def test_ramp():
  steps = jnp.arange(8)
  stage = mixing.mix_stage(steps, warmup_steps=3, ramp_steps=4)
  np.testing.assert_allclose(stage.mix, [0, 0, 0, 0, 0.25, 0.5, 0.75, 1])
  np.testing.assert_array_equal(stage.standard, 1)
  at_once = mixing.mix_stage(steps, warmup_steps=3)
  np.testing.assert_array_equal(at_once.mix, [0, 0, 0, 1, 1, 1, 1, 1])
  always = mixing.mix_stage(0, warmup_steps=0)
  assert always.mix == 1


def test_alternate():
  steps = jnp.arange(10)
  phases = {
    "schedule": "alternate",
    "warmup_steps": 2,
    "standard_steps": 1,
    "mix_steps": 2,
  }
  stage = mixing.mix_stage(steps, **phases)
  np.testing.assert_array_equal(stage.mix, [0, 0, 0, 1, 1, 0, 1, 1, 0, 1])
  np.testing.assert_array_equal(stage.standard, 1 - stage.mix)
  never = mixing.mix_stage(steps, **phases | {"mix_steps": 0})
  np.testing.assert_array_equal(never.mix, 0)


def test_lengths_may_be_traced_and_batched():
  run = jax.jit(
    jax.vmap(lambda w, r: mixing.mix_stage(5, warmup_steps=w, ramp_steps=r).mix)
  )
  np.testing.assert_allclose(
    run(jnp.array([0, 4, 6, 5]), jnp.array([10, 2, 2, 0])), [0.5, 0.5, 0, 1]
  )


# Bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: mixing.init_exploration(("a", "a")), "modalities must be distinct"),
    (lambda: explored_with(unimodal_logits={"a": logits_for([0.5])}), "expected"),
    (lambda: select(rule="top"), "rule='top' is not one of .*quantile"),
    (lambda: select(rule="quantile", fraction=1.5), r"fraction=1.5 is not in \[0, 1\]"),
    (lambda: select(mask=jnp.ones(3, bool)), r"mask must have shape \(2,\)"),
    (lambda: mixing.init_confidence_table(0), "num_samples must be >= 1"),
    (lambda: mixing.prediction_strength(jnp.zeros(3), jnp.zeros(3, int)), r"\[B, K\]"),
    (lambda: mixing.prediction_strength(jnp.zeros(3), jnp.zeros(2)), "do not fit"),
    (lambda: mixing.route_gradients({"a": jnp.zeros(2)}, explored(SCORES)), "expected"),
    (lambda: mixing.mix_stage(0, warmup_steps=-1), "warmup_steps=-1 must be >= 0"),
    (lambda: mixing.mix_stage(0, schedule="cosine", warmup_steps=0), "'cosine' is not"),
  ],
)
def test_bad_values_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def explored_with(**change):
  logits = {"a": logits_for([0.5]), "v": logits_for([0.5])}
  arguments = {"unimodal_logits": logits, "labels": jnp.array([0])} | change
  return mixing.exploration_score(mixing.init_exploration("av"), **arguments)


def select(**options):
  return mixing.select_confident(jnp.ones(2), jnp.ones(2, bool), **options)
