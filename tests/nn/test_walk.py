import torch
from torch import nn

from fedsparse import models
from fedsparse.nn import sparsify
from fedsparse.nn.walk import Tensors, buffers_of, modules_of, parameters_of


def same(found: list, wanted: list) -> bool:
    return len(found) == len(wanted) and all(a is b for a, b in zip(found, wanted))


def check(model: nn.Module) -> None:
    assert same(modules_of(model), list(model.modules()))
    assert same(parameters_of(model), list(model.parameters()))
    assert same(buffers_of(model), list(model.buffers()))


def test_the_order_is_torchs() -> None:
    model = models.build("resnet20", 10, channels=1, image_size=8)
    check(model)
    check(sparsify(model, 0.1))
    check(nn.Linear(2, 3))


def test_what_is_shared_is_found_once_and_what_is_none_not_at_all() -> None:
    layer = nn.Linear(3, 3, bias=False)
    tied = nn.Sequential(layer, nn.Sequential(nn.ReLU(), layer), nn.Linear(3, 3))
    tied[2].weight = layer.weight
    tied.empty = None
    tied.register_buffer("nothing", None)
    tied.register_buffer("state", torch.zeros(1))
    check(tied)
    assert len(parameters_of(tied)) == 2


def test_statistics_and_counters_but_no_index_arrays() -> None:
    """A norm has two statistics and a counter; the five index arrays of a sparse layer are neither."""
    model = sparsify(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), 0.5)
    found = Tensors.of(model)
    assert same(found.statistics, [model[1].running_mean, model[1].running_var])
    assert same(found.counters, [model[1].num_batches_tracked])
    assert len(found.buffers) == 5 + 3
    assert found.nbytes == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert Tensors.of(found) is found
