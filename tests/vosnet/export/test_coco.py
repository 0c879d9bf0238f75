"""COCO run lengths decode to the masks that went in."""

import numpy as np
import pytest

from vosnet.export.coco import CocoVideo

coco_mask = pytest.importorskip("pycocotools.mask")


def test_f19_three_hundred_objects_survive_the_round_trip() -> None:
    ids = np.arange(0, 301, dtype=np.uint16).repeat(4).reshape(-1, 28)[:43]
    video = CocoVideo("many", ["00000", "00001"], ids.shape)
    video.add(1, ids)
    document = video.document()
    decoded = np.zeros_like(ids)
    for annotation in document["annotations"]:
        assert annotation["segmentations"][0] is None
        decoded[coco_mask.decode(annotation["segmentations"][1]) == 1] = annotation["id"]
    assert len(document["annotations"]) == len(np.unique(ids)) - 1
    assert np.array_equal(decoded, ids)
