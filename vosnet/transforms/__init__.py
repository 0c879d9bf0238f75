"""From decoded frames to network inputs: crops, warps, colors and training clips."""

from vosnet.transforms.clip import Clip, Crops, Cut, assemble_clip
from vosnet.transforms.crop import crop_frames, resize_short_side
from vosnet.transforms.draws import more_draws
from vosnet.transforms.lab import COLOR_SPACES, ColorSpace, encoder_input, rgb_to_lab, scaled_lab
from vosnet.transforms.normalize import IMAGENET_MEAN, IMAGENET_STD, normalize_images
from vosnet.transforms.patches import DRAWS_PER_BOX, cut_patches, patches_per_side, random_boxes
from vosnet.transforms.similarity import (
    invert_similarity,
    nearest_index,
    random_similarity,
    similarity_theta,
    warp_images,
    warp_nearest,
)

__all__ = [
    "COLOR_SPACES",
    "DRAWS_PER_BOX",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Clip",
    "ColorSpace",
    "Crops",
    "Cut",
    "assemble_clip",
    "crop_frames",
    "encoder_input",
    "cut_patches",
    "invert_similarity",
    "more_draws",
    "nearest_index",
    "normalize_images",
    "patches_per_side",
    "random_boxes",
    "random_similarity",
    "resize_short_side",
    "rgb_to_lab",
    "scaled_lab",
    "similarity_theta",
    "warp_images",
    "warp_nearest",
]
