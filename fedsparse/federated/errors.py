"""Why a run cannot go on."""


class RunError(RuntimeError):
    """A run that cannot go on, in one sentence: no usable report in a round."""


class BudgetError(RunError):
    """A client's memory limit that nothing meets, found before any training: it names the least that would do."""


class StoppedError(RunError):
    """A run that something outside it stopped, and that can be resumed: workers lost, a quorum missed."""
