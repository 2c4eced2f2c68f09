"""Who may import whom (the two lines: pruning knows no clients; methods know no kernels and no MPI)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTHING: frozenset[str] = frozenset()
ALLOWED = {
    "kernels": NOTHING,
    "topology": NOTHING,
    "wire": NOTHING,
    "comm": NOTHING,
    "data": NOTHING,
    "models": NOTHING,
    "pruning": {"topology", "ops"},  # for topk, so that one selection serves all
    "ops": {"topology", "kernels"},
    "nn": {"topology", "ops"},
    "optim": {"topology", "ops"},
    "federated": {"topology", "nn", "optim", "pruning", "wire", "comm", "data"},
    "methods": {"topology", "pruning", "nn", "federated", "wire"},
}


def imported(path: Path) -> set[str]:
    """The rooms of fedsparse that a file imports, and any other top-level package of ours."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "fedsparse" else [module]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "fedsparse" and len(parts) > 1 and not parts[1].startswith("_"):
                found.add(parts[1])
            if parts[0] in ("benchmarks", "experiments", "tests", "kernels"):
                found.add(f"{parts[0]}!")
    return found


def files(room: str) -> list[Path]:
    if room == "kernels":
        return sorted((ROOT / "kernels").rglob("*.py"))
    single = ROOT / "fedsparse" / f"{room}.py"
    return [single] if single.exists() else sorted((ROOT / "fedsparse" / room).rglob("*.py"))


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    assert files(room), f"no file of {room} was found"
    for path in files(room):
        wrong = imported(path) - {room} - ALLOWED[room]
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_no_method_imports_another() -> None:
    for path in files("methods"):
        if path.name == "__init__.py":
            continue
        tree = ast.parse(path.read_text())
        modules = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
        assert not [m for m in modules if m.startswith("fedsparse.methods")], path.name


def test_the_walk_sees_every_way_to_import(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text(
        "import fedsparse.wire\nfrom fedsparse import nn, _ops\nfrom fedsparse.comm import x\nimport kernels\n"
    )
    assert imported(source) == {"wire", "nn", "comm", "kernels!"}
