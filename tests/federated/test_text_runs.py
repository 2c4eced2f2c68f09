"""Text through the loop: loss, evaluation, multiply-adds and records of token sequences."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsparse import data, models
from fedsparse.data import Text
from fedsparse.data.vocabulary import Characters
from fedsparse.federated import Experiment, Training, run
from fedsparse.federated.loss import cross_entropy
from fedsparse.federated.meter import multiply_adds
from fedsparse.federated.server import evaluate
from fedsparse.methods import get
from fedsparse.nn import prunable, sparse_layers, sparsify


def grammar(seed: int, count: int) -> str:
    """A made-up language in which each word decides the next, but for the first."""
    rng = np.random.default_rng(seed)
    lines = ("red fox runs home.", "wet dog digs deep.", "old owl sees far.")
    return "".join(f"{lines[i]}\n" for i in rng.integers(0, 3, count))


def texts(path: Path, context: int = 16) -> tuple[Text, Text]:
    path.write_text(grammar(0, 120))
    return data.load_text(f"text:{path}", context=context)


def test_loss_of_sequences_is_the_mean_over_all_tokens() -> None:
    output, target = torch.randn(2, 3, 5, dtype=torch.float64), torch.tensor([[0, 4, 2], [1, 1, 3]])
    picked = output.log_softmax(-1).gather(-1, target[..., None])
    torch.testing.assert_close(cross_entropy(output, target), -picked.mean())
    torch.testing.assert_close(cross_entropy(output, target, reduction="sum"), -picked.sum())
    flat, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    assert torch.equal(cross_entropy(flat, labels), functional.cross_entropy(flat, labels))


class Repeat(nn.Module):
    """Logits that say: the next token is the present one."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.classes = classes
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        return self.scale * functional.one_hot(x, self.classes).float()


def test_evaluation_counts_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """aab: of the transitions aa, ab, ba the first is right; the loss is log(e^2 + classes - 1) - 2 or without -2."""
    tokens = torch.from_numpy(Characters("ab").encode("aab" * 4 + "a"))
    starts = torch.tensor([0, 3, 6, 9])
    text = Text("toy", tokens, starts, torch.zeros(4, dtype=torch.int64), Characters("ab"), 3)
    model = Repeat(3)
    accuracy, loss = evaluate(model, text)
    assert accuracy == pytest.approx(1 / 3)
    assert loss == pytest.approx(math.log(math.exp(2) + 2) - 2 / 3)
    monkeypatch.setattr("fedsparse.federated.server.LOGITS", 2 * 3 * 3)
    model.batches.clear()
    assert evaluate(model, text) == pytest.approx((accuracy, loss))
    assert model.batches == [2, 2]


def test_multiply_adds_count_every_position() -> None:
    """At each of 6 positions 12 d^2 a block and d * classes in the head; a sparse layer its active weights."""
    model = models.build("gpt", 11, context=6, width=0.5)
    head = 64 * 11
    assert multiply_adds(model, (6,), torch.int64) == 6 * (4 * 12 * 64**2 + head)
    sparsify(model, 0.25)
    active = sum(layer.topology.nnz for layer in sparse_layers(model).values())
    assert active == 12 * 64**2
    assert multiply_adds(model, (6,), torch.int64) == 6 * (active + head)


def test_multiply_adds_of_a_linear_layer_on_four_dimensions() -> None:
    """10 weights at each of 3 * 4 positions of a sample of shape (3, 4, 2)."""
    assert multiply_adds(nn.Sequential(nn.Linear(2, 5)), (3, 4, 2)) == 10 * 12


def test_a_run_on_text_records_a_falling_perplexity(tmp_path: Path) -> None:
    torch.manual_seed(0)
    train, test = texts(tmp_path / "a.txt")
    parts = data.partition("quantity", train.labels.numpy(), 3, np.random.default_rng(0), alpha=2.0, min_samples=10)
    experiment = Experiment(
        model=models.build("gpt", train.classes, context=train.context, width=0.5),
        method=get("fedavg")(density=0.2),
        train=train,
        test=test,
        parts=parts,
        training=Training(rounds=5, clients_per_round=3, lr=0.003, optimizer="adam", batch_size=8, eval_every=2),
    )
    records: list[dict] = []
    result = run(experiment, on_round=records.append)
    assert [record["perplexity"] is None for record in records] == [True, False, True, False, False]
    for record in (records[1], records[3], records[4]):
        assert record["perplexity"] == pytest.approx(math.exp(record["loss"]))
    assert result["perplexity"] == records[4]["perplexity"] < 0.8 * records[1]["perplexity"]
    assert records[1]["perplexity"] < train.classes
    assert records[4]["accuracy"] > 0.5
    assert result["density"] == pytest.approx(0.2, abs=1e-3)
    assert result["macs"] < 0.3 * result["dense_macs"]


def test_images_have_no_perplexity(tmp_path: Path) -> None:
    train, test = data.load("digits", image_size=8, train_limit=40)
    experiment = Experiment(
        model=models.build("mlp", 10, 1, 8, width=0.1),
        method=get("fedavg")(),
        train=train,
        test=test,
        parts=[np.arange(20), np.arange(20, 40)],
        training=Training(rounds=1),
    )
    records: list[dict] = []
    result = run(experiment, on_round=records.append)
    assert "perplexity" not in result
    assert "perplexity" not in records[0]


@pytest.mark.parametrize("settings", [{"initial": "snip"}, {"initial": "grasp"}, {"granularity": 16}])
def test_masks_by_data_and_vector_masks_on_text(tmp_path: Path, settings: dict) -> None:
    torch.manual_seed(0)
    train, test = texts(tmp_path / "a.txt", context=8)
    experiment = Experiment(
        model=models.build("gpt", train.classes, context=8, width=0.25),
        method=get("fedavg")(density=0.3, initial_batches=1, **settings),
        train=train,
        test=test,
        parts=np.array_split(np.arange(40), 2),
        training=Training(rounds=1, batch_size=10, lr=0.1),
    )
    result = run(experiment)
    assert result["density"] == pytest.approx(0.3, abs=0.01)
    assert math.isfinite(result["perplexity"])


def test_fedtiny_selects_grows_and_prunes_on_text(tmp_path: Path) -> None:
    """No batch norm: candidates are chosen by loss alone; growth sees [b, context, d]."""
    torch.manual_seed(0)
    train, test = texts(tmp_path / "a.txt", context=8)
    model = models.build("gpt", train.classes, context=8, width=0.25)
    experiment = Experiment(
        model=model,
        method=get("fedtiny")(density=0.3, interval=1, last=3, blocks=1),
        train=train,
        test=test,
        parts=np.array_split(np.arange(40), 2),
        training=Training(rounds=3, batch_size=10, lr=0.1),
    )
    records: list[dict] = []
    run(experiment, on_round=records.append)
    assert records[1]["mask_change"] > 0
    assert records[2]["density"] == pytest.approx(0.3, abs=0.01)
    assert set(records[2]["layer_densities"]) == set(prunable(model))
