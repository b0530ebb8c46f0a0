"""What a term is told, and that several of them do not get in each other's way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import methods
from mer_dg.methods import Hyperparameter, Term, transformation
from tests.factories import quick_jit, tiny_batch, tiny_problem

KEY = jax.random.key(3)


def steps(recipe, number=1):
  """State and metrics after some steps of a recipe."""
  problem = tiny_problem(recipe)
  state, step, metrics = problem.begin(), quick_jit(problem.step), {}
  for i in range(number):
    state, metrics = step(state, tiny_batch(i), jax.random.fold_in(KEY, i))
  return state, metrics


def first_moment(state):
  return state.opt_state[-1][1].mu["net"]


def drawing(name):
  """A term that draws in its loss and, once more, in its transformation."""

  def make(task, options):
    def loss(outputs, batch, ctx):
      return jnp.float32(0.0), {f"{name}/draw": jax.random.uniform(ctx.key)}

    def transform(hyper):
      def update(grads, state, params, *, key, aux, **_):
        return grads, (jax.random.uniform(key), aux[f"{name}/draw"])

      return transformation(update, lambda params: (jnp.float32(0), jnp.float32(0)))

    return Term(loss, transform=transform)

  return make


def test_draws_are_named_after_the_term_and_nobody_changes_them(register):
  register("one", drawing("one"))
  register("two", drawing("two"))
  _, alone = steps({"one": {}})
  state, both = steps({"two": {}, "unimodal": {}, "one": {}})
  assert alone["one/draw"] == both["one/draw"] != both["two/draw"]
  # The transformation of a term has the key and the aux of that term.
  two, one = (np.asarray(s) for s in state.opt_state[:2])
  np.testing.assert_array_equal(one, both["one/draw"])
  np.testing.assert_array_equal(two, both["two/draw"])


def test_a_numbers_default_is_a_jax_array_of_the_state_and_not_of_the_program(register):
  def make(task, options):
    loss = lambda outputs, batch, ctx: (ctx.hyper["size"], {"step": ctx.step})
    return Term(loss)

  register(
    "sized",
    make,
    {"weight": Hyperparameter(2.0, 0, 9), "size": Hyperparameter(3.0, 0, 9)},
  )
  problem = tiny_problem({"sized": {}, "fused": {"weight": 0.0}})
  step = quick_jit(problem.step)
  for size, weight in ((3.0, 2.0), (5.0, 1.0)):
    state = problem.begin(step=4, sized={"size": size, "weight": weight})
    _, metrics = step(state, tiny_batch(), KEY)
    assert metrics["loss"] == size * weight
    assert metrics["loss/sized"] == size  # Logged before weighting.
    assert metrics["step"] == 4


def scaling(factor):
  def make(task, options):
    def transform(hyper):
      return transformation(
        lambda grads, state, params, **_: (
          jax.tree.map(lambda g: factor * g, grads), state
        )
      )  # fmt: skip

    return Term(transform=transform)

  return make


def test_transformations_come_before_the_optimiser_in_the_order_of_the_recipe(register):
  register("double", scaling(2.0))

  def make(task, options):
    def transform(hyper):
      def update(grads, state, params, *, gradient, **_):
        more = lambda g, first: g + 10.0 * first  # `gradient` was changed by nobody.
        return jax.tree.map(more, grads, gradient), state

      return transformation(update)

    return Term(transform=transform)

  register("more", make)
  plain = first_moment(steps({})[0])
  found = first_moment(steps({"double": {}, "more": {}})[0])
  turned = first_moment(steps({"more": {}, "double": {}})[0])
  # Weight decay comes after them; at the first step it is what is left without them.
  decay = jax.tree.map(lambda p: 0.1 * 1e-3 * p, tiny_problem({}).begin().params["net"])
  expected = lambda factor: jax.tree.map(
    lambda m, d: factor * (m - d) + d, plain, decay
  )
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, found, expected(2.0 + 10.0))
  jax.tree.map(close, turned, expected((1.0 + 10.0) * 2.0))


def test_own_parameters_train_and_memory_sees_the_step_that_was_taken(register):
  """A term that pulls its own number to 1, and remembers it as a Python float does."""

  def make(task, options):
    def init(key, task, params):
      return {"x": 0.0}, {"last": 0.0, "net": params["head_a"], "steps": 0}

    def loss(outputs, batch, ctx):
      return (ctx.own["x"] - 1.0) ** 2, {"before": ctx.memory["last"]}

    def update(memory, aux, params, ctx):
      last = jnp.where(aux["before"] >= 0, ctx.own["x"], 0.0)
      return {"last": last, "net": params["head_a"], "steps": memory["steps"] + 1}

    return Term(loss, init, update)

  register("pull", make)
  state, metrics = steps({"pull": {}}, number=3)
  own, memory = state.params["terms"]["pull"], state.memory["pull"]
  # Three steps of Adam with a cosine over ten: lr (1 + cos(pi t / 10)) / 2 each.
  expected = sum(1e-2 * (1 + np.cos(np.pi * t / 10)) / 2 for t in range(3))
  np.testing.assert_allclose(own["x"], expected, rtol=1e-2)
  assert memory["last"] == own["x"]
  assert memory["steps"] == 3
  np.testing.assert_array_equal(
    memory["net"]["kernel"], state.params["net"]["head_a"]["kernel"]
  )
  assert 0 < metrics["before"] < own["x"]


def test_numbers_of_python_in_own_parameters_and_memory_compile_the_step_once(register):
  def make(task, options):
    count = lambda memory, aux, params, ctx: memory + jnp.where(True, 1.0, 0.0)
    return Term(init=lambda key, task, params: ({"x": 0.5}, 0.0), update=count)

  register("plainly", make)
  problem, traces = tiny_problem({"plainly": {}}), []

  @quick_jit
  def step(state, batch, key):
    traces.append(1)
    return problem.step(state, batch, key)

  state = problem.begin()
  for _ in range(2):
    state, _ = step(state, tiny_batch(), KEY)
  assert len(traces) == 1
  assert state.memory["plainly"] == 2.0


def test_a_term_that_stands_in_for_the_fused_loss_is_alone(register):
  make = lambda task, options: Term(lambda outputs, batch, ctx: (jnp.float32(3), {}))
  register("instead", make, replaces=("fused",))
  problem = tiny_problem({"instead": {}})
  assert list(problem.method.terms) == ["instead"]
  assert list(tiny_problem({"unimodal": {}}).method.terms) == ["fused", "unimodal"]


def test_an_edited_cell_of_a_notebook_registers_again(register):
  """Jupyter compiles every version of a cell as a file of its own."""

  def run_cell(version):
    code = f"def make(task, options):\n  return {version}"
    names = {"__name__": "__main__"}
    exec(compile(code, f"/tmp/ipykernel_1/{version}.py", "exec"), names)
    return names["make"]

  register("cell", run_cell(1))
  spec = methods.Spec("cell", run_cell(2), recipes={"cell": {"cell": {}}})
  assert methods.register(spec) is methods.SPECS["cell"] is spec


def test_the_same_file_registers_again_and_a_wrong_spec_is_named():
  spec = methods.SPECS["rna"]
  assert methods.register(spec) is spec
  wrong = spec._replace(hyperparameters={"weight": Hyperparameter(2.0, 0.0, 1.0)})
  with pytest.raises(
    methods.MethodError, match=r"'rna': weight=2.0 lies outside .* \[0.0, 1.0\]"
  ):
    methods.register(wrong)
  for name in ("network", "a b", ""):
    with pytest.raises(methods.MethodError, match=f"'{name}' names no term or method"):
      methods.register(spec._replace(name=name))
