"""What a propagation to files is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vosnet.errors import UsageError

if TYPE_CHECKING:
    from vosnet.adaptation.settings import AdaptationSettings
    from vosnet.export.folder import Existing
    from vosnet.export.overlay import ColorScheme
    from vosnet.progress import ProgressMode
    from vosnet.video.reader import OnBadFrame
    from vosnet.video.selection import Direction

Format = Literal["palette", "binary", "coco-video"]


@dataclass(frozen=True)
class ExportOptions:
    """What is written beside the masks.

    Attributes:
        formats: "palette" (DAVIS PNG), "binary" (one 0/255 PNG per object), "coco-video" (YouTube-VIS JSON).
        overlay: write `overlay.mp4`.
        colors: "davis" or the color-blind safe "okabe-ito".
        opacity: of the object colors, 0 to 1.
        contour: draw outlines.
        progress: how progress is shown.
        save_every: frames between two savings of the tracker's state, from which a resumed call goes on.

    Raises:
        UsageError: an opacity outside 0..1 (E134).
    """

    formats: tuple[Format, ...] = ("palette",)
    overlay: bool = True
    colors: ColorScheme = "davis"
    opacity: float = 0.5
    contour: bool = True
    progress: ProgressMode = "auto"
    save_every: int = 50

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise UsageError("E134", f"--opacity must lie in 0..1, got {self.opacity}")


@dataclass(frozen=True)
class PropagateOptions:
    """One clip, its first masks, and how they travel.

    Attributes:
        video: video file, folder of frames, or one picture.
        masks: mask files by frame of the whole video; None is the first frame that is processed.
        out: result folder.
        start: first frame to process.
        end: end, exclusive; None is the end of the clip.
        stride: distance of neighboring frames.
        direction: "auto" is "both" if the first processed frame has no mask, else "forward".
        resize_mask: "nearest" fits masks of another size than the video; "never" refuses them.
        mask_from_jpeg: accept masks saved as JPEG.
        on_bad_frame: see `VideoReader`.
        decode_timeout_s: see `VideoReader`.
        checkpoint: run folder or weights file, "random", or None for the shipped weights.
        preset: inference protocol; None is the checkpoint's.
        switches: of the protocol.
        device: "auto", "cpu", "cuda" or "cuda:1".
        allow_degrade: see `Propagator`.
        adaptation: train a U-Net on the propagated masks; its masks are final.
        existing: what to do with an earlier result in `out`.
        export: what is written beside the masks.
    """

    video: Path
    masks: Mapping[int | None, Path]
    out: Path
    start: int = 0
    end: int | None = None
    stride: int = 1
    direction: Direction | Literal["auto"] = "auto"
    resize_mask: Literal["never", "nearest"] = "never"
    mask_from_jpeg: bool = False
    on_bad_frame: OnBadFrame = "hold"
    decode_timeout_s: float | None = None
    checkpoint: str | None = None
    preset: str | None = None
    switches: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    allow_degrade: bool = False
    adaptation: AdaptationSettings | None = None
    existing: Existing = "refuse"
    export: ExportOptions = field(default_factory=ExportOptions)
