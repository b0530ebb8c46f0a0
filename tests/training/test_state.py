"""Optimiser, schedules and random streams."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mer_dg.training.state import make_optimizer, run_keys
from tests.factories import tiny_problem

HYPER = {"lr": jnp.float32(0.1), "weight_decay": jnp.float32(0.5)}


def updates(gradients, *, params=2.0, hyper=HYPER, schedule="constant", total=4):
  """Parameter after each step of the given gradients."""
  optimizer = make_optimizer(hyper, schedule=schedule, total_steps=total)
  params = jnp.float32(params)
  state, path = optimizer.init(params), []
  for g in gradients:
    change, state = optimizer.update(jnp.float32(g), state, params)
    params = optax.apply_updates(params, change)
    path.append(float(params))
  return np.array(path)


def test_decay_is_coupled():
  # Adam's first step is -lr * sign of the gradient it is given. Here that is
  # g + decay * p = -0.8 + 0.5 * 2 > 0, though g itself is negative: AdamW would go up.
  np.testing.assert_allclose(updates([-0.8]), [1.9], rtol=1e-5)


def test_matches_adam_by_hand():
  p, m, v = 2.0, 0.0, 0.0
  path = []
  for t, g in enumerate([0.3, -1.0, 0.2, 0.7], start=1):
    g = g + 0.5 * p
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    p -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    path.append(p)
  np.testing.assert_allclose(updates([0.3, -1.0, 0.2, 0.7]), path, rtol=1e-5)


def test_cosine_falls_to_zero_at_the_end():
  # A constant gradient and no decay: Adam's step is the learning rate.
  hyper = {"lr": jnp.float32(0.1), "weight_decay": jnp.float32(0.0)}
  path = updates([1.0] * 5, hyper=hyper, schedule="cosine", total=4)
  steps = -np.diff([2.0, *path])
  expected = 0.05 * (1 + np.cos(np.pi * np.minimum(np.arange(5), 4) / 4))
  np.testing.assert_allclose(steps, expected, atol=1e-6)


def test_unknown_schedule():
  with pytest.raises(ValueError, match="schedule='step' is not one of"):
    make_optimizer(HYPER, schedule="step", total_steps=1)


def test_streams_of_a_run_are_different(no_key_reuse):
  keys = run_keys(jax.random.key(3))
  drawn = [float(jax.random.uniform(k)) for k in keys]
  assert len(set(drawn)) == 3


def test_runs_of_one_seed_are_paired_whatever_the_method():
  """The key of a run, which first weights and the order of rows come from."""
  one, other = (tiny_problem(r).begin(3).key for r in ({}, {"mer": {}, "unimodal": {}}))
  assert one == other != tiny_problem({}).begin(4).key
