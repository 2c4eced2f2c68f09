"""Loads the compiled op libraries, and says what they hold.

Schemas stand in the op files; the libraries only register kernels for them, so that shapes, references and the dense
back end work before anything is compiled.
"""

import os
from pathlib import Path

import torch

LIBRARY = torch.library.Library("fedsparse", "FRAGMENT")
_PACKAGE = Path(__file__).parent.parent
_FILES = {"cpu": _PACKAGE / "_ops.so", "cuda": _PACKAGE / "_ops_cuda.so"}
_loaded: set[str] = set()

for _schema in (
    "set_isa(str name) -> ()",
    "isa() -> str",
    "isas() -> str",
    "set_tiles(str name) -> ()",
    "tiles() -> str",
    "tile_kinds() -> str",
    "build_info() -> str",
    "strip_rows(Tensor indptr, Tensor cols, int granularity) -> int",
):
    LIBRARY.define(_schema)


def define(schema: str) -> None:
    """Define an op of the namespace `fedsparse` by its schema."""
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))


def load_libraries() -> None:
    """Load the compiled libraries that are present."""
    for name, path in _FILES.items():
        if name not in _loaded and path.exists():
            torch.ops.load_library(str(path))
            _loaded.add(name)


def require_compiled(name: str) -> None:
    """RuntimeError where the library of a device ("cpu" or "cuda") was not built."""
    if name not in _loaded:
        raise RuntimeError(
            f"{_FILES[name].name} is missing from {_PACKAGE}: build it with `pip install --no-build-isolation -e .`."
        )


def compiled() -> dict[str, object]:
    """Facts for `fedsparse doctor`: the libraries present, how they were built, the instruction sets."""
    facts: dict[str, object] = {f"{name}_library": name in _loaded for name in _FILES}
    if "cpu" in _loaded:
        facts["build"] = torch.ops.fedsparse.build_info()
        facts["instruction_sets"] = torch.ops.fedsparse.isas()
        facts["instruction_set_chosen"] = torch.ops.fedsparse.isa()
        facts["instruction_set_override"] = os.environ.get("FEDSPARSE_ISA") or "none"
        facts["matrix_tiles"] = torch.ops.fedsparse.tiles()
    return facts
