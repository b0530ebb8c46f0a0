"""Bad input to `modality_mix` is refused by name, while tracing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mer_dg import mixing

Z2 = {"audio": jnp.ones((4, 2)), "video": jnp.ones((4, 2))}
Y = np.arange(4)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"labels": np.array([0, 1, 9, 0])}, r"labels\[2\]=9 is outside \[0, 4\)"),
    ({"labels": np.array([0, -1, 0, 0])}, r"labels\[1\]=-1 is outside"),
    ({"labels": np.arange(3)}, r"labels must have shape \(4,\)"),
    ({"embeddings": Z2 | {"flow": jnp.ones((5, 2))}}, "unequal batch sizes .*: 5"),
    ({"embeddings": {}}, "embeddings is empty"),
    ({"proportions": "even"}, "proportions='even' is not one of .*exploration"),
    ({"proportions": "exploration"}, "needs the argument exploration"),
    ({"eta": -1.0}, "eta=-1.0 must be >= 0"),
    ({"present": {"audio": np.ones(4, bool)}}, "present has modalities"),
    ({"eligible": np.ones(5, bool)}, r"eligible must have shape \(4,\)"),
  ],
)
def test_bad_values_are_named(change, message):
  arguments = {"embeddings": Z2, "labels": Y, "num_classes": 4} | change
  key, z = jax.random.key(0), arguments.pop("embeddings")
  with pytest.raises(ValueError, match=message):
    mixing.modality_mix(key, z, arguments.pop("labels"), **arguments)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"labels": np.zeros(4)}, "labels must be integers, got float"),
    ({"labels": Y, "num_classes": None}, "labels must be floating"),
    ({"num_classes": "4"}, "num_classes must be an integer"),
    ({"eligible": np.ones(4)}, "eligible must be boolean"),
    ({"embeddings": [np.ones(4)]}, "embeddings must map modality names"),
  ],
)
def test_bad_types_are_named(change, message):
  arguments = {"embeddings": Z2, "labels": Y, "num_classes": 4} | change
  key, z = jax.random.key(0), arguments.pop("embeddings")
  with pytest.raises(TypeError, match=message):
    mixing.modality_mix(key, z, arguments.pop("labels"), **arguments)


def test_known_values_are_checked_inside_jit_too():
  run = lambda z: mixing.modality_mix(jax.random.key(0), z, Y, num_classes=2)
  with pytest.raises(ValueError, match=r"labels\[2\]=2 is outside"):
    jax.jit(run)(Z2)
