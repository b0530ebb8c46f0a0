"""Terms on outputs made by hand: values, masks, schedules, no field without effect."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import entropy
from mer_dg.contracts import Model, Outputs, Task
from mer_dg.entropy.regularizer import ESTIMATORS
from mer_dg.methods import SPECS, MethodError, Moment, build_method
from tests.factories import quick_jit

MODALITIES = ("a", "b")
RAW = {"normalize": "none", "bandwidth": 1.0}
TASK = Task(
  MODALITIES, num_classes=3, num_domains=2, num_samples=12, total_steps=10,
  widths=(4, 4), fused_width=8, projection_width=3,
)  # fmt: skip
# These terms look at outputs and nothing else.
MODEL = Model(MODALITIES, *[lambda *_, **__: pytest.fail("a network pass")] * 4)
ROWS = 12
RECIPES = {
  "erm": {},
  "unimodal": {"unimodal": {}},
  "kde": {"mer": {}},
  "kde per domain": {"mer": {"scope": "per_domain", "normalize": "unit"}},
  "logdet": {"mer": {"estimator": "logdet", "apply_to": "projector"}},
  "standardize": {"mer": {"normalize": "standardize"}},
}


def make_outputs(n=ROWS, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda d, scale=1.0: jnp.asarray(scale * rng.normal(size=(n, d)), jnp.float32)
  return Outputs(
    # Spread below 1, so that the variance floor of "logdet" is active.
    embeddings={m: draw(4, 0.6) for m in MODALITIES},
    projections={m: draw(3, 0.6) for m in MODALITIES},
    unimodal_logits={m: draw(3) for m in MODALITIES},
    fused=draw(8),
    logits=draw(3),
  )


def make_batch(n=ROWS, mask=None):
  mask = np.ones(n, bool) if mask is None else mask
  return {
    "label": jnp.asarray(np.arange(n) % 3, jnp.int32),
    "domain": jnp.asarray(np.arange(n) % 2, jnp.int32),
    "index": jnp.arange(n),
    "present": {m: jnp.asarray(mask) for m in MODALITIES},
    "mask": jnp.asarray(mask),
  }


@functools.cache
def compiled(options, task):
  """Loss, logged scalars and gradient; numbers are arguments, options share it."""
  recipe = {term: dict(chosen) for term, chosen in options}
  method = build_method("m", recipe, task)
  nothing = {name: {} for name in method.terms}

  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(outputs, batch, hyper, step):
    moment = Moment(hyper, step, jax.random.key(0), MODEL)
    params = {"net": {}, "terms": nothing}
    value, found = method.loss(params, outputs, batch, nothing, moment)
    return value, method.logged(found)

  return quick_jit(loss)


def run(recipe, outputs, batch, step=9, task=TASK):
  method = build_method("m", recipe, task)
  options = tuple((t, tuple(method.options[t].items())) for t in method.terms)
  hyper = jax.tree.map(jnp.float32, method.hyper)
  return compiled(options, task)(outputs, batch, hyper, jnp.int32(step))


def evaluate(*args, **kw):
  """(loss, logged) of a recipe; by default at the last step, schedules at their end."""
  return run(*args, **kw)[0]


def gradient(*args, **kw):
  """Gradient of the loss with respect to the outputs."""
  return run(*args, **kw)[1]


def test_mer_is_minus_the_weighted_sum_of_entropies():
  outputs, batch = make_outputs(), make_batch()
  recipe = {"mer": {**RAW, "weight": 0.3, "bandwidth": 0.7, "weight_b": 2.0}}
  loss, seen = evaluate(recipe, outputs, batch)
  h = {m: entropy.kde_entropy(outputs.embeddings[m], bandwidth=0.7) for m in MODALITIES}
  np.testing.assert_allclose(seen["entropy/a"], h["a"], rtol=1e-6)
  expected = evaluate({}, outputs, batch)[0] - 0.3 * (h["a"] + 2.0 * h["b"])
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_unit_features_lie_on_the_sphere_and_standardised_ones_are_standard():
  outputs, batch = make_outputs(), make_batch()
  z = np.asarray(outputs.embeddings["a"])
  unit = z / np.linalg.norm(z, axis=1, keepdims=True)
  standard = (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-6)
  for how, features in (("unit", unit), ("standardize", standard)):
    _, seen = evaluate({"mer": {"normalize": how, "bandwidth": 1.0}}, outputs, batch)
    expected = entropy.kde_entropy(jnp.asarray(features), bandwidth=1.0)
    np.testing.assert_allclose(seen["entropy/a"], expected, rtol=1e-5)


def test_per_domain_is_the_mean_over_domains():
  outputs, batch = make_outputs(), make_batch()
  _, seen = evaluate({"mer": {**RAW, "scope": "per_domain"}}, outputs, batch)
  parts = [
    entropy.kde_entropy(outputs.embeddings["a"][d::2], bandwidth=1.0) for d in (0, 1)
  ]
  np.testing.assert_allclose(seen["entropy/a"], np.mean(parts), rtol=1e-5)


def test_per_domain_with_one_domain_is_batch():
  outputs = make_outputs()
  batch = make_batch() | {"domain": jnp.zeros(ROWS, jnp.int32)}
  one = TASK._replace(num_domains=1)
  for recipe in ({"mer": {}}, {"mer": {"estimator": "logdet"}}):
    scoped = {"mer": {**recipe["mer"], "scope": "per_domain"}}
    expected = evaluate(recipe, outputs, batch, task=one)[0]
    actual = evaluate(scoped, outputs, batch, task=one)[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_a_domain_without_two_rows_is_no_part_of_the_mean():
  outputs, batch = make_outputs(), make_batch()
  lone = np.where(np.arange(ROWS) == 0, 1, 0)
  batch |= {"domain": jnp.asarray(lone, jnp.int32)}
  _, seen = evaluate({"mer": {**RAW, "scope": "per_domain"}}, outputs, batch)
  expected = entropy.kde_entropy(outputs.embeddings["a"][1:], bandwidth=1.0)
  np.testing.assert_allclose(seen["entropy/a"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_a_padded_batch_is_that_without_the_padding(name):
  """That nothing on padding has influence is in the battery."""
  outputs, short = make_outputs(), jax.tree.map(lambda a: a[:9], make_outputs())
  loss, grad = run(RECIPES[name], outputs, make_batch(mask=np.arange(ROWS) < 9))
  expected, expected_grad = run(RECIPES[name], short, make_batch(9))
  # Sums over other lengths may round differently.
  jax.tree.map(
    lambda g, h: np.testing.assert_allclose(g[:9], h, rtol=2e-5, atol=1e-6),
    grad, expected_grad,
  )  # fmt: skip
  np.testing.assert_allclose(loss[0], expected[0], rtol=1e-6)


@pytest.mark.parametrize(
  ("start", "ramp", "expected"),
  # Share of training after step t of 10 is (t + 1) / 10.
  [
    (0.0, 0.0, [1.0] * 10),
    (0.5, 0.0, [0.0] * 5 + [1.0] * 5),
    (0.0, 1.0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
    (0.2, 0.4, [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
    (1.0, 0.0, [0.0] * 10),
  ],
)
def test_schedule(start, ramp, expected):
  outputs, batch = make_outputs(), make_batch()
  full = evaluate({"mer": {}}, outputs, batch)[1]["loss/mer"]
  recipe = {"mer": {"start": start, "ramp": ramp}}
  factors = [
    evaluate(recipe, outputs, batch, step=t)[1]["loss/mer"] / full for t in range(10)
  ]
  np.testing.assert_allclose(factors, expected, atol=1e-5)


_WITH = {"kernel": ("kde", "renyi"), "width": ("kde", "renyi", "mixture")}
_FAST = ("kde", "logdet")  # The others take ten compilations each.


@pytest.mark.parametrize(
  "estimator",
  [e if e in _FAST else pytest.param(e, marks=pytest.mark.slow) for e in ESTIMATORS],
)
def test_no_field_of_mer_is_without_effect(estimator):
  """Every number and option changes the loss, or is refused with this estimator."""
  outputs, batch = make_outputs(), make_batch()
  base = {"estimator": estimator, "start": 0.0, "ramp": 1.0}
  method = build_method("m", {"mer": base}, TASK)
  loss = lambda fields: evaluate({"mer": {**base, **fields}}, outputs, batch, step=4)[0]
  reference = loss({})
  for number, value in method.hyper["mer"].items():
    changed = 0.7 if number in ("start", "ramp") else 1.7 * value
    assert loss({number: changed}) != reference, number
  for option, values in SPECS["mer"].options.items():
    for value in values:
      if option in ("estimator", "queue") or value == method.options["mer"][option]:
        continue
      refused = estimator not in _WITH[option] if option in _WITH else False
      if refused:
        with pytest.raises(MethodError, match=f"{option}={value!r} needs one of"):
          loss({option: value})
      else:
        assert loss({option: value}) != reference, (option, value)


def test_conditional_entropy_is_the_mean_over_classes_weighted_by_rows():
  outputs, batch = make_outputs(), make_batch()
  label = jnp.asarray([0] * 7 + [1] * 4 + [2], jnp.int32)  # One row of class 2.
  scoped = {"mer": {**RAW, "scope": "per_class"}}
  _, seen = evaluate(scoped, outputs, batch | {"label": label})
  h = lambda rows: entropy.kde_entropy(outputs.embeddings["a"][rows], bandwidth=1.0)
  expected = (7 * h(slice(0, 7)) + 4 * h(slice(7, 11))) / 11
  np.testing.assert_allclose(seen["entropy/a"], expected, rtol=1e-5)
  both = {"mer": {**RAW, "scope": "per_class_and_domain"}}
  _, seen = evaluate(both, outputs, batch | {"label": label})
  cells = [np.arange(c, stop)[d::2] for c, stop in ((0, 7), (7, 11)) for d in (0, 1)]
  cells = [rows for rows in cells if len(rows) > 1]
  expected = sum(len(rows) * h(rows) for rows in cells) / sum(map(len, cells))
  np.testing.assert_allclose(seen["entropy/a"], expected, rtol=1e-5)


def test_the_queue_is_part_of_the_density():
  outputs, batch = make_outputs(), make_batch()
  recipe = {"mer": {**RAW, "queue": 64}}
  method = build_method("m", recipe, TASK)
  _, memory = method.init(jax.random.key(0), {})
  params = {"net": {}, "terms": {"fused": {}, "mer": {}}}
  hyper = jax.tree.map(jnp.float32, method.hyper)
  moment = Moment(hyper, jnp.int32(9), jax.random.key(0), MODEL)
  _, found = method.loss(params, outputs, batch, memory, moment)
  memory = method.update(memory, found, params, moment)
  other = make_outputs(seed=1)
  _, found = method.loss(params, other, batch, memory, moment)
  expected = entropy.kde_entropy(
    other.embeddings["a"], bandwidth=1.0, memory=outputs.embeddings["a"]
  )
  np.testing.assert_allclose(found["mer"][1]["entropy/a"], expected, rtol=1e-5)
  with pytest.raises(MethodError, match="queue needs estimator='kde'"):
    build_method("m", {"mer": {"estimator": "knn", "queue": 64}}, TASK)


@pytest.mark.parametrize("term", ["fused", "unimodal"])
def test_the_weight_of_a_term_scales_it(term):
  outputs, batch = make_outputs(), make_batch()
  _, seen = evaluate({term: {}}, outputs, batch)
  light, _ = evaluate({term: {"weight": 1.0}}, outputs, batch)
  heavy, _ = evaluate({term: {"weight": 3.0}}, outputs, batch)
  np.testing.assert_allclose(heavy - light, 2 * seen[f"loss/{term}"], rtol=1e-5)
