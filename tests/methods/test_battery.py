"""One battery over every registered method: what must hold of each of them.

A new method is tested by being registered. Its step is compiled once, for one run and
for two; masks, missing modalities and hyperparameters are arguments.
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


class Trained:
  """A method with its compiled programs."""

  def __init__(self, recipe):
    problem = tiny_problem(recipe)
    self.method, self.network = problem.method, problem.network
    self._begin = problem.begin
    self.traces = 0

    def step(*args):
      self.traces += 1  # `chex.assert_max_traces` takes all recipes for one function.
      return problem.step(*args)

    self.step = quick_jit(step)

    def wave(states, batch, key):
      """Both states at once, on a batch whose modalities are in another order."""
      turn = lambda d: {k: d[k] for k in reversed(d)} if isinstance(d, dict) else d
      batch = {k: turn(v) for k, v in batch.items()}
      both = jax.tree.map(lambda *a: jnp.stack(a), *states)
      return jax.vmap(lambda state: problem.step(state, batch, key))(both)

    self.wave = quick_jit(wave)

    def gradient(outputs, batch, state, key):
      rates = state.hyper["network"]
      model = self.network.model(state.model_state, rates, key)
      moment = Moment(state.hyper["method"], state.step, key, model)
      every = tuple(self.method.terms)
      return self.method.loss(
        state.params, outputs, batch, state.memory, moment, every
      )[0]

    self.gradient = quick_jit(jax.value_and_grad(gradient))
    self.chosen = quick_jit(lambda state: evaluated(state, self.method)["params"])
    self._on_eval = quick_jit(self.method.on_eval)

  def begin(self, seed=0, **numbers):
    """The state at a step when schedules are past their beginning."""
    return self._begin(seed, factories.STEPS // 2, **numbers)

  def take(self, state, steps, **rows):
    """State and metrics after some steps, a batch for each; never traced again."""
    metrics = {}
    for _ in range(steps):
      key = jax.random.fold_in(jax.random.key(7), int(state.step))
      state, metrics = self.step(state, tiny_batch(int(state.step), **rows), key)
    assert self.traces == 1, "the state that a step returns is of another kind"
    return state, metrics

  def judged(self, state):
    """The state after an evaluation."""
    if not self.method.watches:
      return state
    return state.replace(memory=self._on_eval(state.memory, VALIDATION))


@functools.cache
def trained(name):
  return Trained(RECIPES[name])


@functools.cache
def plain(changes):
  """Plain fusion, with what a recipe changes in network and optimiser."""
  return Trained({group: dict(fields) for group, fields in changes})


def numbers_of(state):
  """The state as arrays that NumPy compares."""
  return jax.tree.map(np.asarray, state.replace(key=jax.random.key_data(state.key)))


battery = pytest.mark.parametrize("name", RECIPES)


@battery
def test_finite_for_every_mask_and_every_missing_modality(name):
  run = trained(name)
  for what, rows in MASKS.items():
    state, metrics = run.take(run.begin(), 3, **rows)
    chex.assert_tree_all_finite((state.params, state.opt_state, metrics))
    for leaf in jax.tree.leaves(numbers_of(state).memory):  # It may hold an inf.
      assert not np.isnan(leaf).any(), what


@battery
def test_what_stands_on_padding_has_no_influence(name):
  run = trained(name)
  one, other = (run.take(run.begin(), 3, garbage=g) for g in (1, 2))
  chex.assert_trees_all_equal(numbers_of(one[0]), numbers_of(other[0]))
  chex.assert_trees_all_equal(one[1], other[1])


@battery
def test_nothing_has_a_gradient_where_nothing_is(name):
  """With respect to all that a loss may look at, whatever stands there."""
  run, rng = trained(name), np.random.default_rng(3)
  state, _ = run.take(run.begin(), 2)
  apply = functools.partial(run.network.apply, state.variables)
  like, _ = jax.eval_shape(apply, *(tiny_batch()[k] for k in ("inputs", "present")))
  outputs = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), like)
  for what, rows in MASKS.items():
    batch = tiny_batch(**rows)
    value, grad = run.gradient(outputs, batch, state, jax.random.key(5))
    chex.assert_tree_all_finite((value, grad))
    for part in (grad.logits, grad.fused):
      np.testing.assert_array_equal(part[~batch["mask"]], 0.0, err_msg=what)
    for part in (grad.embeddings, grad.projections, grad.unimodal_logits):
      for m, here in batch["present"].items():
        np.testing.assert_array_equal(part[m][~here], 0.0, err_msg=what)


@battery
def test_its_off_numbers_make_it_plain_fusion(name):
  run, recipe = trained(name), RECIPES[name]
  if any(SPECS[term].off is None for term in run.method.terms):
    pytest.skip("no numbers make it plain fusion")
  off = {term: dict(SPECS[term].off) for term in run.method.terms}
  first = run.begin(**off)
  net = run.take(first, 3)[0].params["net"]
  groups = tuple((g, tuple(recipe[g].items())) for g in SETTINGS if g in recipe)
  reference = plain(groups)
  expected = reference.take(reference.begin(), 3)[0].params["net"]
  # XLA sums in another order in another program; op by op they are equal bit for bit.
  chex.assert_trees_all_close(net, expected, rtol=0, atol=1e-6)
  # In one program nothing of it is left: other numbers, own parameters, memory.
  halved = {
    term: {k: 0.5 * v for k, v in numbers.items()} | off[term]
    for term, numbers in run.method.hyper.items()
  }
  same, other = run.begin(**halved), run.begin(seed=1)
  params = {"net": first.params["net"], "terms": other.params["terms"]}
  found, _ = run.take(same.replace(params=params, memory=other.memory), 3)
  chex.assert_trees_all_equal(found.params["net"], net)


@battery
def test_two_at_once_are_two_alone_in_any_order_of_modalities(name):
  run = trained(name)
  # So small a step that what Adam makes of rounding around zero stays small, too.
  slow, other = {"lr": 1e-6}, {}
  for term, numbers in run.method.hyper.items():
    other[term] = {k: 0.9 * v for k, v in numbers.items()}
  states = [run.begin(optimizer=slow), run.begin(1, optimizer=slow, **other)]
  states = [run.take(state, 2)[0] for state in states]
  key, batch = jax.random.key(8), tiny_batch(9)
  both, metrics = run.wave(states, batch, key)
  both = numbers_of(both), metrics
  for i, state in enumerate(states):
    alone, expected = run.step(state, batch, key)
    one = jax.tree.map(lambda a, i=i: np.asarray(a)[i], both)
    jax.tree.map_with_path(_near, one, (numbers_of(alone), expected))


def _near(path, actual, expected):
  """To 1 % of the largest entry: on so few rows some gradients have few digits."""
  size = np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))
  where = jax.tree_util.keystr(path)
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=1e-4 + 1e-2 * size, err_msg=where
  )


@battery
def test_killed_and_resumed_it_takes_the_same_steps(name, tmp_path):
  run = trained(name)
  state = run.judged(run.take(run.begin(), 2)[0])
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(2, state, {}, (0.0,))
    checkpoints.wait()
    restored, _ = checkpoints.restore(run.begin(), 2)
  restored = numbers_of(restored)
  chex.assert_trees_all_equal(restored, numbers_of(state))
  # As NumPy arrays: those of a checkpoint are bound to their device, and that would be
  # another program.
  restored = restored.replace(key=jax.random.wrap_key_data(restored.key))
  one, other = run.take(state, 2), run.take(restored, 2)
  chex.assert_trees_all_equal(numbers_of(one[0]), numbers_of(other[0]))
  chex.assert_trees_all_equal(one[1], other[1])


@battery
def test_what_is_evaluated_are_parameters_of_the_network(name):
  run = trained(name)
  state = run.judged(run.take(run.begin(), 2)[0])
  net = state.params["net"]
  if not run.method.averages:
    assert evaluated(state, run.method)["params"] is net
    return
  chosen = run.chosen(state)
  chex.assert_trees_all_equal_shapes_and_dtypes(chosen, net)
  chex.assert_tree_all_finite(chosen)
  assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, chosen, net)))


def test_another_term_changes_nobodys_draws():
  """mer_kde+mm without entropy mixes the rows that mm mixes."""
  mm, more = trained("mm"), Trained(methods.merge_recipes("mer_kde+mm", RECIPES))
  one, alone = mm.take(mm.begin(), 3)  # The third is the first with rows to mix.
  both, found = more.take(more.begin(mer={"weight": 0.0}), 3)
  assert alone["mm/n_mixed"] == found["mm/n_mixed"] > 0
  np.testing.assert_allclose(alone["loss/mm"], found["loss/mm"], rtol=1e-5)
  net, other = (state.params["net"] for state in (one, both))
  chex.assert_trees_all_close(net, other, rtol=0, atol=1e-6)
