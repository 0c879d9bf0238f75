"""Zips for the DAVIS and YouTube-VOS servers: built from a result folder and checked before upload."""

from __future__ import annotations

import io
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vosnet.errors import InputError
from vosnet.evaluation.benchmark import ExpectedMasks
from vosnet.files import atomic_path
from vosnet.masks import object_ids

MAX_FILES = 200_000
MAX_FILE_BYTES = 64 << 20
MAX_TOTAL_BYTES = 16 << 30
MAX_RATIO = 2000  # a blank 4K mask compresses about 1000 times


def build_submission(
    path: Path, results: Path, expected: Mapping[str, ExpectedMasks], *, prefix: str = ""
) -> int:
    """Pack the expected masks and check the zip; `path` is replaced only if everything is right.

    Args:
        path: the zip to write.
        results: folder with `<sequence>/<stem>.png`.
        expected: by sequence.
        prefix: "Annotations/" for YouTube-VOS, "" for DAVIS (XMem's layouts).

    Returns:
        Number of masks in the zip.

    Raises:
        InputError: frames are missing or wrong; everything wrong is listed and no zip is written.
    """
    missing = [
        f"{name}/{stem}.png"
        for name, masks in expected.items()
        for stem in masks.stems
        if not (results / name / f"{stem}.png").is_file()
    ]
    _require_none([f"missing {name}" for name in missing], path)
    with atomic_path(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:  # PNGs do not compress further
            for name, masks in expected.items():
                for stem in masks.stems:
                    info = zipfile.ZipInfo(f"{prefix}{name}/{stem}.png")  # of 1980: same masks, same zip
                    info.external_attr = 0o644 << 16
                    archive.writestr(info, (results / name / f"{stem}.png").read_bytes())
        return validate_submission(temporary, expected, prefix=prefix, shown=path)


def validate_submission(
    path: Path, expected: Mapping[str, ExpectedMasks], *, prefix: str = "", shown: Path | None = None
) -> int:
    """Check names, frame set, mode P, sizes and ids of a zip; nothing is unpacked to disk.

    Args:
        path: the zip.
        expected: by sequence.
        prefix: as for `build_submission`.
        shown: the path that messages name instead.

    Returns:
        Number of masks in the zip.

    Raises:
        InputError: not a zip, an unsafe one, or a wrong one; everything wrong is listed.
    """
    entries = {
        f"{prefix}{name}/{stem}.png": masks for name, masks in expected.items() for stem in masks.stems
    }
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(archive, shown or path)
            there = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            problems = [f"missing {name}" for name in entries if name not in there]
            problems += [f"extra {name}" for name in there if name not in entries]
            for name, masks in entries.items():
                if name in there:
                    problems += _mask_problems(archive.read(there[name]), name, masks)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise InputError("E250", f"{shown or path} is not a readable zip ({error})") from error
    _require_none(problems, shown or path)
    return len(entries)


def check_zip(archive: zipfile.ZipFile, shown: Path) -> None:
    """Refuse a zip that could harm whoever unpacks it.

    Raises:
        InputError: unsafe names, links, duplicates, nested zips, encryption, or sizes beyond the limits; all
            are listed with the limits.
    """
    infos = archive.infolist()
    problems: list[str] = []
    seen: set[str] = set()
    for info in infos[: MAX_FILES + 1]:
        problems += [f"{reason}: {info.filename[:100]!r}" for reason in _dangers(info, seen)]
        seen.add(info.filename.casefold())
    total = sum(info.file_size for info in infos)
    if len(infos) > MAX_FILES:
        problems.append(f"{len(infos)} entries, the limit is {MAX_FILES}")
    if total > MAX_TOTAL_BYTES:
        problems.append(f"{total} bytes unpacked, the limit is {MAX_TOTAL_BYTES}")
    _require_none(problems, shown, code="E251", what="is unsafe")


def _dangers(info: zipfile.ZipInfo, seen: set[str]) -> list[str]:
    name = info.orig_filename if isinstance(info.orig_filename, str) else info.filename
    parts = re.split(r"[/\\]", name.rstrip("/"))
    reasons = []
    if any(part in {"", ".", ".."} for part in parts) or re.search(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:", name):
        reasons.append("unsafe name")
    if stat.S_IFMT(info.external_attr >> 16) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        reasons.append("a link or device")
    if info.filename.casefold() in seen:
        reasons.append("duplicate name")
    if name.lower().endswith((".zip", ".tar", ".gz", ".7z", ".rar")):
        reasons.append("nested archive")
    if info.flag_bits & 1:
        reasons.append("encrypted")
    if info.file_size > MAX_FILE_BYTES:
        reasons.append(f"{info.file_size} bytes, the limit is {MAX_FILE_BYTES}")
    if info.file_size > MAX_RATIO * max(1, info.compress_size):
        reasons.append(f"unpacks more than {MAX_RATIO} times")
    return reasons


def _mask_problems(content: bytes, name: str, masks: ExpectedMasks) -> list[str]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format != "PNG" or image.mode != "P":
                return [f"{name} is {image.format} of mode {image.mode}, not a palette PNG (mode P)"]
            if (image.height, image.width) != masks.size:
                return [f"{name} is {image.width}x{image.height}, not {masks.size[1]}x{masks.size[0]}"]
            ids = object_ids(np.array(image, dtype=np.uint8))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return [f"{name} cannot be read ({error})"]
    strange = [index for index in ids if index not in masks.ids]
    return [f"{name} holds ids {strange}, known are {sorted(masks.ids)}"] if strange else []


def _require_none(problems: list[str], path: Path, *, code: str = "E252", what: str = "is not valid") -> None:
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise InputError(
            code, f"{path} {what}, {len(problems)} problem(s):\n{listed}\n", "No zip was written."
        )
