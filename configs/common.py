"""Every field an experiment has, with its default, for config files to edit a copy of.

What the fields mean and may be stands with them in mer_dg/experiments/config.py;
``python main.py --help`` lists them.
"""

import dataclasses

from ml_collections import config_dict

from mer_dg.experiments.config import BASELINES, Config

__all__ = ["BASELINES", "get_config"]


def get_config() -> config_dict.ConfigDict:
  """The defaults; see configs/cooccurrence.py for an experiment."""
  return config_dict.ConfigDict(dataclasses.asdict(Config()))
