"""One battery over every registered method: what must hold of each of them.

A new method is tested by being registered. Nearly all of the time goes into compiling,
so that each method has one program: a wave, with its step and the gradient of its loss,
whose lanes differ in masks, missing modalities, numbers and parameters. The step of a
run alone is held against the wave for some methods (for all: pytest -m slow), and for
all of them by the golden steps.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import methods
from mer_dg.methods import SETTINGS, SPECS, Moment
from mer_dg.training.checkpoints import Checkpoints
from mer_dg.training.state import evaluated
from tests import factories
from tests.factories import ROWS, quick_jit, tiny_batch, tiny_problem

RECIPES = methods.recipes()
_NAMED = {term for recipe in RECIPES.values() for term in recipe}
RECIPES |= {term: {term: {}} for term in SPECS if term not in _NAMED | {"fused"}}
# Fields that wake up what sleeps on so few rows of a network that knows nothing yet.
AWAKE = {"threshold": 0.0, "fraction": 1.0}
for _recipe in RECIPES.values():
  if "mm" in _recipe:
    _recipe["mm"] |= {k: v for k, v in AWAKE.items() if k in _recipe["mm"]}

_ALL, _NONE = np.ones(ROWS, bool), np.zeros(ROWS, bool)
MASKS = {
  "whole": {"mask": _ALL, "present": {"a": _ALL}},
  "padding": {},
  "no row": {"mask": _NONE},
  "one row": {"mask": np.arange(ROWS) == 3},
  "nobody has a": {"present": {"a": _NONE}},
  "nobody has b": {"present": {"b": _NONE}},
  "nobody has anything": {"present": {"a": _NONE, "b": _NONE}},
  "nobody has both": {
    "present": {"a": np.arange(ROWS) % 2 > 0, "b": np.arange(ROWS) % 2 < 1}
  },
}


# Some of what an evaluation measures.
VALIDATION = {
  f"val/{m}": jnp.float32(0.5) for m in ("nll", "accuracy", "source0/accuracy")
}


LANES = len(MASKS)


class Trained:
  """A method and its program, a wave of `LANES` runs."""

  def __init__(self, recipe):
    problem = tiny_problem(recipe)
    self.method, self.network = problem.method, problem.network
    self._begin, self.step, self.traces = problem.begin, problem.step, 0

    def value(outputs, batch, state, key):
      rates, every = state.hyper["network"], tuple(self.method.terms)
      model = self.network.model(state.model_state, rates, key)
      moment = Moment(state.hyper["method"], state.step, key, model)
      given = state.params, outputs, batch, state.memory, moment
      return self.method.loss(*given, every)[0]

    def lane(state, batch, key, outputs):
      self.traces += 1  # `chex.assert_max_traces` takes all recipes for one function.
      turn = lambda d: {k: d[k] for k in reversed(d)} if isinstance(d, dict) else d
      batch = {k: turn(v) for k, v in batch.items()}  # Their order must not matter.
      loss = jax.value_and_grad(value)(outputs, batch, state, key)
      return *self.step(state, batch, key), loss

    self._wave = quick_jit(jax.vmap(lane))
    self._chosen = quick_jit(jax.vmap(lambda s: evaluated(s, self.method)["params"]))
    self._on_eval = quick_jit(jax.vmap(self.method.on_eval, in_axes=(0, None)))

  def begin(self, *lanes):
    """States at a step when schedules are past their beginning.

    Args:
      *lanes: ``{"seed": 0} | {group or term: numbers}``; the last one fills up.
    """
    made = [self._begin(step=factories.STEPS // 2, **lane) for lane in lanes or ({},)]
    return stacked(filled(made))

  def take(self, states, steps, *lanes):
    """``(states, metrics, (loss, gradient))`` after some steps, a batch for each.

    Args:
      states: Of all lanes.
      steps: Their number.
      *lanes: Arguments of `tiny_batch`; the last one fills up.
    """
    found = ()
    for _ in range(steps):
      step = int(states.step[0])
      batches = stacked([tiny_batch(step, **rows) for rows in filled(lanes or ({},))])
      key = jax.random.fold_in(jax.random.key(7), step)
      found = self._wave(states, batches, jnp.stack([key] * LANES), self.given)
      states = found[0]
    assert self.traces == 1, "the state that a step returns is of another kind"
    return found

  @functools.cached_property
  def given(self):
    """Outputs of the network for every lane: all that a loss may look at, made up."""
    rng, batch = np.random.default_rng(3), tiny_batch()

    def apply():
      variables = self.network.init(jax.random.key(0))
      return self.network.apply(variables, batch["inputs"], batch["present"])[0]

    draw = lambda a: np.float32(rng.normal(size=(LANES, *a.shape)))
    return jax.tree.map(draw, jax.eval_shape(apply))

  def judged(self, states):
    """The states after an evaluation."""
    if not self.method.watches:
      return states
    return states.replace(memory=self._on_eval(states.memory, VALIDATION))


def filled(lanes):
  return [*lanes, *lanes[-1:] * (LANES - len(lanes))]


def stacked(trees):
  """Stacked by NumPy: every shape that JAX stacks is a program of its own."""
  is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
  join = lambda *a: (
    jax.random.wrap_key_data(np.stack([jax.random.key_data(k) for k in a]))
    if is_key(a[0])
    else np.stack(a)
  )
  return jax.tree.map(join, *trees)


@functools.cache
def trained(name):
  return Trained(RECIPES[name])


@functools.cache
def plain(changes):
  """Plain fusion, with what a recipe changes in network and optimiser."""
  return Trained({group: dict(fields) for group, fields in changes})


def arrays_of(states):
  """The states as arrays that NumPy compares."""
  states = states.replace(key=jax.random.key_data(states.key))
  return jax.tree.map(np.asarray, states)


def lane_of(tree, i):
  return jax.tree.map(lambda a: np.asarray(a)[i], tree)


# Of one term with other options; the pure functions behind these have batteries of
# their own, tests/entropy, and the golden steps have all of them.
VARIANTS = ("mer_vmf", "mer_per_domain", "mer_per_class")


def _slow(names):
  return [pytest.param(n, marks=pytest.mark.slow) if n in names else n for n in RECIPES]


battery = pytest.mark.parametrize("name", _slow(VARIANTS))


@battery
def test_finite_for_every_mask_and_every_missing_modality(name):
  """And no gradient where nothing is, whatever stands there."""
  run = trained(name)
  states, metrics, _ = run.take(run.begin(), 3, *MASKS.values())
  chex.assert_tree_all_finite((states.params, states.opt_state, metrics))
  for leaf in jax.tree.leaves(arrays_of(states).memory):  # It may hold an inf.
    assert not np.isnan(leaf).any()
  value, grad = run.take(states, 1, *MASKS.values())[2]
  chex.assert_tree_all_finite((value, grad))
  for i, (what, rows) in enumerate(MASKS.items()):
    batch, own = tiny_batch(**rows), lane_of(grad, i)
    for part in (own.logits, own.fused):
      np.testing.assert_array_equal(part[~batch["mask"]], 0.0, err_msg=what)
    for part in (own.embeddings, own.projections, own.unimodal_logits):
      for m, here in batch["present"].items():
        np.testing.assert_array_equal(part[m][~here], 0.0, err_msg=what)


@battery
def test_padding_and_neighbours_have_no_influence(name):
  """Lanes differ in what stands on padding and in the run beside them, by pairs."""
  run, numbers = trained(name), {}
  for term, own in run.method.hyper.items():
    numbers[term] = {k: 0.9 * v for k, v in own.items()}
  pair = [{}, {"seed": 1, **numbers}]
  states, metrics, _ = run.take(
    run.begin(*pair, *pair, pair[0], pair[0]), 3,
    *({"garbage": g} for g in (1, 1, 2, 2, 3)),
  )  # fmt: skip
  found = arrays_of(states), metrics
  for one, other in ((0, 2), (1, 3), (0, 4)):
    chex.assert_trees_all_equal(lane_of(found, one), lane_of(found, other))
  net = states.params["net"]
  assert not all(
    jax.tree.leaves(jax.tree.map(np.array_equal, lane_of(net, 0), lane_of(net, 1)))
  )


@battery
def test_its_off_numbers_make_it_plain_fusion(name):
  run, recipe = trained(name), RECIPES[name]
  if any(SPECS[term].off is None for term in run.method.terms):
    pytest.skip("no numbers make it plain fusion")
  off = {term: dict(SPECS[term].off) for term in run.method.terms}
  halved = {
    term: {k: 0.5 * v for k, v in numbers.items()} | off[term]
    for term, numbers in run.method.hyper.items()
  }
  states = run.begin(off, halved)
  # Lane 1: other numbers, other own parameters, another memory.
  other = run.begin({"seed": 2})
  swap = lambda a, b: np.concatenate([a[:1], b[1:]])
  own, memory = jax.tree.map(
    swap, (states.params["terms"], states.memory), (other.params["terms"], other.memory)
  )
  params = {"net": states.params["net"], "terms": own}
  states = run.take(states.replace(params=params, memory=memory), 3)[0]
  net = states.params["net"]
  # In one program nothing of it is left.
  chex.assert_trees_all_equal(lane_of(net, 0), lane_of(net, 1))
  groups = tuple((g, tuple(recipe[g].items())) for g in SETTINGS if g in recipe)
  reference = plain(groups)
  expected = reference.take(reference.begin(), 3)[0].params["net"]
  # XLA sums in another order in another program; op by op they are equal bit for bit.
  chex.assert_trees_all_close(lane_of(net, 0), lane_of(expected, 0), rtol=0, atol=1e-6)


def _near(path, actual, expected):
  """To 1 % of the largest entry: on so few rows some gradients have few digits."""
  size = np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))
  where = jax.tree_util.keystr(path)
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=1e-4 + 1e-2 * size, err_msg=where
  )


# Of each kind: mixing in memory, own parameters, several gradients.
QUICK = {"mm", "moosa", "mbcd"}


@pytest.mark.parametrize("name", _slow(RECIPES.keys() - QUICK))
def test_alone_it_is_as_in_a_wave_in_any_order_of_modalities(name):
  run = trained(name)
  # So small a step that what Adam makes of rounding around zero stays small, too.
  slow, other = {"lr": 1e-6}, {}
  for term, numbers in run.method.hyper.items():
    other[term] = {k: 0.9 * v for k, v in numbers.items()}
  lanes = {"optimizer": slow}, {"seed": 1, "optimizer": slow, **other}
  states = run.take(run.begin(*lanes), 2)[0]
  both = run.take(states, 1)[:2]
  both = arrays_of(both[0]), both[1]
  step, number = quick_jit(run.step), int(states.step[0])
  key = jax.random.fold_in(jax.random.key(7), number)
  for i in range(2):
    alone = jax.tree.map(lambda a, i=i: a[i], states)
    found, expected = step(alone, tiny_batch(number), key)
    jax.tree.map_with_path(_near, lane_of(both, i), (arrays_of(found), expected))


@battery
def test_killed_and_resumed_it_takes_the_same_steps(name, tmp_path):
  """And what is evaluated are parameters of the network."""
  run = trained(name)
  states = run.judged(run.take(run.begin(), 2)[0])
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(2, states, {}, (0.0,))
    checkpoints.wait()
    restored, _ = checkpoints.restore(run.begin(), 2)
  restored = arrays_of(restored)
  chex.assert_trees_all_equal(restored, arrays_of(states))
  # As NumPy arrays: those of a checkpoint are bound to their device, and that would be
  # another program.
  restored = restored.replace(key=jax.random.wrap_key_data(restored.key))
  one, other = run.take(states, 2), run.take(restored, 2)
  chex.assert_trees_all_equal(arrays_of(one[0]), arrays_of(other[0]))
  chex.assert_trees_all_equal(one[1], other[1])
  net = states.params["net"]
  if not run.method.averages:
    assert evaluated(states, run.method)["params"] is net
    return
  chosen = run._chosen(states)
  chex.assert_trees_all_equal_shapes_and_dtypes(chosen, net)
  chex.assert_tree_all_finite(chosen)
  assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, chosen, net)))


def composed(name, remedies):
  """The recipe with remedies that it does not have; "" where it has all of them."""
  terms = {"mer_kde": "mer", "mm": "mm"}
  found = RECIPES[name]
  for remedy in remedies:
    if terms[remedy] in found:
      continue
    heads = {"unimodal": {}} if "unimodal" in found else {}
    more = {k: v for k, v in RECIPES[remedy].items() if k not in heads}
    known = {"one": found, "two": more}
    found = methods.merge_recipes("one+two", known) if found else more
  return found


@battery
def test_with_both_remedies_it_takes_a_step(name):
  """On shapes: what does not fit together says so while it is traced."""
  problem = tiny_problem(composed(name, ("mer_kde", "mm")))
  state = jax.eval_shape(problem.begin)
  new, metrics = jax.eval_shape(problem.step, state, tiny_batch(), jax.random.key(0))
  chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
  assert {"loss/mer", "loss/mm"} <= set(metrics)


@pytest.mark.slow
@pytest.mark.parametrize("remedy", ["mer_kde", "mm"])
@battery
def test_with_a_remedy_it_trains(name, remedy):
  run = Trained(composed(name, (remedy,)))
  first = run.begin()
  states, metrics, _ = run.take(first, 3, *MASKS.values())
  chex.assert_tree_all_finite((states.params, metrics))
  alone = trained(name)
  before = alone.take(alone.begin(), 3, *MASKS.values())[0].params["net"]
  net = states.params["net"]
  same = jax.tree.map(np.array_equal, lane_of(net, 0), lane_of(before, 0))
  term = {"mer_kde": "mer", "mm": "mm"}[remedy]
  # It does something, unless the method is that remedy.
  assert (term in RECIPES[name]) == all(jax.tree.leaves(same))


def test_another_term_changes_nobodys_draws():
  """mer_kde+mm without entropy mixes the rows that mm mixes."""
  mm, more = trained("mm"), Trained(methods.merge_recipes("mer_kde+mm", RECIPES))
  one, alone, _ = mm.take(mm.begin(), 3)  # The third is the first with rows to mix.
  both, found, _ = more.take(more.begin({"mer": {"weight": 0.0}}), 3)
  assert alone["mm/n_mixed"][0] == found["mm/n_mixed"][0] > 0
  np.testing.assert_allclose(alone["loss/mm"], found["loss/mm"], rtol=1e-5)
  net, other = (states.params["net"] for states in (one, both))
  chex.assert_trees_all_close(net, other, rtol=0, atol=1e-6)
