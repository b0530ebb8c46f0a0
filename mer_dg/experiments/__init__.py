"""Config -> runs -> records -> report; the only room that main.py calls."""

from mer_dg.experiments.build import Workbench
from mer_dg.experiments.config import ConfigError, validate
from mer_dg.experiments.launch import run

__all__ = ["ConfigError", "Workbench", "run", "validate"]
