"""Encoders, projectors, fusion and heads; the only room that imports flax.linen."""

from mer_dg.networks.convolution import convolve
from mer_dg.networks.encoders import ENCODERS
from mer_dg.networks.fusion import FUSIONS
from mer_dg.networks.network import count_parameters, describe, make_network
from mer_dg.networks.preparation import keep_modalities
from mer_dg.networks.types import KINDS, InputSpec, Network, Outputs

__all__ = (
  "ENCODERS",
  "FUSIONS",
  "KINDS",
  "InputSpec",
  "Network",
  "Outputs",
  "convolve",
  "count_parameters",
  "describe",
  "keep_modalities",
  "make_network",
)
