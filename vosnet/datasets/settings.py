"""How training clips are cut: the keys of a recipe's `data` section beside `sources`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vosnet.errors import SettingError

Order = Literal["permuted", "kept", "paired"]
StillMotion = Literal["jitter", "homography"]


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How clips are cut from videos; the defaults are those of Araslanov et al. 2021 on YouTube-VOS.

    Args:
        clip_len: T, frames per clip.
        frame_gap: largest distance of neighboring frames of a clip, counted after `frame_step`.
        frame_step: only every frame_step-th raw frame is used.
        order: "permuted", "kept" or "paired"; see `sample_frames`. Stills make no "paired" clips.
        distant_gap: for "paired": how far the frames after the pair lie from frame 0, at least and at most.
        gap_choices: gaps of which each clip draws one instead of `frame_gap`; see `sample_gap`.
        gap_weights: how often each of them is drawn; none: all alike.
        crop_size: side of the frames the network sees, pixels.
        short_side: half-open range of the shorter side the frame is resized to before the crop.
        random_crop: a random position, or else the center.
        flip_probability: how often a whole clip is mirrored, and how often the regularizing view is.
        zoom: range of the part of the frame that the regularizing view shows.
        still_motion: how a still becomes a clip: "jitter" moves and shrinks the crop of each frame by itself;
            "homography" sees the still through a homography that changes smoothly over the clip.
        still_jitter: how far either moves, of the crop's side; see `sample_boxes` and `corner_path`.
        decode_short_side: frames are first scaled down to this shorter side, pixels; None: not at all.
        cache_mb: memory for decoded frames, in units of 1,000,000 bytes, over all threads of this process.

    Raises:
        SettingError: a value is out of range or does not fit the others.
    """

    clip_len: int = 5
    frame_gap: int = 2
    frame_step: int = 1
    order: Order = "permuted"
    distant_gap: tuple[int, int] = (5, 15)
    gap_choices: tuple[int, ...] = ()
    gap_weights: tuple[float, ...] = ()
    crop_size: int = 256
    short_side: tuple[int, int] = (256, 320)
    random_crop: bool = True
    flip_probability: float = 0.5
    zoom: tuple[float, float] = (0.5, 1.0)
    still_motion: StillMotion = "jitter"
    still_jitter: float = 0.15
    decode_short_side: int | None = None
    cache_mb: int = 0

    def __post_init__(self) -> None:
        least = {"clip_len": 2, "frame_gap": 1, "frame_step": 1, "crop_size": 1}
        for key, low in least.items():
            if getattr(self, key) < low:
                raise SettingError(key, f"must be at least {low}, got {getattr(self, key)}")
        if not self.crop_size <= self.short_side[0] < self.short_side[1]:
            message = f"must be a half-open range from crop_size ({self.crop_size}) up, got {self.short_side}"
            raise SettingError("short_side", message)
        if not 0 < self.zoom[0] <= self.zoom[1] <= 1:
            raise SettingError("zoom", f"must be 0 < low <= high <= 1, got {self.zoom}")
        choices, weights = self.gap_choices, self.gap_weights
        if any(choice < 1 for choice in choices) or (choices and self.order == "paired"):
            message = f"must be whole numbers from 1 for clips that are not paired, got {choices}"
            raise SettingError("gap_choices", message)
        if weights and (len(weights) != len(choices) or not all(weight > 0 for weight in weights)):
            message = f"must be one positive number per gap_choices {choices}, got {weights}"
            raise SettingError("gap_weights", message)
        low, high = self.distant_gap
        if self.order == "paired" and not (self.frame_gap < low <= high - self.num_distant + 1):
            raise SettingError(
                "distant_gap",
                f"must begin above frame_gap ({self.frame_gap}) and hold the {self.num_distant} frames after "
                f"the pair, got {self.distant_gap}",
            )

    @property
    def num_distant(self) -> int:
        """Frames of a "paired" clip after the pair."""
        return self.clip_len - 2

    @property
    def frames_needed(self) -> int:
        """The fewest frames a video must have for a clip; see `sample_frames`."""
        if self.order != "paired":
            return self.clip_len
        return self.frame_gap + 1 if self.num_distant == 0 else self.distant_gap[0] + self.num_distant
