"""What runs each layer of a configuration's first model, and why."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np

from fedsparse import nn, ops
from fedsparse.federated import Experiment
from fedsparse.federated.loop import Loop
from fedsparse.federated.loss import cross_entropy


def explanation(experiment: Experiment, measure: bool) -> str:
    """`nn.explain` of the model under the method's first mask, after a training step on client 0's first minibatch, or
    the first of its pieces, at the run's levels of what is kept.

    With `measure`, sparse kernels and dense torch are timed on that step and the times kept for later runs.
    """
    loop = Loop(experiment)
    loop.open()
    server = loop.server
    training = experiment.training
    nn.keep_activations(server.model, training.levels(experiment.method))
    count = min(-(-training.batch_size // training.pieces), len(experiment.parts[0]))
    inputs, targets = experiment.train.batch(np.asarray(experiment.parts[0][:count]))
    with ops.measuring() if measure else nullcontext():
        cross_entropy(server.model(inputs), targets).backward()
    return nn.explain(server.model)
