"""A user's method: what it must not do is said before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg.experiments import MethodError, check, grid, make_setup, validate
from mer_dg.experiments.runs import Run
from mer_dg.methods import Term, transformation


def _asks(params, only=("nobody",)):
  update = lambda g, state, p, *, grad_fn, **_: (grad_fn(p, only=only), state)
  return transformation(update)


_OWN = lambda own, memory=(): lambda key, task, params: (own, memory)
_TERMS = {
  "a vector": (
    Term(lambda outputs, batch, ctx: (outputs.logits[:, 0], {})),
    r"term 'mine' must return a float scalar, not float32\[80\]",
  ),
  "an integer": (
    Term(lambda outputs, batch, ctx: (jnp.int32(1), {})),
    r"term 'mine' must return a float scalar, not int32\[\]",
  ),
  "no aux": (
    Term(lambda outputs, batch, ctx: jnp.float32(1)),
    r"term 'mine' must return \(value, aux\), not",
  ),
  "memory of another shape": (
    Term(
      init=_OWN({}, {"mean": np.zeros((2, 3), np.float32), "n": 0}),
      update=lambda memory, aux, params, ctx: memory | {"mean": jnp.zeros((3, 2))},
    ),
    r"memory of term 'mine' changes: \['mean'\] was float32\[2, 3\] and is now "
    r"float32\[3, 2\]; names",
  ),
  "memory of another dtype": (
    Term(
      init=_OWN({}, {"n": 0}),
      update=lambda memory, aux, params, ctx: {"n": memory["n"] + 0.5},
    ),
    r"'mine' changes: \['n'\] was int32\[\] and is now float32\[\]",
  ),
  "memory that loses a name": (
    Term(init=_OWN({}, {"a": 0, "b": 1}), update=lambda m, *_: {"a": m["a"]}),
    r"'mine' changes: \['b'\] was int32\[\] and is now not there",
  ),
  "memory of another kind": (
    Term(init=_OWN({}, [0]), update=lambda m, *_: (m[0],)),
    r"'mine' changes: it was PyTreeDef\(\[\*\]\) and is now PyTreeDef\(\(\*,\)\)",
  ),
  "memory that an evaluation changes": (
    Term(
      init=_OWN({}, {"best": 0.0}),
      on_eval=lambda memory, metrics: {"best": metrics["val/nll"][None]},
    ),
    r"'mine' changes: \['best'\] was float32\[\] and is now float32\[1\]",
  ),
  "own parameters with a name of the network's": (
    Term(init=_OWN({"fusion": 1.0, "x": 2.0})),
    r"term 'mine' has parameters \['fusion'\], names of the network's; rename",
  ),
  "own parameters without names": (
    Term(init=_OWN(np.zeros(2))),
    "own parameters of term 'mine' must be a dict",
  ),
  "parameters that are not the network's": (
    Term(eval_params=lambda params, memory: {**params, "fusion": {}}),
    r"parameters that term 'mine' chooses are not the network's: \['fusion'\].* was "
    r"float32\[.*\] and is now not there",
  ),
  "the gradient of a term that is not there": (
    Term(transform=_asks),
    r"method 'mine': a transformation asks for the gradient of \['nobody'\], but the "
    r"method has the terms \('fused', 'mine'\)",
  ),
}


@pytest.mark.parametrize("what", _TERMS)
def test_what_a_term_must_not_do_is_one_sentence_at_once(register, tiny, what):
  term, message = _TERMS[what]
  register("mine", lambda task, options: term)
  setup = make_setup(validate(tiny("", methods=("erm", "mine"), batch_size=80)))
  with pytest.raises(MethodError, match=message) as error:
    check(setup)
  assert "\n" not in str(error.value)


def test_two_terms_that_both_choose_what_is_evaluated(register, tiny):
  chooses = Term(eval_params=lambda params, memory: params)
  register("mine", lambda task, options: chooses)
  with pytest.raises(
    MethodError, match=r"'ema\+mine': average and mine both choose the parameters"
  ):
    check(make_setup(validate(tiny("", methods=("ema+mine",)))))


def _zeroed(task, options):
  """Evaluates zeros, and remembers the validation losses of what trains."""

  def on_eval(memory, metrics):
    assert all(name.startswith("val/") for name in metrics)
    return {"seen": memory["seen"] + 1, "nll": metrics["val/nll"]}

  return Term(
    init=_OWN({}, {"seen": 0, "nll": 0.0}),
    eval_params=lambda params, memory: jax.tree.map(jnp.zeros_like, params),
    on_eval=on_eval,
  )


def _check_zeroed(metrics, memory, classes, evaluations):
  for split in ("val", "target"):  # A network of zeros says every class is as likely.
    np.testing.assert_allclose(metrics[f"{split}/nll"], np.log(classes), rtol=1e-5)
  assert memory["seen"] == evaluations
  assert abs(float(memory["nll"]) - np.log(classes)) > 1e-3


def test_what_a_term_chooses_is_evaluated_in_one_run_and_in_a_table(
  register, tiny, train, tmp_path
):
  register("zeroed", _zeroed, off={})
  state, workdir = train(tmp_path, method="zeroed")
  setup = make_setup(validate(tiny("", methods=("zeroed",))))
  classes = setup.dataset.num_classes
  for record in workdir.records():
    _check_zeroed(record["metrics"], state.memory["zeroed"], classes, 2)
  runs = [Run("zeroed", "d1", seed) for seed in (0, 1)]
  wave = grid.WaveProgram(grid.Grid(setup), "zeroed", [runs[0].task], 2).train(runs)
  assert len(wave.evaluations) == 4
  for i, run in enumerate(runs):
    memory = jax.tree.map(lambda a, i=i: a[i], wave.state.memory["zeroed"])
    for found in wave.evaluations:
      if found.run == run:
        _check_zeroed(found.metrics, memory, classes, 2)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(wave.variables["params"]))
