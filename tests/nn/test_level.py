"""Names of levels, and which layer gets which."""

import pytest
import torch
from torch import nn

from fedsparse.nn import Level, explain, keep_activations, sparsify, standardise, use_region
from fedsparse.nn.activation_store import BitReLU


def test_names() -> None:
    assert Level.parse("pruned(0.2, bf16)") == Level("pruned", 0.2, True)
    assert Level.parse("pruned( 1 ,fp32)") == Level("pruned", 1.0, False)
    for text in ("dense", "lossless", "bf16", "recompute", "pruned(0.2)", "pruned(0.25, bf16)"):
        assert str(Level.parse(text)) == text
    for text in ("", "Dense", "pruned", "pruned()", "pruned(0)", "pruned(1.5)", "pruned(0.2, fp16)", "pruned(-e)"):
        with pytest.raises(ValueError, match="must be one of dense, lossless, bf16, recompute, pruned"):
            Level.parse(text)


def test_the_first_pattern_that_fits_holds() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    sparsify(model, 0.5)
    keep_activations(model, {"2": "pruned(0.5)", "[24]": "lossless"})
    assert [str(model[i].level) for i in (0, 2, 4)] == ["dense", "pruned(0.5)", "lossless"]
    assert type(model[1]) is BitReLU
    keep_activations(model, "dense")
    assert all(model[i].level.keeps_all for i in (0, 2, 4))
    assert not model[1].lean, "then ReLU does as torch's"
    with pytest.raises(ValueError, match=r"no layer's name fits 'x\*'; those with a level are: 0, 2, 4"):
        keep_activations(model, {"x*": "lossless", "*": "dense"})


def test_dense_convolutions_have_levels_too() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 3, padding="same")
    )
    weight = model[0].weight
    keep_activations(model, "lossless")
    assert [getattr(layer, "level", None) is not None for layer in model] == [True, False, True, False]
    assert model[0].weight is weight
    assert standardise(model) is model


def test_explain_says_what_is_kept_and_where_that_is_more_than_asked_for() -> None:
    model = keep_activations(sparsify(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), {"0": 0.5}), "recompute")
    for region, expected in ((True, "activations recompute;"), (False, "a norm keeps its input as it is")):
        with use_region(region):
            model(torch.randn(16, 3, 8, 8)).sum().backward()
        assert expected in explain(model)
