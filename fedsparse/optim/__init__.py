"""torch's optimizers on active weights: state lives at [nnz] and follows a mask change."""

from fedsparse.optim.following import SGD, Adam, Following

__all__ = ["SGD", "Adam", "Following"]
