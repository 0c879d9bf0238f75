"""Crops, normalization and the clip an objective gets."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from vosnet.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Crops,
    Cut,
    assemble_clip,
    crop_frames,
    normalize_images,
    resize_short_side,
    similarity_theta,
)


def smooth_frames(T: int, H: int, W: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (T, 8, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((W, H), Image.Resampling.BICUBIC)) for c in coarse])


def test_a_crop_of_the_right_size_copies_pixels() -> None:
    frames = smooth_frames(2, 40, 60)
    crops = crop_frames(frames, torch.tensor([[3, 5, 16], [0, 44, 16]]), 16)
    assert np.array_equal(crops[0].numpy(), frames[0, 3:19, 5:21])
    assert np.array_equal(crops[1].numpy(), frames[1, 0:16, 44:60])


def test_a_flipped_crop_is_the_mirror_image() -> None:
    frames, boxes = smooth_frames(1, 40, 60), torch.tensor([[4, 6, 30]])
    plain, flipped = crop_frames(frames, boxes, 16), crop_frames(frames, boxes, 16, flip=True)
    assert torch.equal(flipped, plain.flip(2))


def test_cropping_first_gives_the_pixels_of_resizing_first() -> None:
    frames = smooth_frames(1, 96, 144)
    crop = crop_frames(frames, torch.tensor([[0, 24, 96]]), 32)[0].numpy().astype(int)
    resized = np.asarray(Image.fromarray(frames[0]).resize((48, 32), Image.Resampling.BILINEAR)).astype(int)
    inner = np.abs(crop - resized[:, 8:40])[2:-2, 2:-2]
    assert inner.max() <= 2  # two roundings to whole numbers


def test_the_short_side_shrinks_and_never_grows() -> None:
    frame = smooth_frames(1, 60, 101)[0]
    assert resize_short_side(frame, 30).shape == (30, 50, 3)
    assert resize_short_side(frame.transpose(1, 0, 2), 30).shape == (50, 30, 3)
    assert resize_short_side(frame, 61) is frame


def test_normalization_has_imagenets_mean_and_deviation_and_keeps_the_layout() -> None:
    mean = torch.tensor(IMAGENET_MEAN).mul(255).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    images = mean.contiguous(memory_format=torch.channels_last)
    normalized = normalize_images(images)
    torch.testing.assert_close(normalized, torch.zeros_like(images), rtol=0, atol=1e-5)
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    one_more = normalize_images(images + torch.tensor(IMAGENET_STD).mul(255).view(1, 3, 1, 1))
    torch.testing.assert_close(one_more, torch.ones_like(images), rtol=0, atol=1e-5)


def test_the_regularizing_view_is_the_main_view_through_theta() -> None:
    frames = torch.from_numpy(smooth_frames(6, 32, 32)).view(2, 3, 32, 32, 3)
    flip = torch.tensor([True, False])
    theta = similarity_theta(torch.ones(2), torch.zeros(2), torch.zeros(2), flip)
    clip = assemble_clip(Crops(frames, theta, torch.rand(2, 4), torch.arange(2), ("a", "b")))
    assert clip.frames.shape == (2, 3, 3, 32, 32)
    torch.testing.assert_close(clip.view[0], clip.frames[0].flip(-1), rtol=0, atol=1e-4)
    torch.testing.assert_close(clip.view[1], clip.frames[1], rtol=0, atol=1e-4)
    second = clip.part(1, 2)
    assert len(second) == 1
    assert second.names == ("b",)
    assert torch.equal(second.to("cpu").frames, clip.frames[1:])


def test_a_part_of_a_batch_keeps_every_field_of_its_samples() -> None:
    numbers = torch.arange(3)
    cut = Cut(
        frame_ids=10 * numbers[:, None] + torch.arange(2),
        boxes=100 * numbers[:, None, None] + torch.arange(6).view(2, 3),
        flip=torch.tensor([True, False, True]),
        size=1000 * (numbers[:, None] + torch.tensor([1, 2])),
    )
    frames = torch.zeros(3, 2, 8, 8, 3, dtype=torch.uint8)
    theta = similarity_theta(torch.ones(3), numbers / 10, torch.zeros(3), torch.zeros(3, dtype=torch.bool))
    crops = Crops(frames, theta, torch.rand(3, 4), numbers + 5, ("a", "b", "c"), cut=cut)
    clip = assemble_clip(crops)
    part = clip.part(1, 3)
    assert part.names == ("b", "c")
    for name in ("frames", "view", "theta", "draws", "ids"):
        assert torch.equal(getattr(part, name), getattr(clip, name)[1:]), name
    assert part.cut is not None
    for name in ("frame_ids", "boxes", "flip", "size"):
        assert torch.equal(getattr(part.cut, name), getattr(cut, name)[1:]), name
