"""Splits and sequences of a DAVIS root."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.data_roots import moving_squares, write_davis_root
from vosnet.errors import InputError, UsageError
from vosnet.evaluation.davis import DavisBenchmark


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_davis_root(tmp_path / "davis", {"dog": moving_squares(), "car 10": moving_squares()})


def names(root: Path, split: str | Path) -> list[str]:
    return DavisBenchmark(root, split).names


def test_a_split_is_found_by_name_by_path_below_imagesets_and_as_a_file(root: Path, tmp_path: Path) -> None:
    listing = tmp_path / "mine.txt"
    listing.write_text("\ufeffcar 10  # one\n\n", encoding="utf-8")
    assert names(root, "val") == names(root, "2017/val") == ["dog", "car 10"]
    assert names(root, listing) == ["car 10"]
    assert DavisBenchmark(root, "val").sequence("car 10").name == "car 10"


def test_davis_2016_pairs_become_sequences_in_order_and_once(root: Path) -> None:
    lines = [
        f"/JPEGImages/480p/{n}/0000{t}.jpg /Annotations/480p/{n}/0000{t}.png" for n in "ba" for t in (0, 1)
    ]
    (root / "ImageSets/pairs.txt").write_text("\n".join(lines))
    assert names(root, "pairs") == ["b", "a"]


def test_an_unknown_or_ambiguous_split_lists_what_there_is(root: Path) -> None:
    (root / "ImageSets/2016").mkdir()
    (root / "ImageSets/2016/val.txt").write_text("dog")
    with pytest.raises(UsageError, match=r"E141 .*'tset'.*2016/val, 2017/val"):
        names(root, "tset")
    with pytest.raises(UsageError, match="found 2 times"):
        names(root, "val")
    assert names(root, "2016/val") == ["dog"]


@pytest.mark.parametrize("name", ["../../etc", "/etc", "con", "a" * 300])
def test_f27_a_split_cannot_lead_out_of_the_root(root: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "evil.txt").write_text(name)
    with pytest.raises(InputError, match="unsafe name"):
        names(root, tmp_path / "evil.txt")
    with pytest.raises(InputError, match="unsafe name"):
        DavisBenchmark(root, "val").sequence(name)


def test_frames_come_in_natural_order_without_junk(root: Path) -> None:
    folder = root / "JPEGImages/480p/dog"
    for old, new in ((5, "10.jpg"), (4, "9.jpg")):
        (folder / f"0000{old}.jpg").rename(folder / new)
        (root / f"Annotations/480p/dog/0000{old}.png").rename(
            root / "Annotations/480p/dog" / new.replace("jpg", "png")
        )
    (folder / "Thumbs.db").write_bytes(b"")
    (folder / "._00000.jpg").write_bytes(b"")
    sequence = DavisBenchmark(root, "val").sequence("dog")
    assert [path.name for path in sequence.frames][-2:] == ["9.jpg", "10.jpg"]
    assert len(sequence.frames) == len(sequence.annotations) == 6


def test_the_first_annotation_folder_that_has_the_sequence_wins(root: Path) -> None:
    write_davis_root(root / "other", {"dog": moving_squares()})
    (root / "other/Annotations").rename(root / "Annotations_2017")
    davis = DavisBenchmark(root, "val", ["Annotations_2017", "Annotations"])
    assert "Annotations_2017" in str(davis.sequence("dog").annotations[0])
    assert "Annotations/" in str(davis.sequence("car 10").annotations[0])
    with pytest.raises(InputError, match="no annotation folder Missing"):
        DavisBenchmark(root, "val", ["Missing"])


def test_a_missing_sequence_is_named_with_what_it_could_be(root: Path) -> None:
    with pytest.raises(InputError, match=r"E232 no frames of sequence 'dug'.*Did you mean dog"):
        DavisBenchmark(root, "val").sequence("dug")
    (root / "Annotations/480p/dog/00009.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"annotations without a frame: 00009\.png"):
        DavisBenchmark(root, "val").sequence("dog")
    with pytest.raises(InputError, match=r"E230 no DAVIS data set at .*Expected there"):
        DavisBenchmark(root / "nowhere", "val")


def test_a_method_sees_the_first_mask_only_and_void_is_background(tmp_path: Path) -> None:
    masks = moving_squares()
    masks[0][0, 0] = 255
    root = write_davis_root(tmp_path, {"dog": masks})
    benchmark = DavisBenchmark(root, "val")
    given = benchmark.given("dog")
    assert list(given) == ["00000"]
    assert sorted(np.unique(given["00000"])) == [0, 1, 2]
    assert benchmark.expected("dog").ids == {1, 2}
    assert benchmark.expected("dog").size == (48, 64)
    assert len(benchmark.asked("dog")) == 6
