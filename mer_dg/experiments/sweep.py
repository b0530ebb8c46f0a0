"""One command line per run, for a cluster, from ``sweep(add)`` of a config file."""

from __future__ import annotations

from collections.abc import Mapping
import importlib.util
from pathlib import Path
import shlex
from typing import Any

from mer_dg.experiments.config import ConfigError, validate
from mer_dg.protocol import file_name


def command_lines(
  filename: str, *, workdir: str = "", overrides: Mapping[str, Any] | None = None
) -> list[str]:
  """The commands that ``sweep`` of a config file asks for, each config checked.

  The file calls ``add(config_arg=..., **fields)`` once per run; a field inside a
  group is written ``**{"optimizer.lr": 1e-3}``.

  Args:
    filename: The config file.
    workdir: Folder that gets one workdir per run; by default ``runs/<name>``.
    overrides: ``{field: value}`` for every run, under what the sweep sets.

  Returns:
    Lines for a shell, started in the folder of main.py.

  Raises:
    ConfigError: No such file, no ``sweep`` in it, or a run with a wrong config.
  """
  path = Path(filename)
  if not path.is_file():
    raise ConfigError(f"--config={filename}: no such file.")
  spec = importlib.util.spec_from_file_location(f"_sweep_{path.stem}", path)
  if spec is None or spec.loader is None:
    raise ConfigError(f"--config={filename} is no Python file.")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "sweep"):
    raise ConfigError(f"{filename} has no sweep(add); --mode=sweep needs one.")
  lines: list[str] = []
  base = Path(workdir or Path("runs") / path.stem)

  def add(config_arg: str | None = None, **fields) -> None:
    fields = {**(overrides or {}), **fields}
    config = module.get_config(*(() if config_arg is None else (config_arg,)))
    try:
      config.update_from_flattened_dict(fields)
    except (KeyError, TypeError, ValueError) as error:
      raise ConfigError(f"{filename}, sweep: {fields}: {error}") from error
    validate(config)
    words = [f"{name}={_word(value)}" for name, value in fields.items()]
    named = "-".join([*([config_arg] if config_arg else []), *words] or ["run"])
    folder = base / file_name(named)
    argument = filename if config_arg is None else f"{filename}:{config_arg}"
    command = ["python", "main.py", f"--config={argument}"]
    command += [f"--config.{word}" for word in words] + [f"--workdir={folder}"]
    lines.append(shlex.join(command))

  module.sweep(add)
  return lines


def _word(value: Any) -> str:
  return repr(value) if isinstance(value, tuple) else str(value)
