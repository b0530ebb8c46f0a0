"""The two levels, standard and modality-mix learning, as a function of the step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mer_dg.mixing import _check

SCHEDULES = ("ramp", "alternate")


class Stage(NamedTuple):
  """Factors of the two objectives at a step, float32 scalars in [0, 1]."""

  standard: jax.Array
  mix: jax.Array


def mix_stage(
  step: jax.typing.ArrayLike,
  *,
  schedule: str = "ramp",
  warmup_steps: jax.typing.ArrayLike,
  ramp_steps: jax.typing.ArrayLike = 0,
  standard_steps: jax.typing.ArrayLike = 1,
  mix_steps: jax.typing.ArrayLike = 1,
) -> Stage:
  r"""Weights of standard and modality-mix learning at ``step`` (reconstruction).

  ``"ramp"`` (variant A): the standard objective throughout; the mixed one has weight
  0 for ``warmup_steps`` and then grows linearly to 1 over ``ramp_steps`` (at once if
  that is 0). ``"alternate"`` (variant B): standard learning for ``warmup_steps``, then
  ``standard_steps`` of it and ``mix_steps`` of modality-mix learning alternate, one
  objective at a time.

  Args:
    step: Step counter, from 0; a scalar or any shape.
    schedule: ``"ramp"`` or ``"alternate"``. Static.
    warmup_steps: Length of the first standard phase, >= 0.
    ramp_steps: For ``"ramp"``, >= 0.
    standard_steps: For ``"alternate"``, >= 0.
    mix_steps: For ``"alternate"``, >= 0.

  Returns:
    The two weights, in the shape of ``step``.

  Raises:
    ValueError: Unknown schedule, or (outside of ``jit``) a negative length.

  Example:
    >>> print(mix_stage(jnp.arange(5), warmup_steps=2, ramp_steps=2).mix)
    [0.  0.  0.  0.5 1. ]
    >>> print(mix_stage(jnp.arange(5), schedule="alternate", warmup_steps=1).mix)
    [0. 0. 1. 0. 1.]
  """
  _check.one_of("schedule", schedule, SCHEDULES)
  for name, value in (
    ("warmup_steps", warmup_steps),
    ("ramp_steps", ramp_steps),
    ("standard_steps", standard_steps),
    ("mix_steps", mix_steps),
  ):
    _check.at_least(name, value, 0)
  since = jnp.asarray(step) - warmup_steps
  if schedule == "ramp":
    rising = jnp.clip(since / jnp.maximum(ramp_steps, 1), 0.0, 1.0)
    at_once = jnp.where(since >= 0, 1.0, 0.0)
    mix = jnp.where(jnp.asarray(ramp_steps) > 0, rising, at_once)
    return Stage(jnp.ones_like(mix, jnp.float32), mix.astype(jnp.float32))
  period = jnp.maximum(jnp.asarray(standard_steps) + jnp.asarray(mix_steps), 1)
  in_mix = (since >= 0) & (since % period >= standard_steps)
  in_mix &= jnp.asarray(mix_steps) > 0
  mix = in_mix.astype(jnp.float32)
  return Stage(1.0 - mix, mix)
