"""Who may import whom, and that importing anything needs no triton, no GPU and no network."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Lower layers know nothing of higher ones. Rooms of one layer may use each other, with the exceptions below.
LAYERS = {
    **dict.fromkeys(["errors", "files", "progress", "__init__"], 0),
    **dict.fromkeys(["masks", "metrics", "transforms", "video"], 1),
    **dict.fromkeys(["synthetic", "datasets"], 2),
    "models": 3,
    **dict.fromkeys(["matching", "memory"], 4),
    **dict.fromkeys(["objectives", "propagation"], 5),
    **dict.fromkeys(["training", "export", "recipe"], 6),
    "commands": 7,
}
STRANGERS = {("objectives", "propagation"), ("propagation", "objectives")}
KERNEL_IMPORTS = {"vosnet_kernels", "torch", "triton", *sys.stdlib_module_names}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(ROOT / "vosnet").parts[0].removesuffix(".py")


VOSNET_FILES = sorted((ROOT / "vosnet").rglob("*.py"))
KERNEL_FILES = sorted((ROOT / "kernels").rglob("*.py"))


@pytest.mark.parametrize("path", VOSNET_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_lower_rooms(path: Path) -> None:
    here = room(path)
    if here == "__init__":  # the package's front door re-exports lazily
        return
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] not in {"tests", "tools"}, f"{path} imports {name}"
        if parts[0] == "vosnet" and len(parts) > 1 and parts[1] in LAYERS:
            assert LAYERS[parts[1]] <= LAYERS[here], f"{path} ({here}) imports {name}"
            assert (here, parts[1]) not in STRANGERS, f"{path} imports {name}"


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_import_only_torch_and_triton(path: Path) -> None:
    assert {name.split(".")[0] for name in imported(path)} <= KERNEL_IMPORTS


def test_everything_imports_without_triton_and_without_a_gpu() -> None:
    modules = [
        ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
        for base, files in ((ROOT, VOSNET_FILES), (ROOT / "kernels", KERNEL_FILES))
        for path in files
        if "triton" not in path.stem
    ]
    script = (
        "import sys, importlib\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'triton': raise ModuleNotFoundError(name, name='triton')\n"
        "sys.meta_path.insert(0, Block())\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    environment = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
