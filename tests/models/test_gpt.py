import copy

import pytest
import torch
from torch import nn

from fedsparse import models
from fedsparse.nn import prunable, sparse_layers, sparsify

TEXT = models.names(text=True)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build("gpt", 11, context=6, width=0.5).double()


def test_names_of_images_and_of_text() -> None:
    assert TEXT == ["gpt", "gpt2-32m"]
    assert sorted([*models.names(text=False), *TEXT]) == models.names()


@pytest.mark.parametrize(
    ("name", "classes", "context", "dim", "layers", "count"),
    [("gpt", 128, 64, 128, 4, 834_304), ("gpt2-32m", 8192, 256, 448, 10, 31_598_336)],
)
def test_parameter_counts(name: str, classes: int, context: int, dim: int, layers: int, count: int) -> None:
    """Block: 12 d^2 in weights, 9 d in biases, 4 d in norms; embedding, positions, last norm, head."""
    with torch.device("meta"):
        model = models.build(name, classes, context=context)
    assert parameters(model) == count
    assert count == layers * (12 * dim**2 + 13 * dim) + (2 * classes + context + 2) * dim
    assert sum(layer.weight.numel() for layer in prunable(model).values()) == layers * 12 * dim**2
    assert abs(count / 32e6 - 1) < 0.02 or name == "gpt"


def test_prunable_are_the_linear_layers_but_the_head() -> None:
    layers = prunable(small())
    assert len(layers) == 4 * 4
    assert "head" not in layers
    assert list(prunable(small(), last=True))[-1] == "head"


def test_a_position_sees_itself_and_what_comes_before() -> None:
    model = small().eval()
    x = torch.tensor([[1, 2, 3, 4, 5, 6]])
    changed = x.clone()
    changed[0, 3] = 9
    before, after = model(x), model(changed)
    assert before.shape == (1, 6, 11)
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(-1).all()


def test_fewer_tokens_than_the_context_give_the_same_logits() -> None:
    model = small().eval()
    x = torch.tensor([[1, 2, 3, 4, 5, 6]])
    torch.testing.assert_close(model(x[:, :4]), model(x)[:, :4])
    with pytest.raises(ValueError, match="a sample has 7 tokens, but the model's context is 6"):
        model(torch.zeros(1, 7, dtype=torch.int64))


def test_attention_is_the_formula() -> None:
    """softmax(q k^T / sqrt(head size)) v over the positions up to each, head by head."""
    attention = small().get_submodule("blocks.0.attention")
    x = torch.randn(2, 5, 64, dtype=torch.float64)
    q, k, v = attention.get_submodule("qkv")(x).split(64, dim=-1)
    heads = []
    for part in range(2):
        columns = slice(32 * part, 32 * part + 32)
        scores = q[..., columns] @ k[..., columns].transpose(1, 2) / 32**0.5
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v[..., columns])
    expected = attention.get_submodule("out")(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x), expected, rtol=1e-9, atol=1e-12)


def test_the_head_is_not_tied_and_there_are_no_float_buffers() -> None:
    model = small()
    assert model.get_parameter("head.weight") is not model.get_parameter("tokens.weight")
    assert not list(model.buffers())


def test_initial_loss_is_that_of_guessing() -> None:
    torch.manual_seed(0)
    model = models.build("gpt", 100, context=32)
    x = torch.randint(100, (4, 32))
    loss = nn.functional.cross_entropy(model(x).flatten(0, 1), torch.randint(100, (128,)))
    assert abs(loss.item() - torch.tensor(100.0).log().item()) < 0.1
    ends = [p.std().item() for key, p in model.named_parameters() if key.endswith(("out.weight", "project.weight"))]
    assert len(ends) == 8
    assert all(abs(std / (0.02 / 8**0.5) - 1) < 0.05 for std in ends)


def test_width_multiplies_the_heads() -> None:
    assert models.build("gpt", 10, width=2).get_parameter("tokens.weight").shape == (10, 256)
    assert models.build("gpt", 10, width=1e-6).get_parameter("tokens.weight").shape == (10, 32)


def test_a_sparse_step_equals_that_of_the_masked_dense_twin() -> None:
    dense = small()
    sparse = sparsify(copy.deepcopy(dense), 0.2)
    masks = {layer: module.topology.mask() for layer, module in sparse_layers(sparse).items()}
    assert len(masks) == 16
    assert isinstance(sparse.get_submodule("head"), nn.Linear)
    with torch.no_grad():
        for layer, mask in masks.items():
            dense.get_parameter(f"{layer}.weight").mul_(mask)
    x, y = torch.randint(11, (3, 6)), torch.randint(11, (18,))
    outputs = []
    for model in (dense, sparse):
        outputs.append(model(x))
        nn.functional.cross_entropy(outputs[-1].flatten(0, 1), y).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-12)
    for layer, module in sparse_layers(sparse).items():
        twin = dense.get_parameter(f"{layer}.weight").detach() * masks[layer]
        torch.testing.assert_close(module.dense_weight(), twin, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(sparse.get_parameter("tokens.weight"), dense.get_parameter("tokens.weight"))
