"""SAM (Foret et al., ICLR 2021): the gradient at the worst point nearby.

``epsilon = rho g / |g|`` over all trainable parameters, the step is taken at theta with
the gradient at ``theta + epsilon``. The second pass has the same noise as the first and
leaves running statistics alone. What earlier transformations did to the gradient stays:
the difference of the two gradients is added.
"""

import jax
import jax.numpy as jnp
import optax

from mer_dg.methods.term import Hyperparameter, Spec, Term, transformation


def make(task, options):
  del task, options

  def transform(hyper):
    def update(grads, state, params, *, gradient, grad_fn, **_):
      length = hyper["rho"] / jnp.maximum(optax.tree.norm(gradient), 1e-12)
      worst = jax.tree.map(lambda p, g: p + length * g, params, gradient)
      there = grad_fn(worst)
      return jax.tree.map(lambda g, h, f: g + (h - f), grads, there, gradient), state

    return transformation(update)

  return Term(transform=transform)


SPEC = Spec(
  "sam",
  make,
  {"rho": Hyperparameter(0.05, 0.0, 1e3, search=(0.01, 0.5))},
  recipes={"sam": {"sam": {}}},
  off={"rho": 0.0},
)
