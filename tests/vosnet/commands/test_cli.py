"""Exit codes and messages of the outermost frame."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from vosnet.commands.cli import run
from vosnet.errors import InputError

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
