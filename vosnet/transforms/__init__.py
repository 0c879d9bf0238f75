"""Geometry and pixels between the decoder and the network: crops, flips, similarity transforms, clips."""

from vosnet.transforms.clip import Clip, Crops, assemble_clip
from vosnet.transforms.crop import crop_frames, resize_short_side
from vosnet.transforms.draws import more_draws
from vosnet.transforms.normalize import IMAGENET_MEAN, IMAGENET_STD, normalize_images
from vosnet.transforms.similarity import (
    invert_similarity,
    nearest_index,
    random_similarity,
    similarity_theta,
    warp_images,
    warp_nearest,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Clip",
    "Crops",
    "assemble_clip",
    "crop_frames",
    "invert_similarity",
    "more_draws",
    "nearest_index",
    "normalize_images",
    "random_similarity",
    "resize_short_side",
    "similarity_theta",
    "warp_images",
    "warp_nearest",
]
