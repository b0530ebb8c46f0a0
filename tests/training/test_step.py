"""The step: which encoders are held, and the first-order nested scheme."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import mixing
from mer_dg.contracts import InputSpec, Task
from mer_dg.methods import build_method
from mer_dg.networks import FUSIONS, make_network
from mer_dg.training.state import make_hyper, make_state
from mer_dg.training.step import make_train_step
from tests.factories import quick_jit

ROWS, CLASSES, STEPS = 12, 3, 10
TASK = Task(
  ("a", "b"), CLASSES, num_domains=2, num_samples=ROWS, total_steps=STEPS,
  widths=(4, 4), fused_width=8, projection_width=4,
)  # fmt: skip
HORIZON = {"schedule": "constant", "total_steps": STEPS}


@pytest.fixture(scope="module")
def network():
  return make_network(
    {m: InputSpec("vector", (5,)) for m in TASK.modalities},
    num_classes=CLASSES,
    embedding_dim=4,
    hidden_dim=6,
    classifier_dim=6,
    projector_dim=4,
    projection_dim=4,
    dropout=0.0,
  )


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  label = np.arange(ROWS) % CLASSES
  shift = 2.0 * rng.normal(size=(CLASSES, 5))[label]
  return {
    "inputs": {
      m: jnp.asarray(shift + rng.normal(size=(ROWS, 5)), jnp.float32)
      for m in TASK.modalities
    },
    "present": {m: jnp.ones(ROWS, bool) for m in TASK.modalities},
    "label": jnp.asarray(label, jnp.int32),
    "domain": jnp.asarray(np.arange(ROWS) % 2, jnp.int32),
    "index": jnp.arange(ROWS, dtype=jnp.int32),
    "mask": jnp.ones(ROWS, bool),
  }


def begin(network, recipe, lr=0.05):
  method = build_method("m", recipe, TASK)
  state = make_state(
    network,
    method,
    seed=0,
    scaling=network.init(jax.random.key(0))["scaling"],
    hyper=make_hyper(network, method, {"lr": lr, "weight_decay": 0.01}),
    **HORIZON,
  )
  return state, quick_jit(make_train_step(network, method, **HORIZON))


def first_moment(state):
  """Adam's, of the network; the optimiser comes after what terms put before it."""
  return state.opt_state[-1][1].mu["net"]


def changed(before, after):
  """Top-level parameters of which any number differs."""
  differs = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
  return {name for name, tree in differs.items() if any(jax.tree.leaves(tree))}


def test_mixed_phases_move_the_encoder_of_the_focus_only(network, batch):
  """With momentum and weight decay: a zero gradient alone would hold nothing."""
  recipe = {
    "unimodal": {},
    "mer": {"apply_to": "projector", "weight": 0.1},
    "mm": {
      "schedule": "alternate",
      "rule": "quantile",
      "fraction": 1.0,
      "warmup": 0.5,
      "standard": 0.2,
      "mixing": 0.2,
    },
  }
  state, step = begin(network, recipe)
  for t in range(STEPS):
    before, key = state, jax.random.key(t)
    state, metrics = step(state, batch, key)
    focus = TASK.modalities[int(before.memory["mm"].exploration.focus)]
    other = "b" if focus == "a" else "a"
    moved = changed(before.params["net"], state.params["net"])
    moments = first_moment(before), first_moment(state)
    everything = {"fusion"} | {
      f"{p}_{m}" for p in ("encoder", "projector", "head") for m in "ab"
    }
    held = {f"encoder_{other}", f"projector_{other}"} if t in (7, 8) else set()
    assert moved == everything - held, t
    assert changed(*moments) == everything - held, t
    if held:
      assert metrics["mm/n_mixed"] > 0
      assert metrics["loss/mm"] > 0


def test_nested_takes_mixed_learning_after_an_inner_step(network, batch):
  """Its gradient is the sum of two plain ones, at two places (methods.md C)."""
  mm = {"warmup": 0.0, "ramp": 0.0, "threshold": 0.0, "route": "all"}
  base = {"unimodal": {"weight": 0.5}}
  # The first step of Adam forgets the size of a gradient; its first moment does not.
  gradient = lambda state: jax.tree.map(lambda m: m / 0.1, first_moment(state))
  key, found = jax.random.key(1), {}
  for alpha in (0.0, 3.0):
    nested = {**mm, "schedule": "nested", "inner_lr": alpha}
    state, step = begin(network, {**base, "mm": nested})
    after, metrics = step(state, batch, key)
    found[alpha] = gradient(after)
    found[alpha, "loss"] = metrics["loss/mm"]  # Here, not after the inner step.
  state, step = begin(network, {**base, "mm": mm})
  after, metrics = step(state, batch, key)
  # Without an inner step it is the ramp scheme,
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, found[0.0], gradient(after))
  np.testing.assert_allclose(found[0.0, "loss"], metrics["loss/mm"], rtol=1e-6)

  # with one, standard learning here plus mixed learning there.
  plain, step_plain = begin(network, base)
  standard = gradient(step_plain(plain, batch, key)[0])
  net = plain.params["net"]
  decay = jax.tree.map(lambda p: 0.01 * p, net)
  inner = jax.tree.map(lambda p, g, d: p - 3.0 * (g - d), net, standard, decay)
  ahead = {k: inner[k] if "encoder" in k else v for k, v in net.items()}
  there = state.replace(params={**state.params, "net": ahead})
  both, metrics = step(there, batch, key)
  _, step_standard = begin(network, base)
  moved = plain.replace(params={**plain.params, "net": ahead})
  alone = gradient(step_standard(moved, batch, key)[0])
  mixed = jax.tree.map(jnp.subtract, gradient(both), alone)
  expected = jax.tree.map(jnp.add, standard, mixed)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
    found[3.0],
    expected,
  )
  assert found[3.0, "loss"] == found[0.0, "loss"] != metrics["loss/mm"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"mask": jnp.ones(ROWS)}, "assert_type failed"),
    ({"label": jnp.zeros((ROWS, 1), jnp.int32)}, "assert_rank failed"),
    ({"domain": jnp.zeros(ROWS - 1, jnp.int32)}, "assert_equal_shape_prefix failed"),
  ],
)
def test_a_batch_that_would_broadcast_is_refused(network, batch, change, message):
  state, step = begin(network, {})
  with pytest.raises(AssertionError, match=message):
    step(state, batch | change, jax.random.key(0))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_mixing_embeddings_is_mixing_inputs_under_every_fusion(batch, fusion):
  """Logits of mixed embeddings are those of mixed inputs, a missing modality among."""
  network = make_network(
    {m: InputSpec("vector", (5,)) for m in TASK.modalities},
    num_classes=CLASSES,
    fusion=fusion,
    embedding_dim=4,
    fusion_dim=8,
    hidden_dim=6,
    classifier_dim=6,
    embedding_dropout=0.5,  # In training only.
  )
  present = {**batch["present"], "b": jnp.arange(ROWS) % 5 != 0}

  def mixed(values):
    return mixing.modality_mix(
      jax.random.key(4), values, batch["label"], num_classes=CLASSES, present=present
    )

  @quick_jit
  def both(key):
    variables = network.init(key)
    outputs, _ = network.apply(variables, batch["inputs"], present, train=False)
    after, before = mixed(outputs.embeddings), mixed(batch["inputs"])
    encoded, _ = network.apply(
      variables, before.embeddings, before.present, train=False
    )
    logits = network.fuse(variables, after.embeddings, after.present)
    return after.source, before.source, logits, encoded.logits

  after, before, logits, encoded = both(jax.random.key(2))
  np.testing.assert_array_equal(after["a"], before["a"])
  moved = np.asarray(after["a"]) != np.asarray(after["b"])
  assert moved.sum() >= ROWS - 3
  np.testing.assert_allclose(logits, encoded, rtol=1e-5, atol=1e-6)
