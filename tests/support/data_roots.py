"""Small data sets and results on disk."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vosnet.masks import write_mask


def moving_squares(count: int = 6, size: tuple[int, int] = (48, 64), objects: int = 2) -> list[np.ndarray]:
    """Label maps in which object i walks right along row 14 * i."""
    masks = []
    for t in range(count):
        mask = np.zeros(size, np.uint8)
        for index in range(1, objects + 1):
            mask[14 * index : 14 * index + 10, 3 * t + 5 : 3 * t + 20] = index
        masks.append(mask)
    return masks


def write_frames(folder: Path, stems: list[str], size: tuple[int, int] = (48, 64)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for stem in stems:
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"{stem}.jpg")


def write_davis_root(
    root: Path, sequences: Mapping[str, list[np.ndarray]], *, split: str = "val", binary: bool = False
) -> Path:
    """A DAVIS root; `binary` writes DAVIS-2016's 0/255 annotations."""
    for name, masks in sequences.items():
        stems = [f"{t:05d}" for t in range(len(masks))]
        write_frames(root / "JPEGImages/480p" / name, stems, masks[0].shape)
        folder = root / "Annotations/480p" / name
        for stem, mask in zip(stems, masks):
            if binary:
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray((mask > 0).astype(np.uint8) * 255).save(folder / f"{stem}.png")
            else:
                write_mask(folder / f"{stem}.png", mask)
    listing = root / "ImageSets" / ("2016" if binary else "2017") / f"{split}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(f"{name}\n" for name in sequences))
    return root


def write_results(folder: Path, sequences: Mapping[str, list[np.ndarray]]) -> Path:
    for name, masks in sequences.items():
        for t, mask in enumerate(masks):
            write_mask(folder / name / f"{t:05d}.png", mask)
    return folder


def write_youtube_vos_root(root: Path, *, all_annotations: bool = True) -> Path:
    """Two videos of a valid split (an object appears later in the first), and a training meta.json."""
    masks = moving_squares(6)
    for early in masks[:2]:
        early[early == 2] = 0
    stems = [f"{5 * t:05d}" for t in range(6)]
    videos = {
        "aa11": {"1": ("penguin", stems), "2": ("unicorn", stems[2:])},
        "bb22": {"1": ("penguin", stems)},
    }
    meta = {
        name: {"objects": {i: {"category": c, "frames": s} for i, (c, s) in objects.items()}}
        for name, objects in videos.items()
    }
    valid = root / "valid"
    for name, objects in videos.items():
        write_frames(valid / "JPEGImages" / name, stems)
        for t, stem in enumerate(stems):
            if all_annotations or any(stem == s[0] for _, s in objects.values()):
                mask = masks[t] * np.isin(masks[t], [int(i) for i in objects]).astype(np.uint8)
                write_mask(valid / "Annotations" / name / f"{stem}.png", mask)
    (valid / "meta.json").write_text(json.dumps({"videos": meta}))
    (root / "train").mkdir()
    train = {"zz": {"objects": {"1": {"category": "penguin", "frames": ["00000"]}}}}
    (root / "train/meta.json").write_text(json.dumps({"videos": train}))
    return root
