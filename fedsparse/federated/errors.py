"""Why a run cannot go on."""


class RunError(RuntimeError):
    """A run that cannot go on, in one sentence: no usable report in a round, or no worker left."""
