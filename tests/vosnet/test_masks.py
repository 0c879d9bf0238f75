"""Every kind of mask file, what it is understood as, and the palette PNGs that are written."""

import io
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from vosnet.errors import InputError, UsageError
from vosnet.masks import DAVIS_PALETTE, check_size, fit_mask, object_ids, one_hot, read_mask, write_mask

PALETTE = np.frombuffer(DAVIS_PALETTE, np.uint8).reshape(256, 3)


def scene(first: int = 1, second: int = 2) -> np.ndarray:
    ids = np.zeros((40, 60), np.uint8)
    ids[5:20, 6:30] = first
    ids[22:36, 25:50] = second
    return ids


def disc(size: int = 64) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return ((y - size / 2) ** 2 + (x - size / 2) ** 2 < (size / 3) ** 2).astype(np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


def test_davis_palette_is_the_bit_reversed_one() -> None:
    assert len(DAVIS_PALETTE) == 768
    assert PALETTE[[0, 1, 2, 3, 7, 8, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [128, 128, 128], [64, 0, 0], [224, 224, 192],
    ]  # fmt: skip


@pytest.mark.parametrize("ids", [(1, 2), (7, 200), (255, 3)], ids=["plain", "holes", "top"])
def test_f18_ids_survive_a_round_trip_exactly(tmp_path: Path, ids: tuple[int, int]) -> None:
    mask = scene(*ids)
    write_mask(tmp_path / "m.png", mask)
    read = read_mask(tmp_path / "m.png")
    assert read.kind == "palette"
    assert np.array_equal(read.ids, mask)
    assert read.object_ids == sorted(ids)


def test_f18_an_empty_mask_is_refused_where_objects_are_needed(tmp_path: Path) -> None:
    write_mask(tmp_path / "empty.png", np.zeros((8, 9), np.uint8))
    with pytest.raises(InputError, match=r"E245 .*empty\.png.*empty"):
        read_mask(tmp_path / "empty.png").require_objects()


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_any_label_map_is_read_back_as_written(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_mask(Path(folder) / "m.png", mask)
        assert np.array_equal(read_mask(Path(folder) / "m.png").ids, mask)


def test_written_masks_are_8_bit_palette_pngs_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", scene())
    write_mask(tmp_path / "b.png", scene().astype(np.int64))
    image = Image.open(tmp_path / "a.png")
    assert (image.mode, bytes(image.getpalette() or [])) == ("P", DAVIS_PALETTE)
    assert (tmp_path / "a.png").read_bytes()[24:26] == bytes([8, 3])  # IHDR: bit depth 8, palette
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_f17_opencv_reads_palette_ids_as_colors_and_we_do_not(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    write_mask(tmp_path / "m.png", scene())
    trap = cv2.imread(str(tmp_path / "m.png"), cv2.IMREAD_GRAYSCALE)
    assert set(np.unique(trap)) == {0, 38, 75}
    assert read_mask(tmp_path / "m.png").object_ids == [1, 2]


def colored(ids: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
    rgb = PALETTE[ids]
    return rgb if alpha is None else np.dstack([rgb, alpha])


def golden_masks() -> list[object]:
    """(file content, expected ids, kind): one case per kind of file people bring."""
    two, one = scene(), (scene() > 0).astype(np.uint8)
    opaque = np.full(two.shape, 255, np.uint8)
    davis_191 = np.where(colored(scene(9, 12)) == 192, 191, colored(scene(9, 12))).astype(np.uint8)
    white = np.repeat(one[..., None] * 255, 3, axis=2).astype(np.uint8)
    cut_out = np.dstack([np.full((*two.shape, 3), (10, 200, 30), np.uint8), one * 255])
    sixteen = two.astype(np.uint16)
    return [
        pytest.param(two, two, "grey", id="grey-ids"),
        pytest.param(scene(7, 200), scene(7, 200), "grey", id="grey-ids-with-holes"),
        pytest.param(one * 255, one, "binary", id="binary"),
        pytest.param(one.astype(bool), one, "1-bit binary", id="1-bit"),
        pytest.param(colored(two), two, "color", id="davis-colors"),
        pytest.param(colored(scene(7, 7)), scene(7, 7), "color", id="davis-grey-is-id-7"),
        pytest.param(davis_191, scene(9, 12), "color", id="davis-2017-colors"),
        pytest.param(white, one, "color (binary)", id="white-on-black"),
        pytest.param(np.repeat(two[..., None], 3, axis=2), two, "color (grey)", id="grey-ids-in-rgb"),
        pytest.param(colored(two, opaque), two, "color", id="opaque-rgba"),
        pytest.param(cut_out, one, "color with alpha", id="transparent-background"),
        pytest.param(sixteen, two, "16-bit grey", id="16-bit-ids"),
        pytest.param(sixteen * 257, two, "16-bit grey", id="16-bit-stretched"),
        pytest.param((one * 65535.0).astype(np.uint16), one, "16-bit binary", id="16-bit-binary"),
    ]


@pytest.mark.parametrize(("array", "expected", "kind"), golden_masks())
def test_f17_every_kind_of_mask_is_recognized(
    tmp_path: Path, array: np.ndarray, expected: np.ndarray, kind: str
) -> None:
    mask = read_mask(save(tmp_path / "mask.png", array))
    assert mask.kind == kind
    assert np.array_equal(mask.ids, expected)


def test_f17_other_colors_get_free_ids_in_ascending_color_order(tmp_path: Path) -> None:
    rgb = np.zeros((30, 30, 3), np.uint8)
    rgb[:10, :10], rgb[10:20, :10], rgb[20:, :10] = (255, 0, 0), (0, 128, 0), (0, 0, 255)
    mask = read_mask(save(tmp_path / "m.png", rgb))
    assert mask.colors == {1: (0, 0, 255), 2: (0, 128, 0), 3: (255, 0, 0)}
    later = np.zeros_like(rgb)
    later[:10, :10], later[10:20] = (255, 0, 0), (9, 9, 200)
    read = read_mask(save(tmp_path / "later.png", later), known_colors=mask.colors)
    assert read.colors == {3: (255, 0, 0), 4: (9, 9, 200)}


@pytest.mark.parametrize("kind", ["grey", "color", "alpha", "16-bit"])
def test_f17_soft_edges_are_cut_at_one_half_with_a_warning(tmp_path: Path, kind: str) -> None:
    soft = np.array(Image.fromarray(disc() * 255).filter(ImageFilter.GaussianBlur(1.5)))
    array = {
        "grey": soft,
        "color": (soft[..., None] * np.array([0.9, 0.2, 0.4])).astype(np.uint8),
        "alpha": np.dstack([np.full((64, 64, 3), 255, np.uint8), soft]),
        "16-bit": soft.astype(np.uint16) * 255,
    }[kind]
    mask = read_mask(save(tmp_path / "soft.png", array))
    assert mask.object_ids == [1]
    assert (mask.ids != disc()).mean() < 0.005
    assert any("soft edges" in warning for warning in mask.warnings)


def test_f17_two_soft_colors_do_not_invent_objects_between_them(tmp_path: Path) -> None:
    big = Image.fromarray(colored(scene()).repeat(4, 0).repeat(4, 1)).filter(ImageFilter.GaussianBlur(3))
    path = tmp_path / "m.png"
    big.resize((60, 40), Image.Resampling.BOX).save(path)
    mask = read_mask(path)
    assert mask.object_ids == [1, 2]
    assert (mask.ids != scene()).mean() < 0.02


def test_f17_jpeg_is_refused_unless_asked_for_and_then_cleaned(tmp_path: Path) -> None:
    path = tmp_path / "m.jpg"
    Image.fromarray(colored(scene())).save(path, quality=85)
    with pytest.raises(InputError, match=r"E242 .*m\.jpg.*--mask-from-jpeg"):
        read_mask(path)
    mask = read_mask(path, from_jpeg=True)
    assert mask.object_ids == [1, 2]
    assert (mask.ids != scene()).mean() < 0.03


def test_f17_exif_rotation_is_applied_and_reported(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees
    Image.fromarray(disc(64)[:, :40] * 255).save(tmp_path / "m.jpg", exif=exif, quality=95)
    mask = read_mask(tmp_path / "m.jpg", from_jpeg=True)
    assert mask.size == (40, 64)
    assert "EXIF orientation 6" in mask.warnings[0]


def test_a_color_reduced_palette_is_read_by_color(tmp_path: Path) -> None:
    rgb = np.full((30, 30, 3), 255, np.uint8)
    rgb[:10], rgb[10:20] = (0, 0, 0), (255, 0, 0)
    indices = np.repeat(np.array([2, 1, 0], np.uint8), 10)[:, None].repeat(30, 1)
    image = Image.fromarray(indices)
    image.putpalette(bytes([255, 255, 255, 255, 0, 0, 0, 0, 0]))
    image.save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    assert np.unique(mask.ids[:10]).tolist() == [0]
    assert mask.object_ids == [1, 2]
    assert "read by color" in mask.warnings[0]


def test_a_photograph_is_not_a_mask(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    noise[:4, :4] = 0
    with pytest.raises(InputError, match="E243 .*photograph"):
        read_mask(save(tmp_path / "photo.png", noise))


@pytest.mark.parametrize("kind", ["16-bit", "color"])
def test_f19_more_than_255_objects_name_the_way_out(tmp_path: Path, kind: str) -> None:
    ids = np.arange(300).reshape(15, 20).repeat(3, 0).repeat(3, 1)
    rgb = np.stack([ids % 256, ids // 256 * 100, np.full_like(ids, 77)], axis=2).astype(np.uint8)
    array = ids.astype(np.uint16) if kind == "16-bit" else rgb
    with pytest.raises(InputError, match=r"E244 .*(300 colors|299 objects).*coco-video"):
        read_mask(save(tmp_path / "many.png", array))


def test_f19_ids_beyond_255_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"E244 .*0\.\.300.*coco-video"):
        write_mask(tmp_path / "m.png", np.arange(301).reshape(7, 43))
    assert not list(tmp_path.iterdir())


def test_f16_another_size_is_refused_naming_both(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"E204 first\.png: mask size 60x40 does not match video 854x480"):
        check_size(scene(), (480, 854), path="first.png")
    with pytest.raises(InputError, match="--resize-mask nearest"):
        fit_mask(scene(), (80, 120))
    resized = fit_mask(scene(), (80, 120), resize="nearest")
    assert np.array_equal(resized, scene().repeat(2, 0).repeat(2, 1))
    with pytest.raises(UsageError):
        fit_mask(scene(), (80, 120), resize="bilinear")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "header"])
def test_an_unreadable_mask_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(InputError, match=r"E240 .*bad\.png"):
        read_mask(tmp_path / "bad.png")


def test_a_truncated_mask_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 60), np.uint8)
    write_mask(tmp_path / "cut.png", noise)
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="E240 .*truncated"):
        read_mask(tmp_path / "cut.png")
    with pytest.raises(InputError, match="does not exist"):
        read_mask(tmp_path / "missing.png")


@pytest.mark.parametrize("side", [9000, 60000])
def test_f45_a_picture_that_unpacks_to_gigabytes_is_refused_unread(tmp_path: Path, side: int) -> None:
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"E241 .*bomb\.png"):
        read_mask(tmp_path / "bomb.png")


def test_summary_names_ids_and_shares(tmp_path: Path) -> None:
    mask = np.zeros((10, 100), np.uint8)
    mask.flat[:81], mask.flat[100:130] = 1, 2
    write_mask(tmp_path / "m.png", mask)
    assert read_mask(tmp_path / "m.png").summary() == "2 objects: 1 8.1 %, 2 3.0 %"


def test_one_hot_has_one_channel_per_object_and_background_first() -> None:
    probs = one_hot(scene(3, 9), [9, 3]).numpy()
    assert probs.shape == (3, 40, 60)
    assert np.array_equal(probs[1], scene(3, 9) == 9)
    assert np.array_equal(probs.sum(axis=0), np.ones((40, 60)))
    assert object_ids(scene(3, 9)) == [3, 9]
    assert one_hot(scene(3, 9), [3]).numpy()[0][30, 40] == 1  # unlisted id 9 is background
    with pytest.raises(ValueError, match="distinct"):
        one_hot(scene(), [0, 1])
