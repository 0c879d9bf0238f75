"""Generated clips: exact, deterministic, and hard in the ways that propagation must survive."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vosnet.errors import UsageError
from vosnet.synthetic import Scene, make_clip, write_davis

SEEDS = range(6)


def test_a_frame_is_a_pure_function_of_seed_and_index() -> None:
    frame, mask = Scene(3).render(17)
    scene = Scene(3)
    scene.render(5)
    again, mask_again = scene.render(17)
    assert np.array_equal(frame, again)
    assert np.array_equal(mask, mask_again)
    assert not np.array_equal(frame, Scene(4).render(17)[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_objects_start_visible_occlude_each_other_leave_and_come_back(seed: int) -> None:
    masks = make_clip(seed, num_frames=64).masks
    area = np.stack([(masks == label).sum((1, 2)) for label in (1, 2, 3)])
    assert (area[:, 0] > 300).all()
    assert area[1].min() < 0.6 * np.median(area[1]), "object 2 is never hidden by object 1"
    gone = np.flatnonzero(area[2] == 0)
    assert gone.size > 0, "object 3 never leaves"
    assert area[2][gone[-1] :].max() > 300, "object 3 never comes back"


def test_the_mask_is_where_the_object_is_drawn() -> None:
    with_object, mask = Scene(1, num_objects=1, num_distractors=0).render(0)
    inside = with_object[mask == 1].astype(float)
    outside = with_object[mask == 0].astype(float)
    assert 0.005 < (mask == 1).mean() < 0.3
    assert np.abs(inside.mean(0) - outside.mean(0)).max() > 5


def test_many_objects_keep_their_ids() -> None:
    _, mask = Scene(0, size=(240, 432), num_objects=24).render(0)
    assert len(set(np.unique(mask)) - {0}) >= 20


def test_out_of_range_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"size \(8, 8\)"):
        Scene(0, size=(8, 8))


def test_a_davis_layout_holds_the_same_masks(tmp_path: Path) -> None:
    clip = make_clip(0, num_frames=3, size=(64, 96))
    write_davis(tmp_path, {"blobs": clip})
    assert (tmp_path / "ImageSets/2017/val.txt").read_text() == "blobs\n"
    stored = np.stack(
        [np.asarray(Image.open(path)) for path in sorted((tmp_path / "Annotations/480p/blobs").iterdir())]
    )
    assert np.array_equal(stored, clip.masks)
    assert len(list((tmp_path / "JPEGImages/480p/blobs").iterdir())) == 3
