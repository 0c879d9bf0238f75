"""Part of a clip gives the same frames forward, backward and at random, without decoding each many times."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vosnet.errors import UsageError
from vosnet.video import open_video
from vosnet.video.selection import FrameSelection


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(30):
        Image.fromarray(np.full((48, 64, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_every_order_gives_the_same_frames(folder: Path) -> None:
    selection = FrameSelection(open_video(folder), 3, 28, 2)
    expected = list(range(3, 28, 2))
    assert [int(frame[0, 0, 0]) for frame in selection] == expected
    assert [int(selection[i][0, 0, 0]) for i in reversed(range(len(selection)))] == expected[::-1]
    order = np.random.default_rng(0).permutation(len(selection))
    assert [int(selection[int(i)][0, 0, 0]) for i in order] == [expected[i] for i in order]
    assert [int(frame[0, 0, 0]) for frame in selection[2:5]] == expected[2:5]


def test_going_backward_decodes_each_frame_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selection = FrameSelection(open_video(folder))
    asked: list[int] = []
    batch = selection.reader.batch
    monkeypatch.setattr(selection.reader, "batch", lambda indices: (asked.extend(indices), batch(indices))[1])
    for place in reversed(range(len(selection))):
        selection[place]
    assert len(asked) <= len(selection)


@pytest.mark.parametrize(("start", "stop", "step"), [(5, 5, 1), (0, 31, 1), (-1, 4, 1), (0, 4, 0)])
def test_parts_outside_the_clip_are_refused(folder: Path, start: int, stop: int, step: int) -> None:
    with pytest.raises(UsageError, match="has 30 frames"):
        FrameSelection(open_video(folder), start, stop, step)
