"""Builds the compiled parts of fedsparse with ninja; everything else about the package is in pyproject.toml.

fedsparse/_ops.so       CPU ops, csrc/cpu, torch's stable ABI: one file for all Python versions.
fedsparse/_wire*.so     the codec, csrc/wire, a pybind11 module.
fedsparse/_meter.so     the counter of live tensor bytes, csrc/meter, torch's c10 C++ ABI.
fedsparse/_ops_cuda.so  CUDA ops, csrc/cuda, torch's stable ABI; only where nvcc is found.

Environment: FEDSPARSE_CUDA=0 never builds CUDA, =1 makes a missing nvcc an error; TORCH_CUDA_ARCH_LIST
(default "8.0;9.0"); CUDA_HOME; CXX; MAX_JOBS.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
os.chdir(ROOT)
# Stable ABI of torch 2.11: the library also loads under later versions.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
X86 = platform.machine() in ("x86_64", "AMD64")
ISA_FLAGS = {
    "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mavx2",
    "avx2": "-mavx2 -mfma",
    "portable": "",
}
# What the sources in csrc/cpu/amx are compiled over: the instructions of matrix tiles, and their emulation.
TILE_FLAGS = {"emulated": ""}
if X86:
    TILE_FLAGS["amx"] = f"-DFEDSPARSE_AMX -mamx-tile -mamx-bf16 {ISA_FLAGS['avx512']}"
ISAS = list(ISA_FLAGS) if X86 else ["portable"]
X86_FLAG = " -DFEDSPARSE_X86" if X86 else ""


def _sources(pattern: str) -> list[str]:
    return sorted(str(path) for path in Path("csrc").glob(pattern))


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"fedsparse: building needs the Python package {name}; install it and try again.")
    return Path(spec.submodule_search_locations[0])


def _find_nvcc() -> str | None:
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if home and (Path(home) / "bin" / "nvcc").exists():
            return str(Path(home) / "bin" / "nvcc")
    return None


def _cuda_decision() -> tuple[str | None, str]:
    """(nvcc, "") where CUDA ops are built, else (None, why not)."""
    wish, nvcc = os.environ.get("FEDSPARSE_CUDA", ""), _find_nvcc()
    if wish not in ("", "0", "1"):
        raise SystemExit(f"fedsparse: FEDSPARSE_CUDA must be 0, 1 or unset, not {wish!r}.")
    if wish == "0":
        return None, "FEDSPARSE_CUDA=0"
    if not _sources("cuda/*.cu"):
        return None, "csrc/cuda has no sources"
    if nvcc is None and wish == "1":
        raise SystemExit("fedsparse: FEDSPARSE_CUDA=1, but no nvcc in CUDA_HOME or /usr/local/cuda.")
    return nvcc, "" if nvcc else "no nvcc in CUDA_HOME or /usr/local/cuda"


def _arch_flags() -> str:
    flags = []
    for arch in os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0").replace(" ", ";").split(";"):
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode arch=compute_{number},code=compute_{number}")
    return " ".join(flags)


class _Plan:
    """The lines of one build.ninja: rules first, then one edge for each object and library."""

    def __init__(self, folder: Path, nvcc: str | None) -> None:
        self.folder = folder
        torch = _package_folder("torch")
        cxx = os.environ.get("CXX", "c++")
        self.torch_flags = f"-Icsrc -I{torch / 'include'} {STABLE_ABI}"
        self.torch_link = f"-L{torch / 'lib'}"
        self.lines = ["ninja_required_version = 1.5", f"builddir = {folder}"]
        base = "-std=c++20 -O3 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unused-parameter -Wno-psabi"
        self.rule("cxx", f"{cxx} {base} -MMD -MF $out.d $flags -c $in -o $out", depfile="$out.d", deps="gcc")
        self.rule("link", f"{cxx} -shared $in $flags -o $out")
        if nvcc:
            nvcc_base = "-std=c++20 -O3 -DUSE_CUDA -Xcompiler -fPIC,-fvisibility=hidden -Xptxas -v"
            compile_ = f"{nvcc} {nvcc_base} {_arch_flags()} -MMD -MF $out.d $flags -c $in -o $out"
            log = "> $out.log 2>&1 || (cat $out.log; false)"
            self.rule("nvcc", f"{compile_} {log}", depfile="$out.d", deps="gcc")
            self.rule("nvlink", f"{nvcc} {_arch_flags()} -shared -cudart static $in $flags -o $out")

    def rule(self, name: str, command: str, **extra: str) -> None:
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        self.lines += [f"  {key} = {value}" for key, value in extra.items()]

    def edge(self, rule: str, output: str, inputs: list[str], flags: str) -> str:
        self.lines += [f"build {output}: {rule} {' '.join(inputs)}", f"  flags = {flags}"]
        return output

    def compile(self, rule: str, source: str, flags: str, tag: str = "") -> str:
        return self.edge(rule, f"{self.folder}/{source.replace('/', '_')}{tag}.o", [source], flags)

    def ops(self, output: str) -> None:
        objects = []
        for source in _sources("cpu/*.cpp"):
            objects.append(self.compile("cxx", source, self.torch_flags + X86_FLAG))
        for source in _sources("cpu/isa/*.cpp"):
            for isa in ISAS:
                objects.append(self.compile("cxx", source, f"-Icsrc -DFEDSPARSE_ISA={isa} {ISA_FLAGS[isa]}", f".{isa}"))
        for source in _sources("cpu/amx/*.cpp"):
            for tiles, flags in TILE_FLAGS.items():
                objects.append(self.compile("cxx", source, f"-Icsrc{X86_FLAG} {flags}", f".{tiles}"))
        self.edge("link", output, objects, f"{self.torch_link} -ltorch_cpu")

    def wire(self, output: str) -> None:
        python, pybind = sysconfig.get_paths()["include"], _package_folder("pybind11") / "include"
        # Quantised values must not depend on whether the machine has fused multiply-adds.
        flags = f"-Icsrc -I{python} -I{pybind} -ffp-contract=off -fno-math-errno"
        self.edge("link", output, [self.compile("cxx", s, flags) for s in _sources("wire/*.cpp")], "")

    def meter(self, output: str) -> None:
        include = f"-I{_package_folder('torch') / 'include'}"
        objects = [self.compile("cxx", s, f"{include} -fvisibility=default") for s in _sources("meter/*.cpp")]
        self.edge("link", output, objects, f"{self.torch_link} -lc10")

    def ops_cuda(self, output: str) -> None:
        objects = [self.compile("nvcc", source, self.torch_flags) for source in _sources("cuda/*.cu")]
        objects += [self.compile("cxx", source, self.torch_flags) for source in _sources("cuda/*.cpp")]
        # -ltorch carries the CUDA half where there is one; no symbol of it is used directly.
        self.edge("nvlink", output, objects, f"{self.torch_link} -Xlinker --no-as-needed -ltorch")


class _NinjaBuild(build_ext):
    """Compiles all extensions by one ninja run in build/native, kept between builds."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.rpartition(".")[2].startswith(("_ops", "_meter")):
            return fullname.replace(".", os.sep) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        nvcc, why_not = _cuda_decision()
        folder = Path("build/native")
        folder.mkdir(parents=True, exist_ok=True)
        names = [extension.name.rpartition(".")[2] for extension in self.extensions]
        minutes = "2" if nvcc else "1"
        self._say(f"compiling {', '.join(names)}: about 10 MB in {folder} and {minutes} minute(s) of CPU time.")
        plan = _Plan(folder, nvcc)
        built = {
            extension.name: folder / Path(self.get_ext_filename(extension.name)).name for extension in self.extensions
        }
        for extension in self.extensions:
            getattr(plan, extension.name.rpartition("._")[2])(str(built[extension.name]))
        (folder / "build.ninja").write_text("\n".join(plan.lines) + "\n")
        self._run_ninja(folder)
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            # A process may have the old library mapped: put the new one beside it, then rename.
            fresh = target.with_name(target.name + ".new")
            shutil.copy2(built[extension.name], fresh)
            fresh.replace(target)
            self._say(f"built {target.name} ({target.stat().st_size / 2**20:.1f} MB).")
        for name, reason in (("_ops_cuda", why_not), ("_wire", "csrc/wire has no sources")):
            if name not in names:
                self._say(f"not built: {name} ({reason}).")

    def _run_ninja(self, folder: Path) -> None:
        command = [sys.executable, "-m", "ninja"] if importlib.util.find_spec("ninja") else ["ninja"]
        if command == ["ninja"] and not shutil.which("ninja"):
            raise SystemExit("fedsparse: building needs ninja; install it and try again.")
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.run([*command, "-f", str(folder / "build.ninja"), "-j", jobs], check=True)

    def _say(self, sentence: str) -> None:
        print(f"fedsparse: {sentence}", flush=True)


def _extensions() -> list[Extension]:
    headers = _sources("**/*.h")
    found = [Extension("fedsparse._ops", _sources("cpu/**/*.cpp"), depends=headers)]
    if _sources("wire/*.cpp"):
        found.append(Extension("fedsparse._wire", _sources("wire/*.cpp"), depends=headers))
    found.append(Extension("fedsparse._meter", _sources("meter/*.cpp"), depends=headers))
    if _cuda_decision()[0]:
        found.append(Extension("fedsparse._ops_cuda", _sources("cuda/*.cu") + _sources("cuda/*.cpp"), depends=headers))
    return found


setup(
    packages=[*find_packages(include=["fedsparse", "fedsparse.*"]), "fedsparse.kernels"],
    package_dir={"fedsparse.kernels": "kernels"},
    package_data={
        "fedsparse": ["py.typed", "_wire.pyi"],
        "fedsparse.ops": ["crossovers.json"],
        "fedsparse.report": ["*.html*"],
    },
    include_package_data=False,
    ext_modules=_extensions(),
    cmdclass={"build_ext": _NinjaBuild},
)
