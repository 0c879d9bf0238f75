"""`vosnet doctor`: what this machine has, and whether the operators compute correctly on it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vosnet.commands.cli import make_parser

_NEEDED = ("torch", "numpy", "pillow", "av", "pydantic", "safetensors", "einops", "tqdm")
_OPENCV = ("opencv-python", "opencv-python-headless")  # one of the two; importing cv2 is checked below
_DECODERS = ("decord", "eva-decord", "decord2")
_EXTRAS = ("triton", "pycocotools", "matplotlib", "tensorboard")
# Cosines of unit vectors are exact to about 1e-6 in float32; divided by 0.05 that moves weights by 2e-5.
_SELF_CHECK_TOLERANCE = 1e-3
_CHECKED_OPS: dict[str, dict[str, Any]] = {
    "knn_propagate": {"k": 5, "temperature": 0.05, "radius": 4, "shape": "disc", "global_frames": 1},
    "windowed_readout": {"radius": 4, "temperature": 0.05},
    "widened_readout": {"radius": 4, "dilations": [3, 2, 1], "temperature": 0.05},
}
_CODECS: dict[str, Literal["r", "w"]] = {"libx264": "w", "h264": "r", "hevc": "r", "av1": "r", "vp9": "r"}


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fail` makes the exit status 1."""

    name: str
    status: Literal["ok", "note", "fail"]
    detail: str


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; exit status 0 when everything needed works, else 1."""
    parser = make_parser(
        "doctor",
        "Report versions, codecs, hardware, disks and data roots, and check the operators' results.",
        ["", "--json", "--quick"],
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="leave out the numerical self-check")
    options = parser.parse_args(argv)
    findings = examine(self_check=not options.quick)
    failed = any(finding.status == "fail" for finding in findings)
    if options.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            print(f"{finding.status:4}  {finding.name:22} {finding.detail}")
    return 1 if failed else 0


def examine(*, self_check: bool = True) -> list[Finding]:
    """Every finding about this machine."""
    checks: list[Callable[[], list[Finding]]]
    checks = [_versions, _opencv, _codecs, _processors, _backends, _storage]
    checks += [_self_check] if self_check else []
    findings = [Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")]
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # a broken installation must be reported, whatever breaks
            name = check.__name__.strip("_").replace("_", " ")
            findings.append(Finding(name, "fail", f"{type(error).__name__}: {error}"))
    return findings


def _versions() -> list[Finding]:
    found: dict[str, str] = {}
    for package in (*_NEEDED, *_OPENCV, *_DECODERS, *_EXTRAS):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    findings = [Finding(name, "ok", version) for name, version in found.items()]
    findings += [Finding(name, "fail", "not installed") for name in _NEEDED if name not in found]
    missing = [name for name in _EXTRAS if name not in found]
    if missing:
        findings.append(Finding("optional packages", "note", f"not installed: {', '.join(missing)}"))
    decoders = [name for name in _DECODERS if name in found]
    if len(decoders) > 1:
        hint = f"{' and '.join(decoders)} overwrite each other's files; keep one"
        findings.append(Finding("decord packages", "fail", hint))
    elif not decoders:
        findings.append(Finding("decord", "note", "not installed: every video is read with PyAV"))
    return findings


def _opencv() -> list[Finding]:
    try:
        import cv2
    except ImportError as error:
        hint = "install the system's libgl1, or opencv-python-headless instead of opencv-python"
        return [Finding("cv2", "fail", f"{error}; {hint}")]
    return [Finding("cv2", "ok", f"imports, {cv2.getNumThreads()} threads")]


def _codecs() -> list[Finding]:
    import av

    missing = []
    for name, mode in _CODECS.items():
        try:
            av.Codec(name, mode)
        except av.codec.codec.UnknownCodecError:
            missing.append(name)
    if missing:
        return [Finding("codecs", "fail", f"PyAV lacks {', '.join(missing)}; reinstall the av wheel")]
    return [Finding("codecs", "ok", ", ".join(_CODECS))]


def _processors() -> list[Finding]:
    import torch

    findings = [Finding("cpu", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")]
    capability = torch.backends.cpu.get_cpu_capability()
    findings.append(Finding("vector instructions", "ok", capability))
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        findings.append(
            Finding("gpu", "ok", f"{properties.name}, {memory}, sm_{properties.major}{properties.minor}")
        )
    else:
        findings.append(Finding("gpu", "note", "none: everything runs on the CPU"))
    return findings


def _storage() -> list[Finding]:
    findings = []
    for name, folder in (("temporary folder", tempfile.gettempdir()), ("working folder", str(Path.cwd()))):
        free = shutil.disk_usage(folder).free / 2**30
        findings.append(Finding(name, "ok" if free > 1 else "note", f"{folder}, {free:.1f} GiB free"))
    shared = Path("/dev/shm")  # noqa: S108 - asked for its size, nothing is written
    if sys.platform == "linux" and shared.is_dir():
        free = shutil.disk_usage(shared).free / 2**30
        detail = f"{free:.1f} GiB free" + ("" if free > 0.25 else "; data-loading workers need more")
        findings.append(Finding("shared memory", "ok" if free > 0.25 else "note", detail))
    for variable in ("VOSNET_DATA", "VOSNET_GOLDEN"):
        value = os.environ.get(variable)
        if value:
            exists = Path(value).is_dir()
            findings.append(
                Finding(variable, "ok" if exists else "note", value + ("" if exists else " (no such folder)"))
            )
    return findings


def _backends() -> list[Finding]:
    import torch

    from vosnet_kernels.backends import cpu_backend, cuda_backend

    findings = []
    for op in ("knn_propagate", "windowed_readout"):
        chosen = cpu_backend(op)
        findings.append(Finding(f"{op} (cpu)", "ok", f"{chosen.name}: {chosen.reason}"))
        if torch.cuda.is_available():
            chosen = cuda_backend(op, torch.device("cuda", 0))
            findings.append(Finding(f"{op} (gpu)", "ok", f"{chosen.name}: {chosen.reason}"))
    return findings


def _self_check() -> list[Finding]:
    import torch

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [_check_op(op, device) for op in _CHECKED_OPS for device in devices]


def _check_op(op: str, device: str) -> Finding:
    """The op on random features against its float64 definition."""
    import torch

    import vosnet_kernels

    definition = importlib.import_module(f"vosnet_kernels.{op}.reference")
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize
    query = unit(torch.randn(1, 64, 19, 23, generator=generator), dim=1)
    memory = unit(torch.randn(1, 3, 64, 19, 23, generator=generator), dim=2)
    value = torch.rand(1, 3, 5, 19, 23, generator=generator)
    inputs = (query, memory, value)
    got = getattr(vosnet_kernels, op)(*(tensor.to(device) for tensor in inputs), **_CHECKED_OPS[op])
    truth = getattr(definition, f"{op}_reference")(
        *(tensor.double() for tensor in inputs), **_CHECKED_OPS[op]
    )
    error = float((got.cpu().double() - truth).abs().max())
    status: Literal["ok", "fail"] = "ok" if error < _SELF_CHECK_TOLERANCE else "fail"
    return Finding(f"{op} check ({device})", status, f"largest difference from the definition {error:.1e}")
