"""Terms other than entropy and mixing; pure functions of arrays."""

from mer_dg.losses.classification import cross_entropy, masked_mean

__all__ = ["cross_entropy", "masked_mean"]
