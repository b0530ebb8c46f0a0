"""mer_dg: losses against fusion overfitting of multimodal models, in JAX.

Importing the package gives the losses and needs jax alone. `fit`, `compare`,
`load_model` and what belongs to them are imported when they are first touched
(``pip install "mer-dg[train]"``).
"""

import importlib
from typing import Any

from mer_dg import entropy, losses, mixing
from mer_dg.entropy import *  # noqa: F403
from mer_dg.losses import *  # noqa: F403
from mer_dg.mixing import *  # noqa: F403

__version__ = "0.1.0"

# Where what needs more than jax lives.
_LAZY = {
  "Comparison": "mer_dg.experiments.door",
  "Dataset": "mer_dg.data",
  "Model": "mer_dg.experiments.model",
  "MultimodalClassifier": "mer_dg.experiments.estimator",
  "compare": "mer_dg.experiments.door",
  "fit": "mer_dg.experiments.door",
  "load_dataset": "mer_dg.experiments.door",
  "load_model": "mer_dg.experiments.model",
  "register_dataset": "mer_dg.data.registry",
  "register_encoder": "mer_dg.networks",
  "register_method": "mer_dg.methods",
}


def __getattr__(name: str) -> Any:
  if name not in _LAZY:
    raise AttributeError(f"module 'mer_dg' has no attribute {name!r}")
  try:
    room = importlib.import_module(_LAZY[name])
  except ImportError as error:
    raise ImportError(
      f'mer_dg.{name} needs {error.name}: pip install "mer-dg[train]"'
    ) from error
  return getattr(room, "register" if name == "register_method" else name)


__all__ = [
  "__version__",
  *entropy.__all__,
  *losses.__all__,
  *mixing.__all__,
]
