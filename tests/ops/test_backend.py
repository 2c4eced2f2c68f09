from pathlib import Path

import pytest
import torch
from op_cases import CONVS, LINEARS, OpLog, conv_operands, isas, linear_operands

from fedsparse import ops
from fedsparse.ops import backend, dispatch, load


def ran(backend: str | None) -> set[str]:
    """Names of the ops that a linear layer and a convolution run."""
    with OpLog() as log:
        for operands, apply in (
            (conv_operands(CONVS["one full block"], torch.float32), ops.conv2d),
            (linear(), ops.spmm),
        ):
            topology, values, x, bias = operands
            if backend is None:
                apply(values, topology, x, bias)
            else:
                with ops.use_backend(backend):
                    apply(values, topology, x, bias)
    return log.names


def linear():
    return linear_operands(LINEARS["one full block"], torch.float32)


def test_cpu_tensors_run_on_the_compiled_back_end_where_it_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "crossover", lambda work: 1.0)
    dispatch._choose.cache_clear()
    assert {"conv2d", "spmm"} <= ran(None)
    assert not {"convolution", "im2col", "mm", "addmm"} & ran(None)
    dispatch._choose.cache_clear()


def test_each_back_end_runs_when_forced() -> None:
    assert {"conv2d", "spmm"} <= ran("cpu")
    assert {"convolution", "addmm"} <= ran("dense")
    assert {"im2col", "mm"} <= ran("reference")
    assert not {"conv2d", "spmm"} & (ran("dense") | ran("reference"))


def test_backward_runs_where_forward_did() -> None:
    topology, values, x, bias = conv_operands(CONVS["primes"], torch.float32)
    with ops.use_backend("dense"):
        y = ops.conv2d(values.requires_grad_(), topology, x, bias)
    with OpLog() as log:
        y.sum().backward()
    assert "convolution_backward" in log.names
    assert "conv2d_weight" not in log.names


def test_active_backend() -> None:
    assert ops.active_backend("cpu") == "cpu"
    assert ops.active_backend("cuda:1") == "dense"
    with ops.use_backend("reference"):
        assert ops.active_backend(torch.device("cuda")) == "reference"
        with ops.use_backend("dense"):
            assert ops.active_backend("cpu") == "dense"
        assert ops.active_backend("cpu") == "reference"
    assert ops.active_backend("cpu") == "cpu"


def test_an_impossible_back_end_is_refused() -> None:
    topology, values, x, _ = linear()
    with pytest.raises(ValueError, match="'gpu' is unknown; choose one of cpu, dense"), ops.use_backend("gpu"):
        pass
    with ops.use_backend("triton"), pytest.raises(ValueError, match="'triton' needs tensors on cuda, not on cpu"):
        ops.spmm(values, topology, x)
    with ops.use_backend("cpu"), pytest.raises(ValueError, match="'cpu' needs tensors on cpu, not on cuda"):
        ops.active_backend("cuda")
    assert ops.active_backend("cpu") == "cpu"


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    topology, values, x, _ = linear()
    monkeypatch.setattr(load, "_loaded", set())
    monkeypatch.setitem(load._FILES, "cpu", Path("nowhere/_ops.so"))
    with pytest.raises(RuntimeError, match=r"_ops\.so is missing.*pip install"):
        ops.spmm(values, topology, x)
    assert ops.compiled()["cpu_library"] is False
    with ops.use_backend("dense"), pytest.raises(RuntimeError, match=r"_ops\.so is missing"):
        ops.spmm(values, topology, x)
    with ops.use_backend("reference"):
        assert ops.spmm(values, topology, x).shape == (16, 7)


def test_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = ops.compiled()
    assert facts["instruction_set_chosen"] in isas()
    assert isas()[-1] == "portable"
    with pytest.raises(RuntimeError, match=r"is 'mmx', but this machine runs: .*portable"):
        torch.ops.fedsparse.set_isa("mmx")
    monkeypatch.setenv("FEDSPARSE_ISA", "portable")
    torch.ops.fedsparse.set_isa("")
    assert ops.compiled()["instruction_set_chosen"] == "portable"
    monkeypatch.setenv("FEDSPARSE_ISA", "fast")
    torch.ops.fedsparse.set_isa("")
    with pytest.raises(RuntimeError, match="FEDSPARSE_ISA is 'fast'"):
        torch.ops.fedsparse.isa()
    monkeypatch.undo()
    torch.ops.fedsparse.set_isa("")


def test_a_gpu_without_triton_runs_dense_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what has its images innermost is nothing special there."""
    gpu = torch.device("cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend, "has_triton", lambda: True)
    assert ops.runs_triton(gpu)
    assert not ops.runs_triton(torch.device("cpu"))
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    assert not ops.runs_triton(gpu)
    assert ops.active_backend(gpu) == "dense"
