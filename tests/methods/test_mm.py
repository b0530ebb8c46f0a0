"""Modality-mix learning as a term: objective, stages, selection, memory, bad fields."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import mixing
from mer_dg.contracts import Model, Outputs, Task, named_key
from mer_dg.methods import (
  SPECS,
  MethodError,
  Moment,
  build_method,
  hyperparameters_of,
)
from tests.factories import quick_jit

MODALITIES = ("b", "a")  # Not sorted: nothing may depend on the order.
ROWS, CLASSES, DIM, STEPS = 12, 3, 4, 20
TASK = Task(
  MODALITIES, CLASSES, num_domains=2, num_samples=30, total_steps=STEPS,
  widths=(DIM, DIM), fused_width=2 * DIM, projection_width=4,
)  # fmt: skip
HEADS = {
  m: jnp.asarray(np.random.default_rng(i).normal(size=(DIM, CLASSES)), jnp.float32)
  for i, m in enumerate(MODALITIES)
}


def fuse(z, present):
  logits = [jnp.where(present[m][:, None], z[m] @ HEADS[m], 0.0) for m in MODALITIES]
  return logits[0] + 0.7 * logits[1]


def unimodal(z):
  return {m: z[m] @ HEADS[m] for m in MODALITIES}


MODEL = Model(
  MODALITIES,
  apply=lambda *_, **__: pytest.fail("no term here needs another pass"),
  fuse=lambda params, z, present, key=None, *, train=False: fuse(z, present),
  heads=lambda params, z: unimodal(z),
  parts=lambda params: params,
)


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
    fused=jnp.concatenate([z[m] for m in MODALITIES], axis=-1),
    logits=fuse(z, batch["present"]),
  )


def no_params(method):
  return {"net": {}, "terms": {name: {} for name in method.terms}}


def first_memory(method):
  return method.init(jax.random.key(0), {})[1]


@functools.cache
def compiled(options, task):
  method = build_method("m", {"mm": dict(options)}, task)

  def loss(z, batch, hyper, memory, step, only):
    key = jax.random.fold_in(jax.random.key(3), step)
    moment, params = Moment(hyper, step, key, MODEL), no_params(method)
    outputs = outputs_of(z, batch)
    value, _ = method.loss(params, outputs, batch, memory, moment, only)
    _, found = method.loss(params, outputs, batch, memory, moment)
    new = method.update(memory, found, params, moment)
    return value, (new, method.logged(found), found["mm"][1]["phase"])

  gradient = jax.value_and_grad(loss, has_aux=True)
  return quick_jit(gradient, static_argnums=5)


def run(fields, z=None, batch=None, step=STEPS - 1, memory=None, task=TASK, only=()):
  """((loss, (memory, logged, phase)), gradient to the embeddings)."""
  batch = make_batch() if batch is None else batch
  z = make_embeddings() if z is None else z
  method = build_method("m", {"mm": fields}, task)
  options = tuple(method.options["mm"].items())
  hyper = jax.tree.map(jnp.float32, method.hyper)
  memory = first_memory(method) if memory is None else memory
  return compiled(options, task)(z, batch, hyper, memory, jnp.int32(step), only)


def mm_key(step):
  """What the term draws from."""
  return named_key(jax.random.fold_in(jax.random.key(3), step), "mm")


def mm_value(*args, **kw):
  return run(*args, **kw)[0][1][1]["loss/mm"]


def test_the_value_is_that_of_the_pure_functions():
  """The last step of a ramp: scores, selection, mix and objective put together."""
  z, batch = make_embeddings(), make_batch()
  fields = {"threshold": 0.5, "eta": 2.0, "unimodal_weight": 0.3, "weight_a": 2.0}
  (_, (memory, seen, _)), _ = run(fields, z, batch)
  logits = np.asarray(fuse(z, batch["present"]), np.float64)
  p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  label = np.asarray(batch["label"])
  eligible = (p.argmax(axis=-1) == label) & (p[np.arange(ROWS), label] >= 0.5)
  assert 3 < eligible.sum() < ROWS

  @quick_jit
  def by_hand(z, label, eligible):
    exploration = mixing.exploration_score(
      mixing.init_exploration(MODALITIES), unimodal(z), label
    )
    mixed = mixing.modality_mix(
      mm_key(STEPS - 1),
      z,
      label,
      num_classes=CLASSES,
      eligible=eligible,
      exploration=exploration,
      proportions="exploration",
      eta=2.0,
    )
    value, aux = mixing.modality_mix_loss(
      mixed,
      fuse(mixed.embeddings, mixed.present),
      unimodal_logits=unimodal(mixed.embeddings),
      unimodal_weight=0.3,
      modality_weights={"a": 2.0, "b": 1.0},
    )
    return value, aux, exploration

  expected, aux, exploration = by_hand(z, batch["label"], eligible)
  np.testing.assert_allclose(seen["loss/mm"], expected, rtol=1e-5)
  np.testing.assert_allclose(seen["mm/kl"], aux["kl"], rtol=1e-5)
  np.testing.assert_allclose(seen["mm/eligible_share"], eligible.mean(), rtol=1e-6)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6),
    memory["mm"].exploration,
    exploration,
  )
  focus = {m: float(seen[f"mm/focus/{m}"]) for m in MODALITIES}
  assert focus == {"a": float(exploration.focus == 0), "b": float(exploration.focus)}


def test_only_the_focus_gets_gradient_from_mixed_rows():
  (_, (memory, _, _)), grad = run({"threshold": 0.0}, only=("mm",))
  learning = sorted(MODALITIES)[int(memory["mm"].exploration.focus)]
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
    _, seen, phase = run(ALTERNATE, step=step)[0][1]
    standard.append(float(phase[0]))
    mixed.append(float(seen["loss/mm"]) > 0)
    assert int(phase[1]) == 0  # The focus before the batch; sorted: "a" at first.
  assert standard == [1, 1, 1, 1, 1, 1, 0, 0, 1, 1]
  assert not any(mixed)  # No sample was visited in standard learning yet.


def test_alternate_puts_the_gradient_of_mixed_learning_in_the_place_of_the_others():
  method = build_method("m", {"mm": ALTERNATE}, TASK)
  assert method.joint == ("fused",)
  change = method.terms["mm"].transform(method.hyper["mm"])
  asked = []

  def grad_fn(params, only=()):
    asked.append((params, only))
    return {"w": jnp.float32(5.0)}

  def update(standard):
    aux = {"phase": (jnp.float32(standard), 0)}
    grads, params = {"w": jnp.float32(3.0)}, {"w": jnp.float32(2.0)}
    return change.update(grads, None, params, grad_fn=grad_fn, aux=aux)[0]["w"]

  # In a standard phase the mixed objective is zero, and so is its gradient.
  assert update(0.0) == 5.0
  assert update(1.0) == 3.0 + 5.0
  assert asked == [({"w": 2.0}, ("mm",))] * 2


def test_alternate_selects_by_the_table_of_standard_learning():
  z, batch = make_embeddings(), make_batch()
  (_, (memory, _, _)), _ = run(ALTERNATE, z, batch, step=5)
  table = memory["mm"].table
  visited = np.zeros(30, bool)
  visited[2 * np.arange(ROWS)] = True
  np.testing.assert_array_equal(np.asarray(table.label) >= 0, visited)
  other = make_embeddings(seed=9)
  (loss, (after, seen, _)), _ = run(ALTERNATE, other, batch, step=6, memory=memory)
  # A mixed step: table and scores stand still; the sum is that of the other terms.
  jax.tree.map(np.testing.assert_array_equal, after["mm"], memory["mm"])
  assert seen["loss/mm"] > 0
  np.testing.assert_allclose(loss, seen["loss/fused"], rtol=1e-6)
  # Two of the four samples of each class, if the table has them right.
  confidence, correct = np.asarray(table.confidence), np.asarray(table.correct)
  chosen = 0
  for k in range(CLASSES):
    ids = np.flatnonzero(np.asarray(table.label) == k)
    chosen += correct[ids[np.argsort(-confidence[ids])[:2]]].sum()
  np.testing.assert_allclose(seen["mm/eligible_share"], chosen / ROWS, rtol=1e-6)


def test_entropy_sees_unmixed_rows_only():
  recipe = {"mer": {"normalize": "unit"}}
  z, batch = make_embeddings(), make_batch()
  entropies = []
  for terms in (recipe, recipe | {"mm": {"threshold": 0.0}}):
    method = build_method("m", terms, TASK)
    hyper = jax.tree.map(jnp.float32, method.hyper)

    @quick_jit
    def entropy(z, batch, hyper, *, method=method):
      moment = Moment(hyper, jnp.int32(STEPS - 1), jax.random.key(0), MODEL)
      params, memory = no_params(method), first_memory(method)
      outputs = outputs_of(z, batch)
      return method.loss(params, outputs, batch, memory, moment)[1]["mer"][0]

    entropies.append(entropy(z, batch, hyper))
  assert entropies[0] == entropies[1]


# The setting in which each number acts, where the default has it asleep.
_AWAKE = {
  "fraction": {"rule": "quantile"},
  "standard": {"schedule": "alternate"},
  "mixing": {"schedule": "alternate"},
  "beta": {"eta": 3.0},
}


def _trace(fields):
  """What the term does over the steps of a run: values and gradients."""
  memory, trace = None, []
  for step in range(STEPS):
    z = make_embeddings(seed=step)
    ((_, (memory, seen, phase)), grad) = run(
      fields, z, make_batch(), step=step, memory=memory, only=("mm",)
    )
    numbers = (seen["loss/mm"], phase[0], *grad.values())
    trace.append(np.concatenate([np.ravel(v) for v in numbers]))
  return np.stack(trace)


def _all_numbers():
  """``{number: Hyperparameter}`` over all options."""
  found = {}
  for option, values in SPECS["mm"].options.items():
    for value in values:
      found |= hyperparameters_of("mm", {option: value}, MODALITIES)
  return found


@pytest.mark.parametrize(
  "number", [n for n in _all_numbers() if n not in ("weight", "inner_lr")]
)
def test_no_number_is_without_effect(number):
  base = {"threshold": 0.3} | _AWAKE.get(number, {})
  if base.get("rule") == "quantile":
    del base["threshold"]
  default = _all_numbers()[number].default
  # A phase of one step cannot be shorter; doubled and halved, a decay leaves [0, 1].
  factor = {"beta": 0.9, "standard": 3.0, "mixing": 3.0}.get(number, 0.5)
  changed = factor * default
  traces = [_trace({**base, number: value}) for value in (default, changed)]
  assert not np.array_equal(*traces)


def test_no_option_is_without_effect():
  base = {"threshold": 0.3}
  reference = _trace(base)
  for option, values in SPECS["mm"].options.items():
    for value in values[1:]:
      fields = {**base, option: value}
      if option == "rule":
        del fields["threshold"]
      if value == "nested":
        continue  # See tests/training/test_step.py.
      assert not np.array_equal(_trace(fields), reference), (option, value)


@pytest.mark.parametrize(
  ("fields", "task", "message"),
  [
    ({"rule": "quantile"}, {"num_samples": 0}, "needs stable sample ids"),
    ({"threshold": 1.5}, {}, r"mm.threshold=1.5 must lie in \[0.0, 1.0\]"),
    ({"fraction": 0.5}, {}, r"fraction=0.5: no such field with .*rule='threshold'"),
    (
      {"ramp": 0.1, "schedule": "alternate"},
      {},
      r"ramp=0.1: no such field with schedule='alternate'",
    ),
    ({"schedule": "bilevel"}, {}, r"'bilevel' is not one of \('ramp', 'alternate'"),
  ],
)
def test_bad_options_and_numbers(fields, task, message):
  with pytest.raises(MethodError, match=r"config\.recipes\.m\.mm") as error:
    build_method("m", {"mm": fields}, TASK._replace(**task))
  assert error.match(message)


def test_a_batch_without_sample_ids():
  batch = make_batch()
  del batch["index"]
  with pytest.raises(ValueError, match=r"needs batch\['index'\]"):
    run(ALTERNATE, batch=batch)
