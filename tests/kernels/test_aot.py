"""Every Triton kernel compiles for every GPU we name, without spills and with its matrix units in use."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

import vosnet_kernels
from vosnet_kernels.aot.cases_triton import cases
from vosnet_kernels.aot.command import main
from vosnet_kernels.aot.compiler import TARGETS, compile_case

KERNELS = Path(vosnet_kernels.__file__).parent
MAIN_SIZES = "bf16 C=256 M=[34]$"


def test_kernels_neither_spill_nor_outgrow_shared_memory_on_any_target(tmp_path: Path) -> None:
    file = tmp_path / "aot.json"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(KERNELS.parent)
    command = [sys.executable, "-m", "vosnet_kernels.aot", "--match", MAIN_SIZES, "--json", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reports = json.loads(file.read_text())
    assert {report["target"] for report in reports} == set(TARGETS)
    for report in reports:
        assert report["spill_bytes"] == 0
        assert report["problems"] == []
        assert report["shared_bytes"] <= TARGETS[report["target"]].shared_limit
    on_matrix_units = {report["name"].split()[1] for report in reports if report["matrix_instructions"]}
    assert on_matrix_units == {"forward", "query", "memory", "memory+value", "group-max"}


def test_a_kernel_that_outgrows_its_target_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "sm_80", replace(TARGETS["sm_80"], shared_limit=1000))
    case = next(iter(cases("sm_80")))
    (problem,) = compile_case(case, "sm_80").problems
    assert "1000" in problem
    assert "shared memory" in problem


def test_a_pattern_that_matches_no_kernel_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--match", "no such kernel"]) == 1
    assert "no such kernel" in capsys.readouterr().out


def test_every_op_with_triton_kernels_takes_part() -> None:
    with_kernels = {
        path.parent.name
        for path in KERNELS.rglob("*.py")
        if re.search(r"^@triton\.jit", path.read_text(), re.MULTILINE)
    }
    assert with_kernels == {case.kernel.__module__.split(".")[-2] for case in cases("sm_90")}


def test_what_runs_imports_no_compile_tool() -> None:
    for path in KERNELS.rglob("*.py"):
        if path.parent.name != "aot":
            assert not re.search(r"^\s*(import|from) vosnet_kernels\.aot", path.read_text(), re.MULTILINE), (
                path
            )
