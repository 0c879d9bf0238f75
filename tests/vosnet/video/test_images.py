"""Frame folders and stills: natural order, leftovers ignored, mixed sizes refused, names kept."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.zoo import barcode, read_barcode, write_clip
from vosnet.errors import InputError
from vosnet.video import list_videos, open_video


def save(path: Path, number: int, size: tuple[int, int] = (96, 160)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(barcode(number, size[1], size[0])).save(path)
    return path


def test_f15_frames_are_in_numeric_order_and_keep_their_names(tmp_path: Path) -> None:
    for number in (10, 2, 1, 9, 100, 11, 3, 4, 5, 6, 7, 8):
        save(tmp_path / f"{number}.jpg", number)
    reader = open_video(tmp_path)
    assert reader.names == ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "100"]
    assert [read_barcode(frame) for frame in reader] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 100]
    assert reader.decoder == "images"
    assert any("jump from 11 to 100" in warning for warning in reader.warnings)


def test_f15_leftovers_are_ignored_with_their_count(tmp_path: Path) -> None:
    for i, name in enumerate(["a1.JPG", "a2.jpeg", "a3.png", "a4.Png"]):
        save(tmp_path / name, i)
    save(tmp_path / ".hidden.jpg", 9)
    save(tmp_path / "._a1.JPG.png", 9)
    save(tmp_path / "__MACOSX" / "a1.jpg", 9)
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    reader = open_video(tmp_path)
    assert [read_barcode(frame) for frame in reader] == [0, 1, 2, 3]
    assert reader.names == ["a1", "a2", "a3", "a4"]
    assert [w for w in reader.warnings if "ignored" in w] == [
        f"{tmp_path.name}: 5 entries that are no frames ignored"
    ]


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        pytest.param([0, 1, 2, 3], "", id="none"),
        pytest.param([0, 5, 10, 15, 20], "", id="youtube-vos-counts-by-five"),
        pytest.param([0, 1, 2, 5, 6, 7], "jump from 2 to 5", id="two-missing"),
        pytest.param([0, 5, 10, 20, 25], "jump from 10 to 20", id="one-of-five-missing"),
    ],
)
def test_f15_a_gap_in_the_numbers_is_warned_of(numbers: list[int], told: str, tmp_path: Path) -> None:
    for number in numbers:
        save(tmp_path / f"{number:05d}.png", number)
    warnings = open_video(tmp_path).warnings
    assert any(told in warning for warning in warnings) if told else warnings == []


def test_f15_mixed_sizes_are_refused_with_an_example(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", i)
    save(tmp_path / "4.png", 4, size=(50, 60))
    with pytest.raises(
        InputError, match=r"mixes picture sizes: 160x96, but 4\.png \(1 of 5 like it\) is 60x50"
    ):
        open_video(tmp_path)


def test_f15_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "0.png", 0)
    save(tmp_path / "0.jpg", 0)
    with pytest.raises(InputError, match="several pictures named 0"):
        open_video(tmp_path)


def test_f15_a_folder_of_folders_names_one_of_them(tmp_path: Path) -> None:
    save(tmp_path / "bear" / "0.png", 0)
    with pytest.raises(InputError, match="contains no pictures.*for example bear"):
        open_video(tmp_path)


def test_f15_a_damaged_picture_is_held_and_counted(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / f"{i}.png", i)
    content = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(content[: len(content) // 3])
    (tmp_path / "3.png").write_bytes(b"")
    reader = open_video(tmp_path)
    assert [read_barcode(frame) for frame in reader] == [0, 1, 1, 1, 4]
    assert reader.bad_frames == [2, 3]
    with pytest.raises(InputError, match="frame 2"):
        open_video(tmp_path, on_bad_frame="stop")[2]


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 1), (8, 3)])
def test_stills_are_turned_upright_by_their_exif_tag(orientation: int, turns: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(barcode(300), turns)  # the tag asks a viewer to turn it back
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    reader = open_video(tmp_path / "photo.jpg")
    assert (len(reader), reader.size, reader.names) == (1, (96, 160), ["photo"])
    assert read_barcode(reader[0]) == 300


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_every_kind_of_png_is_read_as_rgb(mode: str, tmp_path: Path) -> None:
    if mode == "I;16":
        picture = Image.fromarray(barcode(77)[..., 0].astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(barcode(77)).convert(mode)
    picture.save(tmp_path / "0.png")
    frame = open_video(tmp_path / "0.png")[0]
    assert frame.shape == (96, 160, 3)
    assert read_barcode(frame) == 77


@pytest.mark.parametrize("name", ["a b", "видео", "%05d", "100%", "concat:x", "clip #1?"])
def test_unusual_names_are_plain_names(name: str, tmp_path: Path) -> None:
    assert read_barcode(open_video(save(tmp_path / name / f"{name}.png", 5).parent)[0]) == 5
    clip = write_clip(tmp_path / "clip.mp4", 3).rename(tmp_path / f"{name}.mp4")
    assert [read_barcode(frame) for frame in open_video(clip)] == [0, 1, 2]


def test_videos_are_found_nested_in_natural_order_without_leftovers(tmp_path: Path) -> None:
    names = ["10.mp4", "2.MP4", "b/1.mkv", "b/deep/x.webm", "a.gif"]
    for name in [*names, ".hidden.mp4", "__MACOSX/1.mp4", "._1.mp4", "notes.txt", "0.jpg", ".cache/9.mp4"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in list_videos(tmp_path)]
    assert found == ["2.MP4", "10.mp4", "a.gif", "b/1.mkv", "b/deep/x.webm"]
    with pytest.raises(InputError, match="is not a folder"):
        list_videos(tmp_path / "10.mp4")
