r"""Leave-one-domain-out table of your own data, from one .npz file.

  python main.py --config=configs/features.py --config.data.path=FILE
  # One run with checkpoints, domain "user_b" held out:
  python main.py --config=configs/features.py:user_b --config.data.path=FILE

The format is that of docs/data.md; modalities, classes, domains, groups and
valid lengths are read from the file, encoders are chosen by input rank. The
headline metric is balanced accuracy, which equals accuracy on balanced sets.
Results on dsads and gesture_phase with time and device: docs/results.md.
"""

from configs import common
from mer_dg.experiments.door import FEATURES


def get_config(target: str = ""):
  c = common.get_config()
  c.target = target
  c.data.name = "npz"
  c.update_from_flattened_dict(
    FEATURES
  )  # Metric and length of training; mer_dg.fit has the same.
  return c
