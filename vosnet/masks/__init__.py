"""Label maps in image files: reading first-frame masks, writing results.

Always through Pillow: OpenCV silently turns palette indices into colors (ids 1, 2 become gray 38, 75).
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
