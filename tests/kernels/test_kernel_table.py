"""What the assembler makes of every GPU kernel, for Hopper and Ampere, without a GPU."""

import pytest

pytest.importorskip("triton")

from benchmarks.gpu import kernel_table
from benchmarks.gpu.kernel_list import Listed, kernels
from benchmarks.gpu.machine_code import Code, MissingToolError, cuda_code

LISTED = kernels()


def compiled(listed: Listed, arch: int) -> Code:
    try:
        return listed.compile(arch=arch)
    except MissingToolError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("listed", LISTED, ids=lambda listed: listed.label)
def test_on_hopper(listed: Listed) -> None:
    """No spills, shared memory within the limit, nothing atomic, tensor cores and cp.async where they are meant."""
    code = compiled(listed, 90)
    assert not kernel_table.problems(code, listed.tensor_cores)
    if listed.tensor_cores and "few entries" not in listed.label:
        assert code.instructions["wgmma"], "wgmma is the fast path on Hopper"
        assert not code.instructions["mma"]


@pytest.mark.parametrize("listed", [each for each in LISTED if "V=32 bf16" in each.label], ids=lambda each: each.label)
def test_on_ampere(listed: Listed) -> None:
    code = compiled(listed, 80)
    assert not kernel_table.problems(code, listed.tensor_cores)
    assert code.instructions["mma"]


def test_every_triton_kernel_is_listed() -> None:
    """A kernel that is added without a line in the list is seen."""
    import ast

    from benchmarks.gpu.machine_code import ROOT

    written = {
        node.name
        for path in (ROOT / "kernels").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
    listed = {listed.compile.args[1].__name__ for listed in LISTED}
    assert written == listed


def test_problems_are_found() -> None:
    """The checks themselves: a kernel with every fault has a sentence for each."""
    counts = dict.fromkeys(kernel_table.INSTRUCTIONS, 0) | {"local": 1, "atomic": 1}
    bad = Code("bad", 255, 16, 8, 300_000, counts)
    assert len(kernel_table.problems(bad, tensor_cores=True)) == 5
    good = Code("good", 64, 0, 0, 1000, dict.fromkeys(kernel_table.INSTRUCTIONS, 0) | {"wgmma": 4, "cp.async": 2})
    assert not kernel_table.problems(good, tensor_cores=True)


def test_cuda_sources_are_compiled() -> None:
    try:
        codes = [code for source in kernel_table.SOURCES for code in cuda_code(source)]
    except MissingToolError as reason:
        pytest.skip(str(reason))
    assert len(codes) >= 6
    assert not [sentence for code in codes for sentence in kernel_table.problems(code, False)]
    assert all(code.instructions["st.16B"] for code in codes if "unpack_kernel" in code.name)
