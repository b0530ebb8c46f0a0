"""Config -> runs -> records -> report; the only room that main.py calls."""

from mer_dg.data import DataError
from mer_dg.experiments.config import Config, ConfigError, validate
from mer_dg.experiments.hosts import start as join_hosts
from mer_dg.experiments.launch import MODES, USER_ERRORS, explain, run
from mer_dg.experiments.programs import keep_programs
from mer_dg.experiments.setup import Setup, check, make_setup
from mer_dg.experiments.sweep import command_lines
from mer_dg.experiments.workdir import WorkdirError
from mer_dg.methods import MethodError
from mer_dg.training.loop import TrainingDiverged

__all__ = [
  "MODES",
  "USER_ERRORS",
  "Config",
  "ConfigError",
  "DataError",
  "MethodError",
  "Setup",
  "TrainingDiverged",
  "WorkdirError",
  "check",
  "command_lines",
  "explain",
  "join_hosts",
  "keep_programs",
  "make_setup",
  "run",
  "validate",
]
