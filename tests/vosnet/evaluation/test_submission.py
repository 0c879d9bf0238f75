"""Submission zips: built with exactly what is asked for, and dangerous or wrong ones refused (row 26)."""

import io
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.data_roots import moving_squares, write_results
from vosnet.errors import InputError
from vosnet.evaluation import submission
from vosnet.evaluation.benchmark import ExpectedMasks
from vosnet.evaluation.submission import build_submission, check_zip, validate_submission
from vosnet.masks import write_mask

EXPECTED = {"dog": ExpectedMasks(("00000", "00002"), (48, 64), frozenset({1, 2}))}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results", {"dog": moving_squares()})


def test_a_zip_holds_only_the_frames_asked_for_and_the_same_bytes_each_time(results: Path) -> None:
    first, second = results.parent / "a.zip", results.parent / "b.zip"
    assert build_submission(first, results, EXPECTED, prefix="Annotations/") == 2
    build_submission(second, results, EXPECTED, prefix="Annotations/")
    assert zipfile.ZipFile(first).namelist() == ["Annotations/dog/00000.png", "Annotations/dog/00002.png"]
    assert first.read_bytes() == second.read_bytes()
    assert validate_submission(first, EXPECTED, prefix="Annotations/") == 2


def test_no_zip_is_written_when_something_is_wrong_and_an_old_one_stays(results: Path) -> None:
    target = results.parent / "a.zip"
    target.write_bytes(b"old")
    write_mask(results / "dog/00000.png", np.full((48, 64), 3, np.uint8))
    with pytest.raises(InputError, match=r"dog/00000\.png holds ids \[3\], known are \[1, 2\]"):
        build_submission(target, results, EXPECTED)
    (results / "dog/00002.png").unlink()
    with pytest.raises(
        InputError, match=r"E252 .*a\.zip is not valid, 1 problem.*\n.*missing dog/00002\.png"
    ):
        build_submission(target, results, EXPECTED)
    assert target.read_bytes() == b"old"


def png(mask: np.ndarray, mode: str = "P") -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(mask)
    (image.convert("P") if mode == "P" else image).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_problem_of_a_foreign_zip_is_listed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("dog/00000.png", png(np.zeros((48, 64), np.uint8), mode="L"))
        archive.writestr("dog/00002.png", png(np.zeros((40, 64), np.uint8)))
        archive.writestr("dog/00003.png", b"junk")
    with pytest.raises(InputError) as caught:
        validate_submission(tmp_path / "a.zip", EXPECTED)
    for problem in ("00000.png is PNG of mode L", "00002.png is 64x40, not 64x48", "extra dog/00003.png"):
        assert problem in str(caught.value)


def dangerous() -> list[object]:
    link = zipfile.ZipInfo("dog/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return [
        pytest.param("../x", b"", "unsafe name", id="parent"),
        pytest.param("/etc/x", b"", "unsafe name", id="absolute"),
        pytest.param("C:\\x", b"", "unsafe name", id="drive"),
        pytest.param("a\\..\\x", b"", "unsafe name", id="backslash"),
        pytest.param("a\nb", b"", "unsafe name", id="newline"),
        pytest.param(link, b"/etc/passwd", "a link", id="link"),
        pytest.param("inner.zip", b"", "nested archive", id="nested"),
        pytest.param("bomb.png", b"\0" * 8_000_000, "unpacks more than 500 times", id="bomb"),
        pytest.param("DOG/00000.png", b"", "duplicate name", id="duplicate"),
        pytest.param("inner.tar", b"", "nested archive", id="tar"),
    ]


@pytest.mark.parametrize(("name", "content", "reason"), dangerous())
def test_f26_a_dangerous_zip_is_refused_and_nothing_unpacked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str | zipfile.ZipInfo,
    content: bytes,
    reason: str,
) -> None:
    monkeypatch.setattr(submission, "MAX_RATIO", 500)
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dog/00000.png", b"")
        archive.writestr(name, content)
    with pytest.raises(InputError, match=rf"E251 .*evil\.zip is unsafe.*\n.*{reason}"):
        validate_submission(path, EXPECTED)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_FILES", 1), ("MAX_TOTAL_BYTES", 5), ("MAX_FILE_BYTES", 5)]
)
def test_f26_limits_on_count_and_size_are_shown(
    results: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    build_submission(results.parent / "a.zip", results, EXPECTED)
    monkeypatch.setattr(submission, limit, value)
    with pytest.raises(InputError, match=f"limit is {value}"):
        validate_submission(results.parent / "a.zip", EXPECTED)


def test_f26_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("dog/00000.png", b"x")
    data = bytearray(content.getvalue())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"E251 .*\n.*encrypted"):
        validate_submission(tmp_path / "a.zip", EXPECTED)


def test_limits_are_inclusive_and_folders_are_no_extra_files(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = results.parent / "a.zip"
    build_submission(path, results, EXPECTED)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("dog/", b"")
        sizes = [info.file_size for info in archive.infolist()]
    monkeypatch.setattr(submission, "MAX_FILES", 3)
    monkeypatch.setattr(submission, "MAX_FILE_BYTES", max(sizes))
    monkeypatch.setattr(submission, "MAX_TOTAL_BYTES", sum(sizes))
    assert validate_submission(path, EXPECTED) == 2


def test_f26_no_zip_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"E250 .*a\.zip is not a readable zip"):
        validate_submission(tmp_path / "a.zip", EXPECTED)


@settings(max_examples=60)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_f26_any_accepted_name_stays_below_the_folder_it_is_unpacked_to(name: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"")
    try:
        with zipfile.ZipFile(buffer) as archive:
            check_zip(archive, Path("x.zip"))
            names = archive.namelist()
    except InputError:
        return
    root = Path("/tmp/vosnet-zip")
    assert all((root / entry).resolve().is_relative_to(root.resolve()) for entry in names)
