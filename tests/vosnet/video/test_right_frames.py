"""The right frame for the right index, in every container and codec of the zoo, in every order of access."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from tests.support.zoo import ANIMALS, Animal, barcode, read_barcode, write_clip
from vosnet.video import VideoReader, open_video


@pytest.fixture(scope="module", params=ANIMALS, ids=lambda a: f"{a.name} {a.suffix}".replace(" ", "-"))
def animal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Animal, Path]:
    kind: Animal = request.param
    return kind, kind.make(tmp_path_factory.mktemp("zoo") / f"clip{kind.suffix}")


def test_f11_every_frame_in_order_is_the_right_one(animal: tuple[Animal, Path]) -> None:
    kind, path = animal
    assert [read_barcode(frame) for frame in open_video(path)] == list(kind.numbers)


def test_f11_every_order_of_access_gives_the_same_frame(animal: tuple[Animal, Path]) -> None:
    kind, path = animal
    order = list(range(len(kind.numbers))) + [
        random.Random(3).randrange(len(kind.numbers)) for _ in range(20)
    ]
    random.Random(5).shuffle(order)
    reader = open_video(path)
    first = {index: reader[index] for index in order}
    assert [read_barcode(first[i]) for i in order] == [kind.numbers[i] for i in order]
    for index, frame in enumerate(reader):
        assert np.array_equal(frame, first[index]), f"frame {index} depends on the order of access"


def test_a_fresh_reader_starts_right_anywhere(animal: tuple[Animal, Path]) -> None:
    kind, path = animal
    reader = open_video(path)
    for index in {0, len(reader) // 3, len(reader) // 2, len(reader) - 1}:
        reader.close()
        assert read_barcode(reader[index]) == kind.numbers[index]
        assert read_barcode(pickle.loads(pickle.dumps(reader))[index]) == kind.numbers[index]


def test_a_batch_keeps_the_order_and_the_repeats_that_were_asked_for(animal: tuple[Animal, Path]) -> None:
    kind, path = animal
    wanted = [len(kind.numbers) - 1, 0, len(kind.numbers) // 2, 0, -1]
    assert [read_barcode(f) for f in open_video(path).batch(wanted)] == [kind.numbers[i] for i in wanted]


def test_times_ascend_and_the_count_is_that_of_the_frames(animal: tuple[Animal, Path]) -> None:
    kind, path = animal
    reader = open_video(path)
    assert len(reader) == len(reader.pts_s) == len(reader.names) == len(kind.numbers)
    assert reader.pts_s.dtype == np.float64
    assert (np.diff(reader.pts_s) > 0).all()
    assert reader.decoder in {"decord", "pyav"}
    assert reader.reason


def test_decord_and_pyav_agree_to_the_byte_on_constant_rate_h264(tmp_path: Path) -> None:
    pytest.importorskip("decord", reason="decord has no wheel for this platform")
    path = write_clip(tmp_path / "clip.mp4", 30, options={"g": "12", "bf": "2"})
    with VideoReader(path, decoder="decord") as one, VideoReader(path, decoder="pyav") as other:
        assert (one.decoder, other.decoder) == ("decord", "pyav")
        for index in range(len(one)):
            assert np.array_equal(one[index], other[index])


def test_the_barcode_reads_its_own_pictures_and_refuses_others() -> None:
    assert [read_barcode(barcode(n)) for n in (0, 1, 517, 1023)] == [0, 1, 517, 1023]
    assert read_barcode(np.full((96, 160, 3), 128, np.uint8)) is None
