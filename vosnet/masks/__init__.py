"""First-frame masks and results: label maps in and out of image files, always through Pillow.

OpenCV turns palette indices into colors without a word (ids 1, 2 become grey 38, 75): it never reads a mask.
"""

from vosnet.masks.labels import check_size, fit_mask, object_ids, one_hot, summarize_mask, with_annotation
from vosnet.masks.palette import DAVIS_PALETTE, write_mask
from vosnet.masks.reading import MAX_PIXELS, MaskFile, read_label_map, read_mask

__all__ = [
    "DAVIS_PALETTE",
    "MAX_PIXELS",
    "MaskFile",
    "check_size",
    "fit_mask",
    "object_ids",
    "one_hot",
    "read_label_map",
    "read_mask",
    "summarize_mask",
    "with_annotation",
    "write_mask",
]
