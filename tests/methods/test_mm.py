"""Modality-mix learning as a term: objective, stages, selection, state, bad words."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import mixing
from mer_dg.methods import TERMS, MethodError, Task, build_method
from mer_dg.networks import Outputs

MODALITIES = ("b", "a")  # Not sorted: nothing may depend on the order.
ROWS, CLASSES, DIM, STEPS = 12, 3, 4, 20
TASK = Task(MODALITIES, CLASSES, num_domains=2, num_samples=30, total_steps=STEPS)
HEADS = {
  m: jnp.asarray(np.random.default_rng(i).normal(size=(DIM, CLASSES)), jnp.float32)
  for i, m in enumerate(MODALITIES)
}


def fuse(z, present):
  logits = [jnp.where(present[m][:, None], z[m] @ HEADS[m], 0.0) for m in MODALITIES]
  return logits[0] + 0.7 * logits[1]


def unimodal(z):
  return {m: z[m] @ HEADS[m] for m in MODALITIES}


def make_batch(mask=None, missing=None):
  mask = np.ones(ROWS, bool) if mask is None else mask
  present = {m: jnp.asarray(mask) for m in MODALITIES}
  if missing is not None:
    present["a"] = jnp.asarray(mask & ~missing)
  return {
    "label": jnp.asarray(np.arange(ROWS) % CLASSES, jnp.int32),
    "domain": jnp.asarray(np.arange(ROWS) % 2, jnp.int32),
    "index": jnp.asarray(2 * np.arange(ROWS), jnp.int32),
    "present": present,
    "mask": jnp.asarray(mask),
  }


def make_embeddings(seed=0):
  rng = np.random.default_rng(seed)
  # Towards the column of the label, so that some predictions are strong.
  label = np.arange(ROWS) % CLASSES
  return {
    m: jnp.asarray(
      0.8 * np.asarray(HEADS[m]).T[label] + 1.0 * rng.normal(size=(ROWS, DIM)),
      jnp.float32,
    )
    for m in MODALITIES
  }


def outputs_of(z, batch):
  return Outputs(
    embeddings=z,
    projections=z,
    unimodal_logits=unimodal(z),
    logits=fuse(z, batch["present"]),
  )


@functools.cache
def compiled(words, task):
  method = build_method("m", {"mm": dict(words)}, task)

  def loss(z, batch, hyper, state, step, only):
    factors, learns = method.control(hyper=hyper, state=state, step=step)
    value, (new, logged) = method.loss(
      outputs_of(z, batch),
      batch,
      hyper=hyper,
      state=state,
      step=step,
      key=jax.random.fold_in(jax.random.key(3), step),
      fuse=fuse,
      unimodal=unimodal,
      factors=factors,
      only=only,
    )
    return value, (new, logged, factors, learns)

  gradient = jax.value_and_grad(loss, has_aux=True)
  return jax.jit(gradient, static_argnums=5)


def run(fields, z=None, batch=None, step=STEPS - 1, state=None, task=TASK, only=None):
  """((loss, (state, logged, factors, learns)), gradient to the embeddings)."""
  batch = make_batch() if batch is None else batch
  z = make_embeddings() if z is None else z
  method = build_method("m", {"mm": fields}, task)
  words = tuple(method.words["mm"].items())
  hyper = jax.tree.map(jnp.float32, method.hyper)
  state = method.init_state() if state is None else state
  return compiled(words, task)(z, batch, hyper, state, jnp.int32(step), only)


def mm_key(step):
  """What the term draws from: it is the second of its method, hence the 1."""
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(3), step), 1)


def mm_value(*args, **kw):
  return run(*args, **kw)[0][1][1]["loss/mm"]


def test_the_value_is_that_of_the_pure_functions():
  """The last step of a ramp: scores, selection, mix and objective put together."""
  z, batch = make_embeddings(), make_batch()
  fields = {"threshold": 0.5, "eta": 2.0, "unimodal_weight": 0.3, "weight_a": 2.0}
  (_, (state, logged, _, _)), _ = run(fields, z, batch)
  exploration = mixing.exploration_score(
    mixing.init_exploration(MODALITIES), unimodal(z), batch["label"]
  )
  logits = np.asarray(fuse(z, batch["present"]), np.float64)
  p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  label = np.asarray(batch["label"])
  eligible = (p.argmax(axis=-1) == label) & (p[np.arange(ROWS), label] >= 0.5)
  assert 3 < eligible.sum() < ROWS
  mixed = mixing.modality_mix(
    mm_key(STEPS - 1),
    z,
    batch["label"],
    num_classes=CLASSES,
    eligible=jnp.asarray(eligible),
    exploration=exploration,
    proportions="exploration",
    eta=2.0,
  )
  expected, aux = mixing.modality_mix_loss(
    mixed,
    fuse(mixed.embeddings, mixed.present),
    unimodal_logits=unimodal(mixed.embeddings),
    unimodal_weight=0.3,
    modality_weights={"a": 2.0, "b": 1.0},
  )
  np.testing.assert_allclose(logged["loss/mm"], expected, rtol=1e-5)
  np.testing.assert_allclose(logged["mm/kl"], aux["kl"], rtol=1e-5)
  np.testing.assert_allclose(logged["mm/eligible_share"], eligible.mean(), rtol=1e-6)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6),
    state["mm"].exploration,
    exploration,
  )
  focus = {m: float(logged[f"mm/focus/{m}"]) for m in MODALITIES}
  assert focus == {"a": float(exploration.focus == 0), "b": float(exploration.focus)}


def test_only_the_focus_gets_gradient_from_mixed_rows():
  (_, (state, _, _, _)), grad = run({"threshold": 0.0}, only=("mm",))
  learning = sorted(MODALITIES)[int(state["mm"].exploration.focus)]
  for m in MODALITIES:
    assert (np.abs(grad[m]).max() > 0) == (m == learning)
  _, grad = run({"threshold": 0.0, "route": "all"}, only=("mm",))
  assert all(np.abs(g).max() > 0 for g in grad.values())


def test_ramp_is_standard_learning_first():
  at = lambda step, **shares: mm_value(shares, step=step)
  full = [at(t, warmup=0.0, ramp=0.0) for t in range(10)]
  factors = [at(t, warmup=0.2, ramp=0.2) / full[t] for t in range(10)]
  np.testing.assert_allclose(factors, [0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1], rtol=1e-5)
  # Nothing of the term before: the loss and its gradient are those of plain fusion.
  (before, _), grad = run({"warmup": 0.5}, step=9)
  (plain, _), expected = run({"weight": 0.0}, step=9)
  assert before == plain
  jax.tree.map(np.testing.assert_array_equal, grad, expected)


ALTERNATE = {
  "schedule": "alternate",
  "rule": "quantile",
  "warmup": 0.2,
  "standard": 0.1,
  "mixing": 0.1,
}


def test_alternate_takes_one_objective_at_a_time():
  standard, mixed = [], []
  for step in range(10):
    _, logged, factors, learns = run(ALTERNATE, step=step)[0][1]
    standard.append(float(factors["fused"]))
    mixed.append(float(logged["loss/mm"]) > 0)
    # An encoder that is not the focus (sorted: "a" at first) waits while mixing.
    assert bool(learns["a"])
    assert bool(learns["b"]) == bool(factors["fused"])
  assert standard == [1, 1, 1, 1, 1, 1, 0, 0, 1, 1]
  assert not any(mixed)  # No sample was visited in standard learning yet.


def test_alternate_selects_by_the_table_of_standard_learning():
  z, batch = make_embeddings(), make_batch()
  (_, (state, _, _, _)), _ = run(ALTERNATE, z, batch, step=5)
  table = state["mm"].table
  visited = np.zeros(30, bool)
  visited[2 * np.arange(ROWS)] = True
  np.testing.assert_array_equal(np.asarray(table.label) >= 0, visited)
  other = make_embeddings(seed=9)
  (loss, (after, logged, _, _)), _ = run(ALTERNATE, other, batch, step=6, state=state)
  # A mixed step: table and scores stand still, the fused term is switched off.
  jax.tree.map(np.testing.assert_array_equal, after["mm"], state["mm"])
  assert logged["loss/fused"] > 0
  np.testing.assert_allclose(loss, logged["loss/mm"], rtol=1e-6)
  # Two of the four samples of each class, if the table has them right.
  confidence, correct = np.asarray(table.confidence), np.asarray(table.correct)
  chosen = 0
  for k in range(CLASSES):
    ids = np.flatnonzero(np.asarray(table.label) == k)
    chosen += correct[ids[np.argsort(-confidence[ids])[:2]]].sum()
  np.testing.assert_allclose(logged["mm/eligible_share"], chosen / ROWS, rtol=1e-6)


@pytest.mark.parametrize(
  "fields", [{"threshold": 0.0}, ALTERNATE], ids=["ramp", "alternate"]
)
def test_padding_rows_and_missing_modalities_have_no_influence(fields):
  mask, missing = np.arange(ROWS) < 9, np.arange(ROWS) % 4 == 0
  batch = make_batch(mask, missing)
  state = run(fields, batch=batch, step=5)[0][1][0]
  z = make_embeddings()
  value, grad = run(fields, z, batch, step=7, state=state)
  assert value[1][1]["mm/n_mixed"] > 0
  garbage = {m: jnp.where(batch["present"][m][:, None], v, 1e3) for m, v in z.items()}
  again, grad_again = run(fields, garbage, batch, step=7, state=state)
  jax.tree.map(np.testing.assert_array_equal, value, again)
  for m in MODALITIES:
    np.testing.assert_array_equal(grad[m], grad_again[m])
    np.testing.assert_array_equal(grad[m][~np.asarray(batch["present"][m])], 0.0)


@pytest.mark.parametrize("rows", [0, 1])
def test_without_an_eligible_row_the_term_is_zero_and_finite(rows):
  batch = make_batch(np.arange(ROWS) < rows)
  (value, (_, logged, _, _)), grad = run({}, batch=batch)
  assert logged["loss/mm"] == 0
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in grad.values())


def test_feature_mixup_is_a_word():
  """One source and one amount for all modalities: targets are those of mixup."""
  fields = {"blend": "mixup", "route": "all", "threshold": 0.0, "unimodal_weight": 0.0}
  z, batch = make_embeddings(), make_batch()
  (_, (_, logged, _, _)), _ = run(fields, z, batch)
  confident = jnp.argmax(fuse(z, batch["present"]), axis=-1) == batch["label"]
  mixed = mixing.modality_mix(
    mm_key(STEPS - 1),
    z,
    batch["label"],
    num_classes=CLASSES,
    soft=1.0,
    shared=True,
    eligible=confident,
  )
  np.testing.assert_array_equal(mixed.source["a"], mixed.source["b"])
  logits = fuse(mixed.embeddings, mixed.present)
  rows = -jnp.sum(mixed.targets * jax.nn.log_softmax(logits), axis=-1)
  expected = jnp.sum(mixed.weight * rows) / jnp.sum(mixed.weight)
  np.testing.assert_allclose(logged["loss/mm"], expected, rtol=1e-5)


def test_entropy_sees_unmixed_rows_only():
  recipe = {"mer": {"normalize": "unit"}}
  z, batch = make_embeddings(), make_batch()
  entropies = []
  for terms in (recipe, recipe | {"mm": {"threshold": 0.0}}):
    method = build_method("m", terms, TASK)
    _, (_, logged) = method.loss(
      outputs_of(z, batch),
      batch,
      hyper=jax.tree.map(jnp.float32, method.hyper),
      state=method.init_state(),
      step=jnp.int32(STEPS - 1),
      key=jax.random.key(0),
      fuse=fuse,
      unimodal=unimodal,
    )
    entropies.append(logged["loss/mer"])
  assert entropies[0] == entropies[1]


# The setting in which each number and word acts, where the default has it asleep.
_AWAKE = {
  "fraction": {"rule": "quantile"},
  "temperature": {"route": "weighted"},
  "concentration": {"proportions": "dirichlet"},
  "alpha": {"blend": "soft", "route": "all"},
  "standard": {"schedule": "alternate"},
  "mixing": {"schedule": "alternate"},
  "beta": {"eta": 3.0},
}


def _trace(fields):
  """What the term does over the steps of a run: values and gradients."""
  state, seen = None, []
  for step in range(STEPS):
    z = make_embeddings(seed=step)
    ((_, (state, logged, factors, _)), grad) = run(
      fields, z, make_batch(), step=step, state=state, only=("mm",)
    )
    numbers = (logged["loss/mm"], *factors.values(), *grad.values())
    seen.append(np.concatenate([np.ravel(v) for v in numbers]))
  return np.stack(seen)


@pytest.mark.parametrize(
  "number", [n for n in TERMS["mm"].numeric if n not in ("weight", "inner_lr")]
)
def test_no_number_is_without_effect(number):
  base = {"threshold": 0.3} | _AWAKE.get(number, {})
  if base.get("rule") == "quantile":
    del base["threshold"]
  default = TERMS["mm"].numeric[number].default
  # A phase of one step cannot be shorter; doubled and halved, a decay leaves [0, 1].
  factor = {"beta": 0.9, "standard": 3.0, "mixing": 3.0}.get(number, 0.5)
  changed = factor * default
  traces = [_trace({**base, number: value}) for value in (default, changed)]
  assert not np.array_equal(*traces)


def test_no_word_is_without_effect():
  base = {"threshold": 0.3}
  reference = _trace(base)
  for option, values in TERMS["mm"].options.items():
    for value in values[1:]:
      fields = {**base, option: value}
      if option == "rule":
        del fields["threshold"]
      if option == "require_distinct" or value == "nested":
        continue  # See the two tests below, and tests/training/test_step.py.
      assert not np.array_equal(_trace(fields), reference), (option, value)


def test_rows_of_one_label_count_only_if_told_so():
  batch = make_batch() | {"label": jnp.zeros(ROWS, jnp.int32)}
  z = {m: jnp.tile(5.0 * HEADS[m].T[:1], (ROWS, 1)) for m in MODALITIES}
  logged = lambda fields: run(fields, z, batch)[0][1][1]
  assert logged({"threshold": 0.0})["mm/n_mixed"] == 0
  assert logged({"threshold": 0.0, "require_distinct": False})["mm/n_mixed"] == ROWS


@pytest.mark.parametrize(
  ("fields", "task", "message"),
  [
    ({"pool": "other_domain"}, {"num_domains": 1}, "needs at least two source domains"),
    ({"blend": "mixup", "swap": "focus_only"}, {}, "swap must be 'all'"),
    ({"rule": "quantile"}, {"num_samples": 0}, "needs stable sample ids"),
    ({"threshold": 1.5}, {}, r"mm.threshold=1.5 must lie in \[0.0, 1.0\]"),
    ({"fraction": 0.5}, {}, "fraction=0.5 has no effect with rule='threshold'"),
    ({"ramp": 0.1, "schedule": "alternate"}, {}, "ramp=0.1 has no effect"),
    ({"schedule": "bilevel"}, {}, r"'bilevel' is not one of \('ramp', 'alternate'"),
  ],
)
def test_bad_words_and_numbers(fields, task, message):
  with pytest.raises(MethodError, match=r"config\.recipes\.m\.mm") as error:
    build_method("m", {"mm": fields}, TASK._replace(**task))
  assert error.match(message)


def test_a_batch_without_sample_ids():
  batch = make_batch()
  del batch["index"]
  with pytest.raises(ValueError, match=r"needs batch\['index'\]"):
    run(ALTERNATE, batch=batch)
