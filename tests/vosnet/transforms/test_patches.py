"""Random crops of patches, against a plain loop and against coordinates."""

import math

import torch

from vosnet.transforms import DRAWS_PER_BOX, cut_patches, patches_per_side, random_boxes

SCALE, RATIO = (0.7, 0.9), (0.75, 4 / 3)


def box_by_loop(draws: list[float]) -> list[float]:
    """torchvision's rejection loop, one box."""
    for attempt in range(10):
        area = SCALE[0] + (SCALE[1] - SCALE[0]) * draws[attempt]
        low, high = math.log(RATIO[0]), math.log(RATIO[1])
        aspect = math.exp(low + (high - low) * draws[10 + attempt])
        width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if width <= 1 and height <= 1:
            return [draws[20] * (1 - width), draws[21] * (1 - height), width, height]
    return [0.0, 0.0, 1.0, 1.0]


def test_boxes_are_those_of_the_rejection_loop() -> None:
    draws = torch.rand(300, DRAWS_PER_BOX, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws[7, :10], draws[7, 10:20] = 0.99, 0.0  # too tall, ten times: the whole square
    boxes = random_boxes(draws, SCALE, RATIO)
    exact = torch.tensor([box_by_loop(row) for row in draws.tolist()], dtype=torch.float64)
    torch.testing.assert_close(boxes, exact)
    assert boxes[7].tolist() == [0, 0, 1, 1]
    assert float((boxes[:, :2] + boxes[:, 2:]).max()) <= 1
    assert len({tuple(box) for box in boxes.tolist()}) == 300


def test_without_cropping_patches_are_the_windows_of_the_frame_bit_for_bit() -> None:
    frames = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1)).float()
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0])
    got = cut_patches(frames, whole.expand(2, 4), whole.expand(2, 9, 4), patch_size=16, patch_stride=8)
    windows = frames.unfold(2, 16, 8).unfold(3, 16, 8)  # [2, 3, 3, 3, 16, 16]
    assert torch.equal(got, windows.flatten(2, 3).transpose(1, 2))


def test_a_patch_shows_the_part_of_the_part_it_was_asked_for() -> None:
    side, size, stride = 32, 16, 8
    coordinate = torch.arange(side, dtype=torch.float64) + 0.5
    y, x = torch.meshgrid(coordinate, coordinate, indexing="ij")
    frame = torch.stack([x, y, x])[None]
    frame_box = torch.tensor([[0.1, 0.05, 0.8, 0.9]], dtype=torch.float64)  # left, top, width, height
    patch_boxes = torch.tensor([0.2, 0.1, 0.7, 0.8], dtype=torch.float64).expand(1, 9, 4)
    got = cut_patches(frame, frame_box, patch_boxes, patch_size=size, patch_stride=stride)[0]
    inside = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    for row in range(3):
        for column in range(3):
            in_crop_x = (column * stride + size * (0.2 + 0.7 * inside)) / side
            in_crop_y = (row * stride + size * (0.1 + 0.8 * inside)) / side
            patch = got[row * 3 + column]
            torch.testing.assert_close(patch[0], (side * (0.1 + 0.8 * in_crop_x)).expand(size, size))
            torch.testing.assert_close(
                patch[1], (side * (0.05 + 0.9 * in_crop_y))[:, None].expand(size, size)
            )


def test_the_papers_frame_has_49_patches() -> None:
    assert patches_per_side(256, 64, 32) ** 2 == 49
    assert patches_per_side(63, 64, 32) == 0
