import pytest
import torch
from torch import nn

from fedsparse.nn import SparseLinear
from fedsparse.optim import SGD, Adam
from fedsparse.pruning import from_groups


def step(layer: SparseLinear, optimizer: torch.optim.Optimizer, gradient: list[float]) -> None:
    layer.values.grad = torch.tensor(gradient)
    optimizer.step()


def test_momentum_follows_the_mask_by_hand() -> None:
    """Active 0, 2 with momentum 1, 2 after one step; the mask becomes 2, 3: momentum 2, 0, then 0.5 m + g."""
    layer = SparseLinear(from_groups(torch.tensor([0, 2]), (1, 4)), torch.zeros(2), None)
    optimizer = SGD(layer.parameters(), lr=1.0, momentum=0.5)
    step(layer, optimizer, [1.0, 2.0])
    optimizer.follow(layer.values, layer.set_topology(from_groups(torch.tensor([2, 3]), (1, 4))))
    assert optimizer.state[layer.values]["momentum_buffer"].tolist() == [2.0, 0.0]
    assert layer.values.tolist() == [-2.0, 0.0]
    step(layer, optimizer, [1.0, 1.0])
    assert optimizer.state[layer.values]["momentum_buffer"].tolist() == [2.0, 1.0]
    assert layer.values.tolist() == [-4.0, -1.0]


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01), lambda p: Adam(p, lr=0.1)])
def test_a_sparse_layer_steps_as_a_masked_dense_one(make: object) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(5, 3, bias=False)
    mask = torch.rand(3, 5) < 0.5
    dense.weight.data.mul_(mask)
    topology = from_groups(mask.flatten().nonzero().flatten(), (3, 5))
    layer = SparseLinear.from_dense(dense, topology)
    optimizers = make(layer.parameters()), make(dense.parameters())  # type: ignore[operator]
    for _ in range(4):
        x = torch.randn(6, 5)
        for module, optimizer in zip((layer, dense), optimizers):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            if module is dense:
                dense.weight.grad.mul_(mask)
            optimizer.step()
    assert torch.allclose(layer.dense_weight(), dense.weight, atol=1e-6)


def test_adam_moments_follow() -> None:
    layer = SparseLinear(from_groups(torch.tensor([0, 1]), (1, 4)), torch.zeros(2), None)
    optimizer = Adam(layer.parameters(), lr=0.1)
    step(layer, optimizer, [1.0, 2.0])
    second = optimizer.state[layer.values]["exp_avg_sq"].clone()
    optimizer.follow(layer.values, layer.set_topology(from_groups(torch.tensor([1, 2, 3]), (1, 4))))
    state = optimizer.state[layer.values]
    assert state["exp_avg_sq"].tolist() == [second[1].item(), 0.0, 0.0]
    assert state["exp_avg"].shape == (3,)
    step(layer, optimizer, [1.0, 1.0, 1.0])


def test_following_before_the_first_step_is_nothing() -> None:
    layer = SparseLinear(from_groups(torch.tensor([0]), (1, 4)), torch.zeros(1), None)
    optimizer = SGD(layer.parameters(), lr=1.0, momentum=0.5)
    optimizer.follow(layer.values, layer.set_topology(from_groups(torch.tensor([1, 2]), (1, 4))))
    step(layer, optimizer, [1.0, 1.0])
    assert layer.values.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("settings", [(0.0, 0.0, 0.0), (0.9, 0.0, 1e-3), (0.9, 0.5, 0.0), (0.9, 0.0, 1e-3, True)])
def test_sgd_descends_to_torchs_bits(settings: tuple[float, ...]) -> None:
    """momentum, dampening, weight decay, Nesterov; a parameter without a gradient stays."""
    parameters = [nn.Parameter(torch.randn(n, generator=torch.Generator().manual_seed(n))) for n in (3, 1000, 7)]
    twins = [nn.Parameter(p.detach().clone()) for p in parameters]
    ours, torchs = SGD(parameters, 0.1, *settings), torch.optim.SGD(twins, 0.1, *settings)
    for step in range(3):
        for tensors, take in ((parameters, ours.descend), (twins, torchs.step)):
            generator = torch.Generator().manual_seed(step)
            for p in tensors[:2]:
                p.grad = torch.randn(p.shape, generator=generator)
            take()
    for p, twin in zip(parameters, twins):
        assert torch.equal(p, twin)


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: Adam(p, lr=0.1)])
def test_a_restarted_optimizer_is_as_a_new_one(make: object) -> None:
    """Whatever was done with it: state, changed settings, hooks."""
    used, fresh = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = make([used])  # type: ignore[operator]
    optimizer.register_step_post_hook(lambda *_: used.data.zero_())
    used.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    optimizer.param_groups[0]["weight_decay"] = 5.0
    used.data.fill_(1.0)
    optimizer.restart(0.1)
    twin = make([fresh])  # type: ignore[operator]
    for gradient in ([1.0, -2.0, 3.0], [0.5, 0.5, 0.5]):
        for parameter, taken in ((used, optimizer), (fresh, twin)):
            parameter.grad = torch.tensor(gradient)
            taken.step()
    assert torch.equal(used, fresh)
