import torch
from torch import nn
from torch.nn import functional

from fedsparse.pruning import score


class Product(nn.Module):
    """y = x W^T, whose gradients are easy to derive by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        self.layer.weight.data = torch.tensor([[3.0, -1.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def half_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 0.5 * ((output[:, 0] - target) ** 2).mean()


BATCH = [(torch.tensor([[1.0, 2.0]]), torch.tensor([0.0]))]


def test_snip_by_hand() -> None:
    """y = 3 - 2 = 1; dL/dw = y x = (1, 2); |g w| = (3, 2)."""
    assert score.snip(Product(), ["layer"], BATCH, half_square)["layer"].tolist() == [[3.0, 2.0]]


def test_grasp_by_hand() -> None:
    """L = y^2 / 2 with logits / 1: H = x x^T = [[1, 2], [2, 4]], g = (1, 2), Hg = (5, 10), w * Hg = (15, -10)."""
    scores = score.grasp(Product(), ["layer"], BATCH, half_square, temperature=1.0)
    assert scores["layer"].tolist() == [[15.0, -10.0]]


def test_grasp_equals_a_finite_difference_of_the_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randint(0, 3, (8,))
    weight = model[0].weight

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(functional.cross_entropy(model(x) / 200, y), weight)[0]

    g = gradient()
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 1e-4 * g
    moved = gradient()
    with torch.no_grad():
        weight.copy_(before)
    expected = before * (moved - g) / 1e-4
    found = score.grasp(model, ["0"], [(x, y)], functional.cross_entropy)["0"]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-14)


def test_synflow_keeps_the_paths_of_most_flow() -> None:
    """1 -> 2 -> 1 with |w| 1, 2 and 3, 1: flows 3 and 2 through each path; d = .5 keeps the first path whole.

    Step by step global pruning keeps the layer weights (1, 3) of flow 3 * 1 = 3; magnitude alone would keep 2 and 3.
    """
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0], [-2.0]])
    model[1].weight.data = torch.tensor([[3.0, 1.0]])
    masks = score.synflow_masks(model, ["0", "1"], (1,), 0.5, "global", steps=4)
    assert masks["0"].flatten().tolist() == [True, False]
    assert masks["1"].flatten().tolist() == [True, False]
    assert model[0].weight.flatten().tolist() == [1.0, -2.0]


def test_synflow_counts_are_exact_with_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    masks = score.synflow_masks(model, ["0", "4"], (1, 8, 8), 0.1, "erk", steps=20)
    assert sum(int(m.sum()) for m in masks.values()) == round(0.1 * (72 + 1152))
