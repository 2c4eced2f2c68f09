import copy
import io
import re
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsparse import ops
from fedsparse.federated.meter import _cpu_meter
from fedsparse.nn import SparseConv2d, SparseLinear, densify, explain, prunable, sparse_layers, sparsify
from fedsparse.optim import SGD
from fedsparse.pruning import from_groups
from fedsparse.topology import Topology


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1, bias=False),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def test_sparsify_keeps_the_largest_weights_and_densify_gives_them_back() -> None:
    model = small_model()
    weight = model[0].weight.detach().clone()
    sparsify(model, 0.25)
    layer = model[0]
    assert isinstance(layer, SparseConv2d)
    assert layer.topology.nnz == 54
    smallest_kept = layer.values.abs().min()
    assert int((weight.abs() >= smallest_kept).sum()) == 54
    assert isinstance(model[4], nn.Linear), "the last linear layer stays dense"
    x = torch.randn(2, 3, 8, 8)
    y = model(x)
    densify(model)
    assert isinstance(model[0], nn.Conv2d)
    assert torch.allclose(model(x), y, atol=1e-6)
    assert torch.equal(model[0].weight != 0, weight.abs() >= smallest_kept)


def test_layers_equal_masked_dense_layers_forward_and_backward() -> None:
    model, masked = small_model(), small_model()
    masks = {
        n: torch.rand(m.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.4
        for n, m in prunable(model, last=True).items()
    }
    sparsify(model, masks=masks)
    assert isinstance(model[4], SparseLinear)
    for name, mask in masks.items():
        masked.get_submodule(name).weight.data.mul_(mask)
    x = torch.randn(3, 3, 8, 8, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    functional.cross_entropy(model(x), torch.tensor([0, 1, 2])).backward()
    functional.cross_entropy(masked(z), torch.tensor([0, 1, 2])).backward()
    assert torch.allclose(x.grad, z.grad, atol=1e-6)
    for name, layer in sparse_layers(model).items():
        dense = masked.get_submodule(name)
        assert torch.allclose(layer.values.grad, dense.weight.grad[masks[name]], atol=1e-6)
        if layer.bias is not None:
            assert torch.allclose(layer.bias.grad, dense.bias.grad, atol=1e-6)


def test_linear_takes_any_leading_dimensions() -> None:
    layer = SparseLinear.from_dense(nn.Linear(6, 4), Topology.from_mask(torch.rand(4, 6) < 0.5))
    x = torch.randn(2, 3, 6)
    assert torch.allclose(layer(x), functional.linear(x, layer.dense_weight(), layer.bias), atol=1e-6)


def test_a_mask_change_keeps_the_parameter_and_the_surviving_values() -> None:
    """1 x 6, active 0, 2, 4 with 1, 2, 3; new mask 1, 2, 4: values 0, 2, 3 in the same Parameter."""
    layer = SparseLinear(from_groups(torch.tensor([0, 2, 4]), (1, 6)), torch.tensor([1.0, 2.0, 3.0]), None)
    values = layer.values
    values.grad = torch.ones(3)
    move = layer.set_topology(from_groups(torch.tensor([1, 2, 4]), (1, 6)))
    assert layer.values is values
    assert values.tolist() == [0.0, 2.0, 3.0]
    assert values.grad is None
    assert (move.source.tolist(), move.target.tolist(), move.nnz) == ([1, 2], [1, 2], 3)
    layer.set_topology(from_groups(torch.tensor([2]), (1, 6)))
    assert layer.values is values
    assert values.tolist() == [2.0]
    with pytest.raises(ValueError, match="shape"):
        layer.set_topology(from_groups(torch.tensor([2]), (2, 3)))


def test_state_dict_carries_the_topology_into_a_layer_of_another_mask() -> None:
    one, other = sparsify(small_model(), 0.3), sparsify(small_model(), 0.1)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(one(x), other(x))
    for name, layer in sparse_layers(other).items():
        layer.topology.validate()
        assert torch.equal(layer.topology.t_perm, sparse_layers(one)[name].topology.t_perm)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.update({"0.cols": state["0.cols"].flip(0)}), "increasing"),
        (lambda state: state.update({"0.cols": state["0.cols"] + 1000}), "outside 0 to"),
        (lambda state: state.update({"0.cols": state["0.cols"][:-1]}), "must rise from 0 to"),
        (lambda state: state.update({"0.values": state["0.values"][:-1]}), "values have shape"),
        (lambda state: state.update({"0.indptr": state["0.indptr"][:-1]}), "indptr must have"),
        (lambda state: state.update({"0.cols": state["0.cols"].long()}), "int32"),
        (lambda state: state.pop("0.indptr"), "belong together"),
        (lambda state: state.pop("0.values"), "belong together"),
    ],
)
def test_a_state_whose_arrays_do_not_fit_is_refused_and_changes_no_layer_of_them(change, words: str) -> None:
    model = sparsify(small_model(), 0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("0.")}
    state = {name: tensor + 0 for name, tensor in model.state_dict().items()}
    change(state)
    with pytest.raises(RuntimeError, match=words):
        model.load_state_dict(state, strict=False)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_deepcopy_and_dtype_moves_keep_the_topology() -> None:
    model = sparsify(small_model(), 0.3)
    twin = copy.deepcopy(model).double()
    assert twin[0].indptr.dtype == torch.int32
    assert twin[0].values.dtype == torch.float64
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(twin(x.double()).float(), model(x), atol=1e-5)
    twin[0].set_topology(from_groups(torch.tensor([0]), (8, 3, 3, 3)))
    assert model[0].topology.nnz == 65


def test_a_layers_topology_is_one_object_until_its_arrays_change() -> None:
    layer = sparsify(small_model(), 0.5)[0]
    first = layer.topology
    assert layer.topology is first
    copied = copy.deepcopy(layer)
    assert copied.topology is not first
    assert copied.topology.indptr is copied.indptr
    layer.set_topology(Topology.from_mask(torch.ones(layer.weight_shape, dtype=torch.bool)))
    assert layer.topology is not first
    assert layer.topology.cols is layer.cols
    old = weakref.ref(layer.topology.indptr)
    layer.set_topology(first)
    assert old() is None, "arrays of the mask before are gone with it"
    layer.load_state_dict(copied.state_dict())
    assert torch.equal(layer.topology.cols, first.cols)


def test_vectors_of_output_channels_share_their_columns() -> None:
    model = sparsify(small_model(), 0.25, granularity=4)
    mask = model[0].topology.mask()
    assert model[0].granularity == 4
    assert torch.equal(mask[0], mask[3])
    assert torch.equal(mask[4], mask[7])
    assert int(mask.sum()) == 4 * round(0.25 * 54)


def test_a_compiled_layer_is_one_graph() -> None:
    model = sparsify(small_model(), 0.3)
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), model(x), atol=1e-6)


def test_no_dense_copy_of_weight_gradient_or_momentum_lives_in_a_step() -> None:
    """A 2048 x 2048 layer at 1 %: dense it is 16.8 MB; a whole step with momentum must stay under a tenth of that.

    Counted by the allocator, so a copy inside a kernel would show. values, gradient, momentum: 0.17 MB each.
    """
    dense_bytes = 2048 * 2048 * 4
    groups = torch.randperm(2048 * 2048, generator=torch.Generator().manual_seed(0))[: 2048 * 2048 // 100]
    layer = SparseLinear(from_groups(groups, (2048, 2048)), torch.randn(len(groups)), None)
    optimizer = SGD(layer.parameters(), lr=0.1, momentum=0.9)
    meter = _cpu_meter()
    meter.fedsparse_meter_reset()
    before = meter.fedsparse_meter_live()
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.randn(4, 2048)).square().sum().backward()
        optimizer.step()
    assert 0 < meter.fedsparse_meter_peak() - before < dense_bytes / 10


def test_no_dense_copy_of_a_convolution_lives_in_a_step() -> None:
    """512 x 512 x 3 x 3 at 1 % is 9.4 MB dense; the step's scratch is one block of 16 padded images, 1.2 MB."""
    dense_bytes = 512 * 512 * 9 * 4
    groups = torch.randperm(512 * 512 * 9, generator=torch.Generator().manual_seed(0))[: 512 * 512 * 9 // 100]
    layer = SparseConv2d(from_groups(groups, (512, 512, 3, 3)), torch.randn(len(groups)), None, padding=(1, 1))
    optimizer = SGD(layer.parameters(), lr=0.1, momentum=0.9)
    meter = _cpu_meter()
    meter.fedsparse_meter_reset()
    before = meter.fedsparse_meter_live()
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.randn(2, 512, 4, 4, requires_grad=True)).square().sum().backward()
        optimizer.step()
    assert 0 < meter.fedsparse_meter_peak() - before < dense_bytes / 2


def test_explain_names_every_layer() -> None:
    model = sparsify(small_model(), 0.25)
    text = explain(model)
    assert "0: sparse, 54 of 216" in text
    assert "4: dense" in text
    with ops.use_backend("reference"):
        assert "0: sparse, back end reference, 54 of 216" in explain(model)


def test_explain_says_what_runs_each_pass_and_by_which_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers, one at 1 % and one without zeros but one: of each pass the faster by its own times is named."""
    monkeypatch.setenv("FEDSPARSE_CACHE", str(tmp_path))
    masks = {"0": torch.rand(512, 512) < 0.01, "2": torch.ones(512, 512, dtype=torch.bool)}
    masks["2"][0, 0] = False
    model = sparsify(nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)), masks=masks)
    x = torch.randn(64, 512)
    with ops.measuring():
        model(x).sum().backward()
    row = r"(forward|input gradient|weight gradient) (cpu|dense) \(cpu ([0-9.]+) ms, dense ([0-9.]+) ms\)"
    found = [re.findall(row, line) for line in explain(model).splitlines()]
    assert [len(passes) for passes in found] == [2, 3]  # x needs no gradient
    for _, name, sparse, dense in found[0] + found[1]:
        assert sparse == dense or (name == "cpu") == (float(sparse) < float(dense))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({}, "either densities or masks"),
        ({"densities": 0.0}, "density of 0"),
        ({"densities": {"9": 0.5}}, "no prunable layer '9'"),
        ({"densities": 0.5, "granularity": 3}, "granularity 3"),
        ({"masks": {"0": torch.ones(2, 2, dtype=torch.bool)}}, "shape"),
        ({"masks": {"1": torch.ones(2, 2, dtype=torch.bool)}}, "no dense prunable layer '1'"),
        ({"densities": 0.5, "granularity": 0}, "granularity is 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        sparsify(small_model(), **arguments)


def test_a_frozen_layer_stays_frozen_and_a_layer_keeps_at_least_one_weight() -> None:
    model = small_model()
    model[0].requires_grad_(False)
    sparsify(model, 0.001)
    assert not model[0].values.requires_grad
    assert not model[0].bias.requires_grad
    assert model[2].values.requires_grad
    assert model[2].topology.nnz == 1


def test_a_single_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="nn.Sequential"):
        sparsify(nn.Linear(8, 8), 0.5)


def test_grouped_convolutions_stay_dense() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), nn.Flatten(), nn.Linear(8, 2))
    assert list(prunable(model)) == ["1"]
    with pytest.raises(ValueError, match="groups"):
        SparseConv2d.from_dense(model[0], Topology.from_mask(torch.ones(4, 1, 3, 3, dtype=torch.bool)))


class SharedLayers(nn.Module):
    """One layer under two names, two layers with one weight, and attention, which reads its projection's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.inner = nn.ModuleDict({"again": self.first})
        self.embedding = nn.Embedding(5, 8)
        self.tied = nn.Linear(8, 5, bias=False)
        self.tied.weight = self.embedding.weight
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(5, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.inner["again"](self.first(self.embedding(tokens)).relu())
        x, _ = self.attention(x, x, x)
        return self.head(self.tied(x))


def test_a_layer_under_two_names_stays_one_and_tied_weights_stay_tied() -> None:
    model, tokens = SharedLayers(), torch.tensor([[0, 1, 2], [3, 4, 0]])
    assert list(prunable(model, last=True)) == ["first", "head"]
    sparsify(model, {"first": 0.3, "head": 0.5})
    assert model.inner["again"] is model.first
    assert isinstance(model.first, SparseLinear)
    sparse = model(tokens)
    densify(model)
    assert model.inner["again"] is model.first
    torch.testing.assert_close(model(tokens), sparse)
    assert model.tied.weight is model.embedding.weight
    with pytest.raises(ValueError, match="no dense prunable layer 'tied'"):
        sparsify(model, masks={"tied": torch.ones(5, 8, dtype=torch.bool)})


@pytest.mark.parametrize("granularity", [1, 4])
def test_compact_indices_give_the_same_bits_through_training_and_mask_changes(granularity: int) -> None:
    """Both take two steps, each after which groups 0 to 5 of the first layer become its mask, or 3 to 8."""
    models = [sparsify(small_model(), 0.25, granularity=granularity, memory=m) for m in ("fast", "compact")]
    torch.manual_seed(1)
    x, target = torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2])
    results = []
    for model in models:
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        for first in (0, 3):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), target).backward()
            optimizer.step()
            topology = from_groups(torch.arange(first, first + 6), model[0].weight_shape, granularity)
            optimizer.follow(model[0].values, model[0].set_topology(topology))
        results.append(model(x).detach())
    assert torch.equal(*results)
    assert torch.equal(models[0][0].values, models[1][0].values)
    for layer in sparse_layers(models[1]).values():
        assert (layer.cols.dtype, layer.t_cols, layer.t_perm) == (torch.int16, None, None)
    assert models[0][0].cols.dtype == torch.int32


def test_a_state_goes_from_compact_to_fast_and_back() -> None:
    for one, other in (("fast", "compact"), ("compact", "fast")):
        source, target = sparsify(small_model(), 0.3, memory=one), sparsify(small_model(), 0.1, memory=other)
        target.load_state_dict(source.state_dict())
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(source(x), target(x))
        assert target[0].cols.dtype == (torch.int32 if other == "fast" else torch.int16)
        assert (target[0].t_cols is None) == (other == "compact")
    with pytest.raises(ValueError, match="memory is 'small' but must be 'fast' or 'compact'"):
        sparsify(small_model(), 0.3, memory="small")


@pytest.mark.parametrize(
    ("granularity", "memory", "bytes_a_weight"), [(1, "fast", 12), (1, "compact", 2), (4, "compact", 0.5)]
)
def test_indices_take_so_many_bytes(granularity: int, memory: str, bytes_a_weight: float) -> None:
    """The 4608 active weights of a 64 x 32 x 3 x 3 layer at 25 %: 12 or 2 bytes each, and the starts of 64 / V lists
    and, in fast, of 32 channels: 4 bytes each and one more."""
    layer = sparsify(nn.Sequential(nn.Conv2d(32, 64, 3)), {"0": 0.25}, granularity=granularity, memory=memory)[0]
    starts = 4 * (64 // granularity + 1) + (4 * 33 if memory == "fast" else 0)
    assert sum(b.nbytes for b in layer.buffers()) == 4608 * bytes_a_weight + starts
