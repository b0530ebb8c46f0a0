"""Encoders of published work that are trained from scratch, by name."""

from mer_dg.networks.published.backbone import Backbone
from mer_dg.networks.published.hust import make_hust_cnn
from mer_dg.networks.published.sentiment import make_sentiment_encoder

FROM_SCRATCH = ("hust_cnn", "sentiment_transformer")


def make_from_scratch(
  name: str, channels: int, *, compute_dtype: str = "float32"
) -> Backbone:
  """The encoder of a name, for sequences.

  Args:
    name: ``hust_cnn`` (one channel) or ``sentiment_transformer``.
    channels: Of the input.
    compute_dtype: ``float32`` or ``bfloat16``.

  Raises:
    ValueError: For an unknown name or dtype.

  Example:
    >>> make_from_scratch("sentiment_transformer", 33).sample
    (None, 33)
  """
  if name == "hust_cnn":
    return make_hust_cnn(compute_dtype=compute_dtype)
  if name == "sentiment_transformer":
    return make_sentiment_encoder(channels, compute_dtype=compute_dtype)
  raise ValueError(f"name={name!r} is not one of {FROM_SCRATCH}.")
