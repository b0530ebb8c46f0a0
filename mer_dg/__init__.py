"""mer_dg: losses against fusion overfitting of multimodal models, in JAX.

Importing the package gives the losses and needs jax alone; the training
library lives in its subpackages (``pip install "mer-dg[train]"``).
"""

from mer_dg import entropy, losses, mixing
from mer_dg.entropy import *  # noqa: F403
from mer_dg.losses import *  # noqa: F403
from mer_dg.mixing import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
  "__version__",
  *entropy.__all__,
  *losses.__all__,
  *mixing.__all__,
]
