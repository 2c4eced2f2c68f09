"""The one error of the codec."""


class WireError(ValueError):
    """A message that cannot be encoded or must not be believed; its one sentence names what is wrong."""
