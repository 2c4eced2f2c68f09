"""What the assembler makes of every GPU kernel, for Hopper and Ampere, without a GPU."""

import pytest

pytest.importorskip("triton")

from benchmarks.gpu import kernel_table
from benchmarks.gpu.kernel_list import kernels
from benchmarks.gpu.listed import Listed
from benchmarks.gpu.machine_code import Code, MissingToolError

LISTED = kernels()
# One of each function is disassembled; of the others the assembler's usage and what it was given are read.
FIRST = {listed.compile.args[1].__name__: listed.label for listed in reversed(LISTED)}.values()


def compiled(listed: Listed, arch: int, disassembled: bool = False) -> Code:
    try:
        return listed.compile(arch=arch, disassembled=disassembled)
    except MissingToolError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("listed", LISTED, ids=lambda listed: listed.label)
def test_on_hopper(listed: Listed) -> None:
    """No spills, shared memory within the limit, nothing atomic, tensor cores and cp.async where they are meant."""
    code = compiled(listed, 90, disassembled=listed.label in FIRST)
    assert not kernel_table.problems(code, listed.tensor_cores)
    if listed.tensor_cores and "few entries" not in listed.label:
        assert code.instructions["wgmma"], "wgmma is the fast path on Hopper"
        assert not code.instructions["mma"]


@pytest.mark.parametrize(
    "listed", [each for each in LISTED if each.tensor_cores and "V=32 bf16" in each.label], ids=lambda each: each.label
)
def test_on_ampere(listed: Listed) -> None:
    code = compiled(listed, 80)
    assert not kernel_table.problems(code, listed.tensor_cores)
    assert code.instructions["mma"]


def test_both_ways_of_counting_see_the_same_kinds() -> None:
    """A kernel with tensor cores, cp.async and wide stores, and one with none of the first two."""
    for label, kinds in {
        "strip_spread V=32 bf16": {"wgmma", "cp.async", "st.16B"},
        "strip_product V=32 bf16 3x3": {"wgmma", "cp.async"},
        "norm_gradient fp32": {"ffma", "ld.16B", "st.16B"},
    }.items():
        (listed,) = (each for each in LISTED if each.label == label)
        for disassembled in (False, True):
            counts = compiled(listed, 90, disassembled).instructions
            assert kinds <= {kind for kind, count in counts.items() if count}, (label, disassembled)
            assert not counts["local"] + counts["atomic"] + counts["mma"]


def test_reports_are_scaled_and_rounded_one_after_the_other() -> None:
    """A fused multiply-add would round once, and give other bits than the CPU."""
    (listed,) = (each for each in LISTED if each.label == "add_reports")
    ptx = compiled(listed, 90).ptx
    assert "mul.rn.f64" in ptx
    assert "fma.rn.f64" not in ptx


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
