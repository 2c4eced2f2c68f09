import json
from pathlib import Path

import pytest
import torch
from op_cases import Conv, Linear, OpLog, agree, conv_operands, linear_operands, output_and_gradients

from fedsparse import ops
from fedsparse.ops import dispatch
from fedsparse.ops import times as times_file
from fedsparse.ops.index import Index
from fedsparse.topology import Topology

PRODUCTS = ("product", "transposed", "sampled")
CASE = Conv(N=16, C=16, B=16, H=8, W=8)


def work(
    density: float, batch: int = 16, family: str = "conv2d", product: str = "product", strip: int = 1, gpu: str = ""
):
    return dispatch.Pass(
        family,
        product,
        (10, 100, 3, 3),
        (1, 1),
        (1, 1),
        (1, 1),
        (8, 8),
        batch,
        torch.float32,
        round(9000 * density),
        strip,
        gpu,
    )


@pytest.fixture
def times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of measured times of this test alone."""
    monkeypatch.setenv("FEDSPARSE_CACHE", str(tmp_path))
    monkeypatch.setattr(times_file, "_times", {})
    dispatch._choose.cache_clear()
    yield tmp_path
    dispatch._choose.cache_clear()


def crossing(monkeypatch: pytest.MonkeyPatch, density: float) -> None:
    """Ship that crossover for everything."""
    kinds = {kind: {"single": density, "strips": density} for kind in ("linear", "kxk", "kxk strided")}
    table = {f"{family} {p}": kinds for family in ("conv2d", "blocked_conv2d", "linear") for p in PRODUCTS}
    monkeypatch.setattr(dispatch, "_crossovers", lambda: {"avx2": table})


def test_the_shipped_table_has_every_pass_and_kind() -> None:
    table = json.loads(dispatch.CROSSOVERS.read_text())["crossovers"]["avx2"]
    assert set(table) == {f"{family} {p}" for family in ("conv2d", "blocked_conv2d", "linear") for p in PRODUCTS}
    for which, kinds in table.items():
        few = {"few kxk", "few kxk strided", "few 1x1", "few 1x1 strided", "kxk", "kxk strided", "1x1", "1x1 strided"}
        assert set(kinds) == ({"linear"} if which.startswith("linear") else few)
        assert all(0 <= row[name] <= 1 for row in kinds.values() for name in ("single", "strips"))


def test_dense_above_the_crossover_and_sparse_below(times: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crossing(monkeypatch, 0.4)
    assert dispatch.choose(work(0.4)).name == "cpu"
    assert str(dispatch.choose(work(0.41))) == "dense (shipped crossover 40%)"


def test_empty_lanes_count(times: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 images fill half of 16 lanes: the crossover of .4 is met at .2; 17 images fill 17 of 32."""
    crossing(monkeypatch, 0.4)
    assert [dispatch.choose(work(d, batch=8)).name for d in (0.2, 0.21)] == ["cpu", "dense"]
    assert [dispatch.choose(work(d, batch=17)).name for d in (0.21, 0.22)] == ["cpu", "dense"]


def test_measured_times_come_before_the_table_and_are_kept(times: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crossing(monkeypatch, 0.4)
    topology, values, x, _ = conv_operands(CASE, torch.float32)
    with ops.measuring():
        output_and_gradients(lambda v, x: ops.conv2d(v, topology, x, padding=1), values, x)
    (file,) = times.glob("*.json")
    kept = json.loads(file.read_text())
    assert sorted(key.split()[1] for key in kept) == ["product", "sampled", "transposed"]
    assert all(set(row) == {"cpu", "dense"} and min(row.values()) > 0 for row in kept.values())
    (key,) = (key for key in kept if " product " in key)
    for faster, slower in (("cpu", "dense"), ("dense", "cpu")):
        file.write_text(json.dumps(kept | {key: {faster: 1.0, slower: 2.0}}))
        times_file._times.clear()
        dispatch._choose.cache_clear()
        with OpLog() as log:
            ops.conv2d(values, topology, x, padding=1)
        assert ("convolution" in log.names) == (faster == "dense")
        assert ("conv2d" in log.names) == (faster == "cpu")


@pytest.mark.parametrize(
    "content", ["", "[1,", "[]", '{"x": 3}', '{"x": {"cpu": null, "dense": 1}}', '{"x": {"bf16": 1}}', '{"x": {}}']
)
def test_a_file_that_is_not_ours_is_named_and_not_used(
    content: str, times: Path, caplog: pytest.LogCaptureFixture
) -> None:
    times_file.file_of_times().write_text(content)
    assert dispatch.choose(work(0.1)).times == {}
    assert str(times_file.file_of_times()) in caplog.text
    with pytest.raises(RuntimeError, match="measured times cannot be kept"):
        times_file.keep(times_file.file_of_times(), "x", {"cpu": 1.0, "dense": 2.0})


def test_no_home_stops_no_run(times: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSPARSE_CACHE", "/dev/null/nothing")
    assert dispatch.choose(work(0.1)).times == {}
    monkeypatch.delenv("FEDSPARSE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    times_file._file_in.cache_clear()
    assert times_file.file_of_times() is None
    assert dispatch.choose(work(0.1)).times == {}
    with pytest.raises(RuntimeError, match="set FEDSPARSE_CACHE"):
        times_file.keep(None, "x", {"cpu": 1.0, "dense": 2.0})
    times_file._file_in.cache_clear()


def test_times_that_another_process_kept_stay(times: Path) -> None:
    file, row = times_file.file_of_times(), {"cpu": 1.0, "dense": 2.0}
    times_file.keep(file, "ours", row)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"theirs": row}))
    times_file.keep(file, "ours too", row)
    assert set(json.loads(file.read_text())) == {"ours", "theirs", "ours too"}


def test_layers_that_differ_in_anything_timed_have_times_of_their_own() -> None:
    one = work(0.5)
    others = {"padding": (0, 0), "dilation": (2, 2), "stride": (2, 2), "size": (9, 9), "batch": 17, "strip": 16}
    others |= {"family": "blocked_conv2d", "product": "sampled", "nnz": 900, "dtype": torch.float64}
    keys = {one._replace(**{name: value}).key for name, value in others.items()}
    assert len(keys | {one.key}) == len(others) + 1


@pytest.mark.parametrize("density", [0.0, 1.0], ids=["all dense", "all sparse"])
@pytest.mark.parametrize("region", [False, True])
def test_results_do_not_depend_on_the_choice(
    density: float, region: bool, times: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossing(monkeypatch, density)
    topology, *operands = conv_operands(CASE, torch.float64)
    with ops.use_backend("reference"):
        expected = output_and_gradients(lambda v, x, b: ops.conv2d(v, topology, x, b, padding=1), *operands)

    def apply(v: torch.Tensor, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if not region:
            return ops.conv2d(v, topology, x, b, padding=1)
        return ops.from_blocked(ops.blocked_conv2d(v, topology, ops.to_blocked(x), CASE.B, b, padding=1), CASE.B)

    with OpLog() as log:
        agree(output_and_gradients(apply, *operands), expected)
    assert ("convolution" in log.names) == (density == 0)
    assert ("convolution_backward" in log.names) == (density == 0)


@pytest.mark.parametrize("density", [0.0, 1.0], ids=["all dense", "all sparse"])
def test_linear_results_do_not_depend_on_the_choice(
    density: float, times: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossing(monkeypatch, density)
    topology, *operands = linear_operands(Linear(), torch.float64)
    with ops.use_backend("reference"):
        expected = output_and_gradients(lambda v, x, b: ops.spmm(v, topology, x, b), *operands)
    with OpLog() as log:
        agree(output_and_gradients(lambda v, x, b: ops.spmm(v, topology, x, b), *operands), expected)
    assert ("addmm" in log.names) == (density == 0)
    assert ("spmm" in log.names) == (density == 1)


def test_a_remembered_choice_of_a_blocked_pass_changes_when_what_it_rests_on_does(
    times: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossing(monkeypatch, 0.0)
    topology, values, x, _ = conv_operands(CASE, torch.float32)
    blocks = ops.to_blocked(x)

    def runs_dense() -> bool:
        with OpLog() as log:
            ops.blocked_conv2d(values, topology, blocks, CASE.B)
        return "convolution" in log.names

    assert runs_dense()
    with dispatch.dense_passes(False):
        assert not runs_dense()
    assert runs_dense()
    measured = iter((1.0, 2.0))
    monkeypatch.setattr(dispatch, "milliseconds", lambda call: next(measured))
    with ops.measuring():
        assert not runs_dense(), "the sparse kernel was faster"
    assert not runs_dense()


def test_a_forced_back_end_is_not_overruled(times: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crossing(monkeypatch, 0.0)
    topology, values, x, _ = conv_operands(CASE, torch.float32)
    with ops.use_backend("cpu"), OpLog() as log:
        ops.conv2d(values, topology, x)
        ops.blocked_conv2d(values, topology, ops.to_blocked(x), CASE.B)
    assert {"conv2d", "blocked_conv2d"} <= log.names
    assert "convolution" not in log.names


@pytest.mark.parametrize(
    ("rows", "granularity", "strip"), [(32, 1, 1), (32, 2, 1), (32, 4, 4), (32, 16, 16), (96, 32, 32), (128, 64, 32)]
)
def test_strips_are_found(rows: int, granularity: int, strip: int) -> None:
    """The kernels take strips of 4, 8, 16 and 32 rows; a mask of 64 rows a group is strips of 32."""
    groups = torch.rand(rows // granularity, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = groups.repeat_interleave(granularity, 0)
    for index in (Index.of(Topology.from_mask(mask)), Index.of(Topology.from_mask(mask, granularity))):
        assert torch.ops.fedsparse.strip_rows(index.indptr, index.cols, index.granularity) == strip
    full = Index.of(Topology.from_mask(torch.ones(12, 3, dtype=torch.bool)))
    assert torch.ops.fedsparse.strip_rows(full.indptr, full.cols, 1) == 4


def test_a_gpu_runs_dense_torch_until_it_was_measured(times: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the faster one, of that very GPU; the two candidates' order does not matter."""
    slow = {"triton": 2.0, "dense": 1.0}
    monkeypatch.setattr(dispatch, "gpu_milliseconds", lambda candidate: slow[candidate()])
    candidates = {"triton": lambda: "triton", "dense": lambda: "dense"}
    first, other = work(0.1, gpu="Some GPU"), work(0.1, gpu="Another GPU")
    assert dispatch.run(first, candidates) == "dense"
    assert str(dispatch.choose(first)) == "dense (not measured)"
    slow["dense"] = 3.0
    with ops.measuring():
        assert dispatch.run(first, candidates) == "triton"
    assert str(dispatch.choose(first)) == "triton (triton 2.00 ms, dense 3.00 ms)"
    assert dispatch.choose(other).name == "dense"
    assert [path.name.split("-fedsparse")[0][:8] for path in times.glob("*.json")] == ["Some-GPU"]
    assert dispatch.choose(work(0.1)).times == {}, "the CPU has a file of its own"


def test_tf32_and_float32_are_told_apart_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {}
    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        keys[allowed] = work(0.1, gpu="Some GPU").key, work(0.1).key
    assert keys[True][0] != keys[False][0]
    assert keys[True][1] == keys[False][1]


def test_a_gpu_runs_no_dense_torch_where_that_is_not_allowed(times: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it was measured the kernel for any mask, then the fastest but dense torch."""
    monkeypatch.setattr(dispatch, "gpu_milliseconds", lambda candidate: candidate())
    found = {"triton": lambda: 3.0, "condensed": lambda: 2.0, "dense": lambda: 1.0}
    one = work(0.1, gpu="Some GPU")
    with dispatch.dense_passes(False):
        assert str(dispatch.choose(one)) == "triton (dense passes are not allowed)"
    with ops.measuring():
        assert dispatch.run(one, found) == 1.0
    with dispatch.dense_passes(False):
        assert dispatch.run(one, found) == 2.0
