"""A folder with everything that commands and snippets name: clips, masks, data sets, runs, results."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.data_roots import moving_squares, write_davis_root, write_results, write_youtube_vos_root
from tests.support.documents import ROOT
from tests.support.toy_training import train_toy
from vosnet.masks import write_mask
from vosnet.synthetic import make_clip, write_video


@pytest.fixture(scope="session")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; `workplace` is a copy."""
    folder = tmp_path_factory.mktemp("things")
    clip = make_clip(7, num_frames=12, size=(64, 96), num_objects=2)
    for place in (folder, folder / "demo"):
        write_video(place / "clip.mp4", clip)
        write_mask(place / "first.png", clip.masks[0])
    write_mask(folder / "later.png", clip.masks[8])
    for t, frame in enumerate(clip.frames[:4]):
        write_picture(folder / f"frames/{t:05d}.png", frame)
    for target in (
        "clips/one.mp4",
        "my_videos/one.mp4",
        "my_videos/two.mp4",
        "data/k400/train/class/one.mp4",
    ):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "clip.mp4", folder / target)
    write_mask(folder / "first_masks/one.png", clip.masks[0])
    write_benchmarks(folder)
    write_runs(folder)
    shutil.copy(ROOT / "recipes/dul_clips.yaml", folder / "my.yaml")
    return folder


@pytest.fixture
def workplace(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "workplace"
    shutil.copytree(things, folder)
    monkeypatch.chdir(folder)
    return folder


def write_picture(path: Path, frame: object) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame).save(path)


def write_benchmarks(folder: Path) -> None:
    sequences = {"dog": moving_squares(4), "libby": moving_squares(4, objects=1)}
    for split in ("val", "test-dev"):
        write_davis_root(folder / "DAVIS", sequences, split=split)
    (folder / "dev.txt").write_text("dog\nlibby\n")
    for name in (
        "my_masks",
        "test_masks",
        "results/random",
        "results/mine",
        "results/memory",
        "results/references5",
    ):
        write_results(folder / name, sequences)
    root = write_youtube_vos_root(folder / "YTVOS")
    shutil.copytree(root / "valid/Annotations", folder / "ytvos_masks")


def write_runs(folder: Path) -> None:
    """Runs of one step, and the checkpoint in the middle of a run that a command names."""
    for name, preset in (("mine", "dul"), ("memory", "memory_tracker"), ("all", "unified")):
        train_toy(folder / "runs" / name, f"preset={preset}", "schedule.steps=1", "schedule.warmup_steps=0")
    shutil.copytree(folder / "runs/mine", folder / "runs/dul")
    shutil.copytree(folder / "runs/memory", folder / "runs/momentum_memory_ytvos")
    weights = next((folder / "runs/memory/checkpoints").glob("step_*/model.safetensors"))
    middle = folder / "runs/memory/checkpoints/step_00001470/model.safetensors"
    middle.parent.mkdir()
    shutil.copy(weights, middle)
