"""Result folders: refuse, resume, overwrite."""

from pathlib import Path

import pytest

from vosnet.errors import InputError, UsageError
from vosnet.export.folder import ResultFolder
from vosnet.files import write_bytes


def test_f28_a_folder_with_foreign_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        ResultFolder(tmp_path, {})


def test_f28_overwrite_removes_only_what_the_tool_made(tmp_path: Path) -> None:
    first = ResultFolder(tmp_path, {"preset": "dul"})
    write_bytes(first.path("masks/00000.png"), b"x")
    (tmp_path / "mine.txt").write_text("precious")
    second = ResultFolder(tmp_path, {"preset": "vfs"}, existing="overwrite")
    assert (tmp_path / "mine.txt").read_text() == "precious"
    assert not (tmp_path / "masks").exists()
    assert second.made == []


def test_f28_resume_keeps_files_and_requires_the_same_settings(tmp_path: Path) -> None:
    first = ResultFolder(tmp_path, {"preset": "dul"})
    write_bytes(first.path("masks/00000.png"), b"x")
    again = ResultFolder(tmp_path, {"preset": "dul"}, existing="resume")
    assert again.resumed
    assert again.made == ["masks/00000.png"]
    with pytest.raises(UsageError, match="preset was 'dul', now 'vfs'"):
        ResultFolder(tmp_path, {"preset": "vfs"}, existing="resume")


def test_f27_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        ResultFolder(tmp_path, {}).path("../evil.png")
