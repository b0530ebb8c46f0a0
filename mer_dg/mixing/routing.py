"""Which encoders learn from mixed samples."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mer_dg.mixing import _check
from mer_dg.mixing.exploration import Exploration

ROUTES = ("focus", "weighted", "all")


def route_gradients(
  embeddings: Mapping[str, jax.Array],
  *,
  route: str = "focus",
  exploration: Exploration | None = None,
) -> dict[str, jax.Array]:
  r"""Returns the same values with the gradient towards the encoders routed.

  Apply it to the mixed embeddings, before fusion and heads; these keep learning under
  every route. Reconstruction.

  Args:
    embeddings: ``{m: [B, ...]}``, floating.
    route: ``"focus"``: zero gradient to every modality but the under-explored one;
      ``"weighted"``: gradient of modality m times :math:`M \pi_m`, with the shares
      of `exploration_score`; ``"all"``: unchanged. Static.
    exploration: Needed by ``"focus"`` and ``"weighted"``; may be traced.

  Returns:
    ``{m: [B, ...]}``, equal to ``embeddings`` in value.

  Raises:
    ValueError: Unknown route, missing or unfitting ``exploration``.

  Example:
    >>> from mer_dg.mixing import init_exploration
    >>> state = init_exploration(("audio", "video"))  # focus 0 is audio
    >>> z = {"audio": jnp.ones(2), "video": jnp.ones(2)}
    >>> def total(z):
    ...   return sum(x.sum() for x in route_gradients(z, exploration=state).values())
    >>> {m: g.tolist() for m, g in jax.grad(total)(z).items()}
    {'audio': [1.0, 1.0], 'video': [0.0, 0.0]}
  """
  _check.one_of("route", route, ROUTES)
  _check.batch_size("embeddings", embeddings)
  if route == "all":
    return dict(embeddings)
  if exploration is None:
    raise ValueError(f"route={route!r} needs the argument exploration.")
  _check.same_modalities("exploration.score", exploration.score, embeddings)
  names = sorted(embeddings)
  routed = {}
  for m, z in embeddings.items():
    if route == "focus":
      learns = exploration.focus == names.index(m)
      # A choice, not a product with 0: an infinite cotangent is stopped as well.
      routed[m] = jnp.where(learns, z, jax.lax.stop_gradient(z))
    else:
      routed[m] = _scale_gradient(z, len(names) * exploration.share[m])
  return routed


@jax.custom_jvp
def _scale_gradient(x, factor):
  del factor
  return x


@_scale_gradient.defjvp
def _scale_gradient_jvp(primals, tangents):
  x, factor = primals
  return x, tangents[0] * factor.astype(x.dtype)
