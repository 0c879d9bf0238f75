"""Generated scenes: any frame and its exact mask, as a pure function of the seed."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vosnet.errors import UsageError
from vosnet.synthetic.textures import random_palette, random_texture

_TEXTURE_SIZE = 256


@dataclass(frozen=True)
class SyntheticClip:
    """Frames with exact masks.

    Attributes:
        frames: RGB, [T, H, W, 3] uint8.
        masks: object ids, [T, H, W] uint8, 0 is background.
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.uint8]


@dataclass(frozen=True)
class _Wave:
    """`center + amplitude * sin(2 pi (t / period + phase))`."""

    center: float
    amplitude: float
    period: float
    phase: float

    def __call__(self, t: float) -> float:
        return self.center + self.amplitude * float(np.sin(2 * np.pi * (t / self.period + self.phase)))


@dataclass(frozen=True)
class _Body:
    """A deforming textured blob; with `label` 0 it is a distractor, part of the background."""

    label: int
    texture: NDArray[np.float32]
    x: _Wave
    y: _Wave
    radius: _Wave
    angle: _Wave
    lobes: tuple[_Wave, ...]

    def outline(self, direction: NDArray[np.float32], t: float) -> NDArray[np.float32]:
        """Distance of the outline from the center over the radius, for directions in radians."""
        relative = np.ones_like(direction)
        for order, lobe in enumerate(self.lobes, start=2):
            relative += np.float32(lobe(t)) * np.cos(order * direction + np.float32(2 * np.pi * lobe.phase))
        return relative


class Scene:
    """Several textured objects, distractors of similar color, and a moving camera.

    Object 1 passes in front of object 2 and hides it for a while; object 3 leaves the frame and returns;
    further objects wander. All objects are visible in frame 0. Distractors share an object's palette, so that
    color alone does not tell them apart. Motion is periodic, so a scene can have any length.

    Args:
        seed: determines the scene.
        size: height and width in pixels, at least 48 each.
        num_objects: labeled objects, 1 to 254.
        num_distractors: unlabeled objects.

    Raises:
        UsageError: a size or a count is out of range.
    """

    def __init__(
        self, seed: int, *, size: tuple[int, int] = (240, 432), num_objects: int = 3, num_distractors: int = 2
    ) -> None:
        if min(size) < 48 or not 1 <= num_objects <= 254 or num_distractors < 0:
            raise UsageError(
                "E116",
                f"a scene needs sides >= 48 and 1 to 254 objects, got size {size}, {num_objects} objects, "
                f"{num_distractors} distractors",
            )
        self.size = size
        rng = np.random.default_rng(seed)
        self._background = random_texture(rng, 2 * _TEXTURE_SIZE, random_palette(rng, 5))
        self._bodies = _make_bodies(rng, size, num_objects, num_distractors)
        self._pan = (_wave(rng, 0, 0.10 * size[1], 90, 160), _wave(rng, 0, 0.10 * size[0], 90, 160))
        self._zoom = _wave(rng, 1.0, 0.08, 80, 140)
        self._light = _wave(rng, 1.0, 0.15, 50, 90)
        self._noise_seed = int(rng.integers(2**31))

    def render(self, t: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Frame `t`, [H, W, 3] uint8, and its mask of object ids, [H, W] uint8."""
        image = self._render_background(t)
        mask = np.zeros(self.size, np.uint8)
        for body in self._bodies:
            self._draw(body, t, image, mask)
        noise = np.random.default_rng((self._noise_seed, t)).standard_normal(image.shape, np.float32)
        return np.clip(image * self._light(t) + 3 * noise, 0, 255).astype(np.uint8), mask

    def _render_background(self, t: int) -> NDArray[np.float32]:
        h, w = self.size
        scale = 2.0 * _TEXTURE_SIZE / (1.5 * max(h, w)) / self._zoom(t)
        shift_x = _TEXTURE_SIZE - scale * (w / 2 + self._pan[0](t))
        shift_y = _TEXTURE_SIZE - scale * (h / 2 + self._pan[1](t))
        to_texture = np.array([[scale, 0, shift_x], [0, scale, shift_y]], np.float32)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = cv2.warpAffine(
            self._background, to_texture, (w, h), flags=flags, borderMode=cv2.BORDER_REFLECT
        )
        return np.asarray(image, np.float32)

    def _draw(self, body: _Body, t: int, image: NDArray[np.float32], mask: NDArray[np.uint8]) -> None:
        h, w = self.size
        zoom = self._zoom(t)
        x = w / 2 + (body.x(t) - w / 2 - self._pan[0](t)) * zoom
        y = h / 2 + (body.y(t) - h / 2 - self._pan[1](t)) * zoom
        radius = body.radius(t) * zoom
        reach = radius * (1.0 + sum(abs(lobe.center) + abs(lobe.amplitude) for lobe in body.lobes)) + 2
        left, right = max(0, int(x - reach)), min(w, int(x + reach) + 1)
        top, bottom = max(0, int(y - reach)), min(h, int(y + reach) + 1)
        if left >= right or top >= bottom:
            return
        dx = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(x)
        dy = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y)
        distance, direction = np.hypot(dx, dy), np.arctan2(dy, dx) - np.float32(body.angle(t))
        alpha = np.clip(body.outline(direction, t) * np.float32(radius) - distance + 0.5, 0, 1)
        along = distance / np.float32(radius) * (_TEXTURE_SIZE * 0.33)
        color = cv2.remap(
            body.texture,
            np.cos(direction) * along + _TEXTURE_SIZE / 2,
            np.sin(direction) * along + _TEXTURE_SIZE / 2,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )
        region = image[top:bottom, left:right]
        region += alpha[..., None] * (color - region)
        mask[top:bottom, left:right][alpha > 0.5] = body.label


def make_clip(
    seed: int,
    *,
    num_frames: int = 48,
    size: tuple[int, int] = (240, 432),
    num_objects: int = 3,
    num_distractors: int = 2,
) -> SyntheticClip:
    """Render the first `num_frames` frames of `Scene(seed, ...)`."""
    scene = Scene(seed, size=size, num_objects=num_objects, num_distractors=num_distractors)
    frames, masks = zip(*(scene.render(t) for t in range(num_frames)))
    return SyntheticClip(np.stack(frames), np.stack(masks))


def _wave(
    rng: np.random.Generator, center: float, amplitude: float, shortest: float, longest: float
) -> _Wave:
    return _Wave(center, amplitude, rng.uniform(shortest, longest), rng.uniform())


def _make_bodies(
    rng: np.random.Generator, size: tuple[int, int], num_objects: int, num_distractors: int
) -> list[_Body]:
    """Bodies from back to front: distractors, then objects with the highest id first."""
    h, w = size
    palettes = [random_palette(rng) for _ in range(num_objects)]
    columns = (np.arange(num_objects) + 0.5) / num_objects  # apart in frame 0, so that all are visible
    radius = min(0.19 * h, 0.36 * w / max(num_objects, 2))
    bodies = []
    for i in range(num_objects):
        start = columns[i] * w
        x = _wave(rng, start, 0.25 * w, 60, 90)
        if i < 2:  # the first two swing in opposite phase and meet half-way
            other = columns[1 - i] * w if num_objects > 1 else start
            x = _Wave((start + other) / 2, (start - other) / 2, 64, 0.25)
        elif i == 2:  # leaves through the nearest side and returns
            x = _Wave(start - 0.02 * w, 0.55 * w, 84, 0.0)
        else:
            x = _Wave(start - x.amplitude * np.sin(2 * np.pi * x.phase), x.amplitude, x.period, x.phase)
        y = _wave(rng, h * (0.5 if i < 2 else rng.uniform(0.3, 0.7)), 0.05 * h, 30, 60)
        bodies.append(_make_body(rng, i + 1, palettes[i], x, y, radius * rng.uniform(0.85, 1.1)))
    distractors = []
    for i in range(num_distractors):
        x = _wave(rng, rng.uniform(0.1, 0.9) * w, 0.25 * w, 70, 120)
        y = _wave(rng, rng.choice([0.15, 0.85]) * h, 0.08 * h, 40, 70)
        palette = np.clip(palettes[i % num_objects] + rng.uniform(-50, 50, 3), 0, 255).astype(np.float32)
        distractors.append(_make_body(rng, 0, palette, x, y, 0.8 * radius))
    return distractors + bodies[::-1]


def _make_body(
    rng: np.random.Generator, label: int, palette: NDArray[np.float32], x: _Wave, y: _Wave, radius: float
) -> _Body:
    lobes = tuple(_wave(rng, rng.uniform(-0.12, 0.12), 0.08, 25, 50) for _ in range(3))
    texture = random_texture(rng, _TEXTURE_SIZE, palette, (2, 4, 8))
    return _Body(
        label, texture, x, y, _wave(rng, radius, 0.18 * radius, 40, 80), _wave(rng, 0, 0.6, 50, 90), lobes
    )
