"""The config that lies in a workdir, for commands that name nothing but the workdir."""

import json
import pathlib

from ml_collections import config_dict


def get_config(workdir: str) -> config_dict.ConfigDict:
  """The config of the newest run in a folder."""
  path = pathlib.Path(workdir) / "config.json"
  try:
    found = json.loads(path.read_bytes().decode())
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}. Give its --config.") from error
  if not isinstance(found, dict):
    raise ValueError(f"{path} is damaged: it is no object. Give its --config.")
  return config_dict.ConfigDict(_with_tuples(found))


def _with_tuples(value):
  """Lists as tuples, as a config file has them."""
  if isinstance(value, dict):
    return {name: _with_tuples(field) for name, field in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
