"""Made-up things of the right kind, for the tests of all rooms."""

import contextlib
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import protocol
from mer_dg.contracts import InputSpec, Task

# Compiles several times faster, into slower programs: compilation is nearly all of the
# time of a test. The second option is gone after jax 0.10; an unknown one is an error.
_QUICK = {"xla_backend_optimization_level": 0}
if jax.__version__.startswith("0.10."):
  _QUICK["xla_cpu_use_fusion_emitters"] = False
quick_jit = functools.partial(jax.jit, compiler_options=_QUICK)


@contextlib.contextmanager
def quick_programs():
  """Everything compiles quickly, in the processes that a test starts, too.

  Programs as users have them are those of tests/goldens, tests/test_main.py, doctests
  and notebooks.
  """
  jax.jit(lambda: 0)()  # With its first program XLA reads its flags; not those below.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "jit", quick_jit)
    flags = (f"--{name}={str(value).lower()}" for name, value in _QUICK.items())
    patch.setenv("XLA_FLAGS", " ".join(flags))
    yield


# Of the tiny problem. Not sorted: nothing may depend on the order of names in a dict.
WIDTHS = {"b": 5, "a": 4}
ROWS, CLASSES, DOMAINS, STEPS = 12, 3, 2, 10


def record(**fields):
  """A record of a made-up run, built by the function that builds real ones."""
  defaults = {
    "method": "erm",
    "target": "d3",
    "sources": ["d1", "d2"],
    "modalities": ["video", "audio"],
    "dataset": "toy",
    "data_version": "1.0",
    "seed": 0,
    "split_seed": 0,
    "hyper": {},
    "config_hash": "c0",
    "trials": 1,
    "step": 100,
    "metrics": {"val/accuracy": 0.9, "val/nll": 0.1, "target/accuracy": 0.5},
    "git_revision": "0123456789abcdef0123456789abcdef01234567-dirty",
    "wall_time_s": 1.5,
    "device": "2 cores of some CPU",
  }
  return protocol.make_record(**(defaults | fields))


def tiny_problem(recipe):
  """The training of a recipe on rows of `tiny_batch`; it compiles in seconds.

  Returns:
    ``network``, ``method``, ``step`` (not compiled) and ``begin``,
    ``(seed=0, step=0, **numbers) -> state``, with numbers ``{group or term: {...}}`` in
    the place of those of the recipe.
  """
  from mer_dg.methods import build_method
  from mer_dg.training.state import make_hyper, make_state
  from mer_dg.training.step import make_train_step

  network, draw = _tiny_network(tuple(sorted(recipe.get("network", {}).items())))
  task = Task(
    tuple(WIDTHS), CLASSES, DOMAINS, num_samples=ROWS, total_steps=STEPS,
    widths=tuple(network.widths.values()), fused_width=network.fused_width,
    projection_width=network.projection_width,
  )  # fmt: skip
  method = build_method("tiny", recipe, task)
  optimizer = {"lr": 1e-2, "weight_decay": 1e-3, "schedule": "cosine"}
  optimizer |= recipe.get("optimizer", {})
  horizon = dict(schedule=optimizer["schedule"], total_steps=STEPS)

  # Not compiled: its operations are, one by one, and for all recipes together.
  def init(seed, step, hyper, variables):
    state = make_state(
      network, method, seed=seed, scaling={}, hyper=hyper, variables=variables,
      **horizon,
    )  # fmt: skip
    return state.replace(step=step)

  def begin(seed=0, step=0, **numbers):
    hyper = make_hyper(network, method, optimizer)
    for name, values in numbers.items():
      hyper.get(name, hyper["method"].get(name)).update(values)
    return init(jnp.uint32(seed), jnp.int32(step), hyper, draw(seed))

  step = make_train_step(network, method, **horizon)
  return types.SimpleNamespace(network=network, method=method, begin=begin, step=step)


@functools.cache
def _tiny_network(changes):
  from mer_dg.networks import make_network

  options = dict(
    encoder="mlp", embedding_dim=4, hidden_dim=8, fusion_dim=4, classifier_dim=6,
    projector_dim=4, projection_dim=4, dropout=0.5, embedding_dropout=0.1,
  )  # fmt: skip
  specs = {m: InputSpec("vector", (d,)) for m, d in WIDTHS.items()}
  network = make_network(specs, num_classes=CLASSES, **(options | dict(changes)))
  init = quick_jit(network.init)
  return network, functools.cache(lambda seed: init(jax.random.key(seed)))


def tiny_batch(seed=0, *, mask=None, present=None, garbage=0):
  """Rows of a tiny problem, some of them padding, some without a modality.

  Args:
    seed: Of what the rows are.
    mask: bool ``[ROWS]``; by default the last two are padding.
    present: ``{modality: bool [ROWS]}`` before padding; by default every fifth row
      lacks "a".
    garbage: Seed of what stands where nothing is; NaN in inputs.
  """
  rows = np.arange(ROWS)
  mask = rows < ROWS - 2 if mask is None else np.asarray(mask)
  here = {"a": rows % 5 > 0} | (present or {})
  present = {m: mask & here.get(m, True) for m in WIDTHS}
  rng, junk = np.random.default_rng(seed), np.random.default_rng([garbage, 1])
  label = rng.integers(CLASSES, size=ROWS)
  place = np.eye(CLASSES, 5)[label]
  inputs = {}
  for m, width in WIDTHS.items():
    x = place[:, :width] + rng.normal(size=(ROWS, width))
    x[~present[m]] = junk.choice([np.nan, np.inf, 1e3], size=(1, width))
    inputs[m] = x.astype(np.float32)
  fill = lambda x, top: np.where(mask, x, junk.integers(top, size=ROWS)).astype(
    np.int32
  )
  return {
    "inputs": inputs,
    "present": present,
    "label": fill(label, CLASSES),
    "domain": fill(rows % DOMAINS, DOMAINS),
    "index": fill(rows, ROWS),
    "mask": mask,
  }
