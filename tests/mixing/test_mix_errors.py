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
    ({"proportions": "even"}, "proportions='even' is not one of .*dirichlet"),
    ({"proportions": {"audio": 0.7, "video": 0.7}}, "must sum to one"),
    ({"proportions": {"audio": 1.5, "video": -0.5}}, "must be >= 0"),
    ({"proportions": {"audio": 1.0}}, r"expected \['audio', 'video'\]"),
    ({"proportions": {"audio": np.ones(3), "video": 0.0}}, r"shape \(\) or \(4,\)"),
    ({"proportions": "exploration"}, "needs the argument exploration"),
    ({"swap": "focus_only"}, "needs the argument exploration"),
    ({"swap": "some"}, "swap='some' is not one of"),
    ({"pool": "far"}, "pool='far' is not one of .*other_domain"),
    ({"pool": "same_domain"}, "needs the argument domains"),
    ({"pool": "other_domain", "domains": Y, "num_domains": 1}, "num_domains=1"),
    ({"pool": "other_domain", "domains": np.full(4, 2)}, r"holds only \[2\]"),
    ({"soft": 0.0}, "soft=0.0 must be > 0"),
    ({"eta": -1.0}, "eta=-1.0 must be >= 0"),
    ({"proportions": "dirichlet", "concentration": 0.0}, "concentration=0.0 must"),
    ({"shared": True}, "shared=True needs soft"),
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
    ({"proportions": np.array([0.5, 0.5])}, "proportions must map modality names"),
    ({"embeddings": {"a": jnp.ones(4, int)}, "soft": 1.0}, "must be floating"),
    ({"pool": "same_domain", "domains": np.zeros(4)}, "domains must be integers"),
    ({"embeddings": [np.ones(4)]}, "embeddings must map modality names"),
  ],
)
def test_bad_types_are_named(change, message):
  arguments = {"embeddings": Z2, "labels": Y, "num_classes": 4} | change
  key, z = jax.random.key(0), arguments.pop("embeddings")
  with pytest.raises(TypeError, match=message):
    mixing.modality_mix(key, z, arguments.pop("labels"), **arguments)


def test_known_values_are_checked_inside_jit_too():
  def run(z):
    return mixing.modality_mix(
      jax.random.key(0), z, Y, num_classes=4, proportions={"audio": 0.7, "video": 0.7}
    )

  with pytest.raises(ValueError, match="must sum to one"):
    jax.jit(run)(Z2)
