"""Atomic writes, path safety and the outermost error handling."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vosnet.errors import InputError, StorageError
from vosnet.files import (
    TEMPORARY_SUFFIX,
    atomic_folder,
    atomic_path,
    inside,
    natural_key,
    remove_stale_temporaries,
    write_bytes,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_json(target, {"a": 1})
    before = target.read_bytes()
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("crash")
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_f21_a_full_disk_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    target = tmp_path / "frame.bin"
    write_bytes(target, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(StorageError, match="disk full while writing .*frame.bin"):
            write_bytes(target, b"x" * (1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_f22_the_last_good_file_survives_kill_during_a_write(tmp_path: Path) -> None:
    script = (
        "import os, sys, signal; from vosnet.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as t:\n"
        "    t.write_bytes(b'new'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    target = tmp_path / "state.pt"
    write_bytes(target, b"old")
    subprocess.run([sys.executable, "-c", script, target], check=False, env={**os.environ, "PYTHONPATH": "."})
    assert target.read_bytes() == b"old"
    assert len(remove_stale_temporaries(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == [target]


def test_only_temporary_files_are_stale(tmp_path: Path) -> None:
    folder, temporary = tmp_path / f".a.1{TEMPORARY_SUFFIX}", tmp_path / f".b.2{TEMPORARY_SUFFIX}.png"
    folder.mkdir()
    temporary.touch()
    (tmp_path / "kept.png").touch()
    assert remove_stale_temporaries(tmp_path) == [temporary]
    assert sorted(tmp_path.iterdir()) == [folder, tmp_path / "kept.png"]


@pytest.fixture
def disk_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed, in order; temporaries are called "temporary"."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def named(path: Path) -> str:
        return "temporary" if TEMPORARY_SUFFIX in path.name else path.name

    def recorded_fsync(handle: int) -> None:
        calls.append(f"fsync {named(Path(f'/proc/self/fd/{handle}').readlink())}")
        fsync(handle)

    def recorded_replace(source: Path, target: Path) -> Path:
        calls.append(f"rename {named(source)} to {target.name}")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    return calls


ORDER = ["fsync temporary", "rename temporary to x", "fsync parent"]


def test_f23_file_is_synced_then_renamed_then_the_folder_is_synced(
    tmp_path: Path, disk_calls: list[str]
) -> None:
    write_bytes(tmp_path / "parent" / "x", b"1")
    assert disk_calls == ORDER


def test_f23_folder_is_synced_then_renamed_then_its_parent_is_synced(
    tmp_path: Path, disk_calls: list[str]
) -> None:
    with atomic_folder(tmp_path / "parent" / "x") as temporary:
        (temporary / "frame").write_bytes(b"1")
        assert not (tmp_path / "parent" / "x").exists()
    assert disk_calls == ORDER
    assert (tmp_path / "parent" / "x" / "frame").read_bytes() == b"1"


def test_a_folder_that_failed_half_way_leaves_nothing(tmp_path: Path, disk_calls: list[str]) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "x") as temporary:
        (temporary / "frame").write_bytes(b"1")
        raise RuntimeError("crash")
    assert list(tmp_path.iterdir()) == []
    assert disk_calls == []


def test_files_and_folders_get_the_permissions_that_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "file", b"")
        with atomic_folder(tmp_path / "folder"):
            pass
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder")]
    assert modes == [0o640, 0o750]


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "C:\\x", "con", "NUL.txt", "a\nb", "a" * 300, "", ".", "a//b"],
)
def test_f27_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="unsafe name"):
        inside(tmp_path, name)


def test_f27_a_symbolic_link_does_not_lead_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(InputError):
        inside(root, "link/x")


@given(st.text(max_size=40))
def test_f27_any_accepted_name_stays_inside(name: str) -> None:
    root = Path("/tmp/vosnet-root")
    try:
        path = inside(root, name)
    except InputError:
        return
    assert path.resolve().is_relative_to(root.resolve())


def test_f30_a_file_where_a_folder_should_be_is_reported(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(StorageError, match="out"):
        write_bytes(tmp_path / "out" / "x", b"")


def test_other_os_errors_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="odd"), atomic_path(tmp_path / "x"):
        raise OSError(errno.EINTR, "odd")


def test_f15_names_sort_by_number() -> None:
    assert sorted(["10.jpg", "2.jpg", "frame1a", "frame1B"], key=natural_key)[:2] == ["2.jpg", "10.jpg"]
