"""Exit codes and messages of the outermost frame."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from vosnet.commands import doctor
from vosnet.commands.cli import run
from vosnet.errors import (
    DivergedError,
    InputError,
    LockedError,
    OutOfMemoryError,
    PartialFailureError,
    StorageError,
    UsageError,
    VosnetError,
)

ROOT = Path(__file__).resolve().parents[3]


def raising(error: BaseException):
    def command(argv: Sequence[str] | None) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("E204", "mask size 854x480 does not match video 1920x1080"), 4),
        (KeyboardInterrupt(), 130),
        (MemoryError("4 GiB"), 5),
        (BrokenPipeError(), 0),
        (OSError(28, "No space left on device", "x.png"), 6),
        (ZeroDivisionError("oops"), 1),
        (SystemExit(2), 2),
        (SystemExit("a message"), 2),
        (VosnetError("E109", "gone"), 1),
        (UsageError("E140", "wrong"), 2),
        (PartialFailureError("E301", "some"), 3),
        (OutOfMemoryError("E501", "full"), 5),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 5),
        (StorageError("E601", "full"), 6),
        (DivergedError("E701", "nan"), 7),
        (LockedError("E801", "locked"), 8),
        (PermissionError(13, "Permission denied", "x.png"), 6),
        (FileNotFoundError(2, "No such file", "x.png"), 1),
        (OSError(5, "Input/output error", "x.png"), 1),
    ],
)
def test_every_ending_has_its_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "dup2", lambda a, b: b)  # keep the test's own stdout
    assert run(raising(error)) == code
    assert "Traceback" not in capsys.readouterr().err


def test_an_unexpected_error_leaves_its_traceback_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    run(raising(ZeroDivisionError("oops")))
    path = capsys.readouterr().err.split("the traceback is in ")[1].strip()
    assert "ZeroDivisionError" in Path(path).read_text()
    Path(path).unlink()


def test_f37_sigterm_exits_143() -> None:
    script = (
        "import sys, time; from vosnet.commands.cli import run\n"
        "print('up', flush=True)\nsys.exit(run(lambda a: time.sleep(60) or 0))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143


def test_help_does_not_import_torch() -> None:
    script = (
        "import sys\nfrom vosnet.commands.cli import run, _dispatch\n"
        "code = run(_dispatch, ['--help'])\nassert code == 0\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_the_report_of_doctor_decides_its_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [doctor.Finding("python", "ok", "3.11"), doctor.Finding("gpu", "note", "none")]
    monkeypatch.setattr(doctor, "examine", lambda *, self_check: found)
    assert run(doctor.main, ["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    found.append(doctor.Finding("cv2", "fail", "no libGL"))
    assert run(doctor.main, []) == 1
    assert capsys.readouterr().out.splitlines()[-1].split() == ["fail", "cv2", "no", "libGL"]


def test_the_operators_agree_with_their_definitions_and_a_broken_part_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = [finding for finding in doctor.examine() if finding.name.endswith("check (cpu)")]
    assert [finding.status for finding in checks] == ["ok"] * 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 / 0)
    broken = [finding for finding in doctor.examine(self_check=False) if finding.status == "fail"]
    assert [(finding.name, finding.detail) for finding in broken] == [
        ("processors", "ZeroDivisionError: division by zero")
    ]
