r"""Trains, evaluates and compares multimodal domain generalisation methods.

  python main.py --config=configs/cooccurrence.py [--workdir=DIR]     # a table
  python main.py --config=configs/cooccurrence.py:d1 [--workdir=DIR]  # one run

Any field of the config can be set: --config.total_steps=2000. The same command
again goes on where it stopped; with another method, seed or setting it trains what is
missing. --help lists flags and fields. Installed, the same is ``mer-dg``.
"""

import os

# JAX calls LAPACK from its own thread pool on a CPU; OpenBLAS's threads under that one
# slow triangular solves 40-fold on 2 cores. Read when jax is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from mer_dg.__main__ import run

if __name__ == "__main__":
  run()
