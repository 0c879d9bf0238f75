"""Who may import whom, and that importing anything needs no triton, no GPU and no network."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Lower layers know nothing of higher ones. Rooms of one layer may use each other, with the exceptions below,
# and never in a circle.
LAYERS = {
    **dict.fromkeys(["errors", "files", "options", "progress", "runtime", "__init__"], 0),
    **dict.fromkeys(["masks", "metrics", "transforms", "video"], 1),
    **dict.fromkeys(["synthetic", "datasets", "models"], 2),
    **dict.fromkeys(["adaptation", "matching", "memory"], 3),
    **dict.fromkeys(["objectives", "propagation"], 4),
    "recipe": 5,
    **dict.fromkeys(["evaluation", "export"], 6),
    "training": 7,
    "commands": 8,
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


def module(path: Path) -> str:
    base = ROOT / "kernels" if ROOT / "kernels" in path.parents else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def is_face(path: Path) -> bool:
    """Whether a file only hands names on."""
    return path.name == "__init__.py"


def arrows_of(path: Path) -> set[str]:
    """The files that `path` imports; names taken from a package's face lead to where they come from."""
    names = imported(path)
    for face in (p for p in (*VOSNET_FILES, *KERNEL_FILES) if is_face(p)):
        for name in [n for n in imported(face) if f"{module(face)}.{n.rpartition('.')[2]}" in names]:
            names |= {name.rpartition(".")[0]}
    return names - {module(path)}


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


def test_only_matching_calls_the_kernels() -> None:
    callers = {
        room(path) for path in VOSNET_FILES if any(n.startswith("vosnet_kernels") for n in imported(path))
    }
    assert callers <= {"matching", "commands"}  # `doctor` compares the operators with their definitions


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {module(path): arrows_of(path) for path in (*VOSNET_FILES, *KERNEL_FILES) if not is_face(path)}
    left = dict(arrows)
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, f"these import each other: {sorted(left)}"


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
