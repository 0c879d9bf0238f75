"""Numbers that are not finite, memory that runs out, videos that cannot be read, checkpoints that lie."""

import ast
import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.toy_training import losses, train_toy
from vosnet import files
from vosnet.errors import DivergedError, InputError, OutOfMemoryError, StorageError
from vosnet.models import load_model
from vosnet.objectives import DenseCorrespondence, ObjectiveOutput
from vosnet.training import disk_space
from vosnet.training.checkpoint import CheckpointFolder, load_checkpoint
from vosnet.training.guard import DivergenceGuard
from vosnet.training.journal import read_rows
from vosnet.transforms import Clip

ROOT = Path(__file__).resolve().parents[3]


def poison(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int], bool]) -> None:
    """Make loss, gradient and batch statistics of chosen steps (counted from 1) NaN."""
    original = DenseCorrespondence.forward
    calls = 0

    def forward(objective: DenseCorrespondence, clip: Clip) -> ObjectiveOutput:
        nonlocal calls
        calls += 1
        if is_bad(calls):
            clip = dataclasses.replace(clip, frames=clip.frames * float("nan"))
        return original(objective, clip)

    monkeypatch.setattr(DenseCorrespondence, "forward", forward)


def test_f32_a_step_that_is_not_finite_is_skipped_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda step: step == 2)
    train_toy(tmp_path / "run", "schedule={steps: 4}")
    rows = read_rows(tmp_path / "run")
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 1]
    assert [row["loss"] is None for row in rows] == [False, True, False, False]
    assert all(torch.isfinite(t).all() for t in load_model(tmp_path / "run").encoder.state_dict().values())


def test_f32_after_ten_in_a_row_the_run_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda step: step > 3)
    out = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"E701 .*10 steps in a row.*diverged/report.json") as caught:
        train_toy(out, "schedule={steps: 40}", "training.save_minutes=1e-9")
    assert caught.value.exit_code == 7
    report = json.loads((out / "diverged" / "report.json").read_text())
    assert report["step"] == 13
    assert report["loss"] == "nan"
    assert len(report["videos"]) == 2
    assert all(torch.isfinite(t).all() for t in load_model(out).encoder.state_dict().values())


def test_f32_many_scattered_bad_steps_end_the_run_too() -> None:
    guard = DivergenceGuard(10)
    for step in range(200):
        guard.note(step % 19 == 0)
    assert guard.diverged
    rare = DivergenceGuard(10)
    for step in range(1000):
        rare.note(step % 40 == 0)
    assert not rare.diverged


def test_f33_out_of_memory_names_the_peak_and_three_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(DenseCorrespondence, "forward", fails)
    with pytest.raises(OutOfMemoryError) as caught:
        train_toy(tmp_path / "run")
    text = str(caught.value)
    assert caught.value.exit_code == 5
    assert "the peak was" in text
    assert (
        text.index("training.accumulate=2")
        < text.index("training.precision=bfloat16")
        < text.index("crop_size")
    )


def test_f21_little_disk_space_is_said_before_training_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    estimates = []
    original = disk_space.checkpoint_bytes
    monkeypatch.setattr(
        disk_space, "checkpoint_bytes", lambda trainer: estimates.append(original(trainer)) or estimates[-1]
    )
    options = ["schedule={steps: 1}", "training.ema_decay=0.9"]
    train_toy(tmp_path / "run", *options)
    assert "disk space" not in capsys.readouterr().err
    last = tmp_path / "run" / "checkpoints" / "last"
    assert estimates[0] == pytest.approx(sum(path.stat().st_size for path in last.iterdir()), rel=0.05)
    usage = mock.Mock(free=estimates[0])
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    train_toy(tmp_path / "full", *options)
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert f"little disk space: {estimates[0] / 1e6:,.0f} MB are free" in first
    assert "toy:" in second


def frame_folders(root: Path, count: int, bad: int) -> None:
    rng = np.random.default_rng(0)
    for video in range(count):
        folder = root / f"video{video:03d}"
        folder.mkdir(parents=True)
        for frame in range(2):
            path = folder / f"{frame:05d}.png"
            Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).save(path)
            if video < bad:
                path.write_bytes(path.read_bytes()[:60])


def test_f35_unreadable_videos_are_left_out_and_listed(tmp_path: Path) -> None:
    frame_folders(tmp_path / "clips", 40, bad=1)
    source = f"data.sources=[{{layout: folder, root: {tmp_path / 'clips'}}}]"
    train_toy(tmp_path / "run", source, "data.cache_mb=0", "schedule={epochs: 1}", "training.log_steps=50")
    assert (tmp_path / "run" / "bad_files.txt").read_text().startswith("video000\t")
    first = (tmp_path / "run" / "checkpoints" / "last" / "manifest.json").read_text()
    train_toy(tmp_path / "again", source, "data.cache_mb=0", "schedule={epochs: 1}", "training.log_steps=50")
    again = (tmp_path / "again" / "checkpoints" / "last" / "manifest.json").read_text()
    assert json.loads(first)["step"] == json.loads(again)["step"]


def test_f35_too_many_unreadable_videos_stop_the_run(tmp_path: Path) -> None:
    frame_folders(tmp_path / "clips", 10, bad=2)
    with pytest.raises(InputError, match="2 of 10"):
        train_toy(
            tmp_path / "run",
            f"data.sources=[{{layout: folder, root: {tmp_path / 'clips'}}}]",
            "data.cache_mb=0",
        )


def write_checkpoint(folder: Path, step: int = 1, state: dict[str, Any] | None = None) -> Path:
    checkpoints = CheckpointFolder(folder)
    return checkpoints.save(step, lambda path: files.write_bytes(path, b"weights"), state or {"a": 1}, {})


def test_f23_files_are_synced_before_they_are_named_and_the_manifest_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    sync, replace = files._fsync, Path.replace

    def record_sync(path: Path) -> None:
        events.append(("sync", "folder" if path.is_dir() else path.name.split(".")[1]))
        sync(path)

    def record_replace(path: Path, target: Path) -> Path:
        events.append(("name", target.name))
        return replace(path, target)

    monkeypatch.setattr(files, "_fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_replace)
    write_checkpoint(tmp_path)
    expected = [
        [("sync", name.split(".")[0]), ("name", name), ("sync", "folder")]
        for name in ("model.safetensors", "state.pt", "manifest.json")
    ]
    assert events == [event for part in expected for event in part]


def test_f21_a_full_disk_leaves_the_earlier_checkpoint_and_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, 1)

    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match="E601 disk full"):
            write_checkpoint(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir() if path.name != "last"] == ["step_00000001"]
    assert load_checkpoint(tmp_path / "last").state == {"a": 1}


def test_only_the_last_two_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    for step in range(1, 6):
        write_checkpoint(tmp_path, step)
        if step == 2:
            checkpoints.mark_best(2, {"J&F": 0.5})
    assert [path.name[-1] for path in checkpoints.versions.complete()] == ["2", "4", "5"]
    assert checkpoints.best_score() == 0.5
    assert (tmp_path / "best").resolve().name == "step_00000002"
    assert (tmp_path / "last").resolve().name == "step_00000005"


def test_without_links_last_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", forbidden)
    for step in (1, 2):
        write_checkpoint(tmp_path, step, {"step": step})
    assert not (tmp_path / "last").is_symlink()
    assert load_checkpoint(tmp_path / "last").state == {"step": 2}


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "manifest.json"])
def test_f24_a_missing_or_changed_file_is_noticed(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-3])
    with pytest.raises(InputError, match="E273"):
        load_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match="E273"):
        load_checkpoint(folder)


class Payload:
    """Pickles as a call that would create a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.canary),)


def test_f25_code_in_a_checkpoint_is_never_executed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    torch.save({"a": Payload(tmp_path / "canary")}, folder / "state.pt")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.pt"] = files.sha256(folder / "state.pt")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="never executed"):
        load_checkpoint(folder)
    assert not (tmp_path / "canary").exists()


def forbidden_calls(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name == "torch.load" and keywords.get("weights_only") != "True":
            found.append(f"{path}:{node.lineno} torch.load without weights_only=True")
        if name in {
            "eval",
            "exec",
            "os.system",
            "yaml.load",
            "yaml.unsafe_load",
            "pickle.load",
            "pickle.loads",
        }:
            found.append(f"{path}:{node.lineno} {name}")
        if name.endswith("cv2.imwrite") or keywords.get("shell") == "True":
            found.append(f"{path}:{node.lineno} {name}")
    return found


def test_f25_no_module_can_execute_what_it_reads() -> None:
    modules = [
        *(ROOT / "vosnet").rglob("*.py"),
        *(ROOT / "kernels").rglob("*.py"),
        *(ROOT / "tools").rglob("*.py"),
    ]
    assert [call for path in modules for call in forbidden_calls(path)] == []


def test_f25_the_check_itself_finds_each_forbidden_call(tmp_path: Path) -> None:
    lines = [
        "torch.load(p)",
        "eval(x)",
        "yaml.load(f)",
        "pickle.loads(b)",
        "run(c, shell=True)",
        "cv2.imwrite(p, i)",
    ]
    (tmp_path / "bad.py").write_text("\n".join(lines))
    assert len(forbidden_calls(tmp_path / "bad.py")) == len(lines)


def test_losses_of_a_resumed_step_stand_in_the_journal_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_toy(out, "schedule={steps: 2}")
    with (out / "metrics.jsonl").open("a") as file:  # rows written after the last checkpoint
        file.write('{"step": 3, "split": "train", "loss": 99.0}\n')
    train_toy(out, "schedule={steps: 3}", resume="auto")
    assert list(losses(out)) == [1, 2, 3]
    assert losses(out)[3] != 99.0
