"""Command line: ``python main.py --config=configs/x.py [--workdir=DIR]``."""

import os
import sys
from pathlib import Path

# JAX calls LAPACK inside its own thread pool on a CPU; OpenBLAS's threads under it
# slow log-determinants 40-fold and can dead-lock. Read when jax is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, configs/*.py.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; default runs/NAME-HASH.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate", "report"], "What to do.")

_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  logging.set_verbosity(logging.WARNING)  # orbax tells every file it writes.
  from mer_dg import experiments

  name = Path(config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]).stem
  try:
    experiments.run(_CONFIG.value, workdir=_WORKDIR.value, mode=_MODE.value, name=name)
  except (ValueError, FileNotFoundError) as error:
    if _DEBUG.value:
      raise
    sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
