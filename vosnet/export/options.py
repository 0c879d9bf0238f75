"""What a propagation to files is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vosnet.errors import UsageError
from vosnet.options import option, switches
from vosnet.progress import ProgressMode

if TYPE_CHECKING:
    from vosnet.adaptation.settings import AdaptationSettings
    from vosnet.export.folder import Existing
    from vosnet.video.reader import OnBadFrame
    from vosnet.video.selection import Direction

ColorScheme = Literal["davis", "okabe-ito"]
Format = Literal["palette", "binary", "coco-video"]


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """How masks are made, and what happens to an earlier result.

    Attributes:
        adaptation: train a U-Net on the masks of each clip, whose answers are final.
        existing: what to do with an earlier result in the same folder.
    """

    preset: str | None = option(
        "inference protocol (default: the one its recipe gave the checkpoint, else dul; shipped: dul)",
        group="method",
    )
    switches: Mapping[str, Any] = switches("override a protocol switch", group="method", flag="--set")
    device: str = option("auto, cpu, cuda, cuda:1", "auto", group="method")
    adaptation: AdaptationSettings | None = None
    existing: Existing = "refuse"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is written beside the masks.

    Attributes:
        contour: draw the outlines of objects in the overlay.

    Raises:
        UsageError: an opacity outside 0..1 (E134).
    """

    formats: tuple[Format, ...] = option(
        "palette: PNG as DAVIS; binary: 0/255 PNG per object; coco-video: run lengths as YouTube-VIS",
        ("palette",),
        group="output",
        flag="--format",
        convert=tuple,
        nargs="+",
        choices=get_args(Format),
    )
    overlay: bool = option("write no overlay video", True, group="output", flag="--no-overlay")
    colors: ColorScheme = option(
        "of the overlay; okabe-ito suits color-blind eyes",
        "davis",
        group="output",
        choices=get_args(ColorScheme),
    )
    opacity: float = option("of the overlay, 0 to 1", 0.5, group="output", type=float)
    contour: bool = True
    progress: ProgressMode = option(
        "how progress is shown", "auto", group="output", choices=get_args(ProgressMode)
    )
    save_every: int = option(
        "frames between saved states, from which --resume goes on", 50, group="output", type=int
    )

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise UsageError("E134", f"--opacity must lie in 0..1, got {self.opacity}")


@dataclass(frozen=True, kw_only=True)
class PropagateOptions(MethodOptions):
    """One clip, its first masks, and how they travel.

    Attributes:
        video: video file, folder of frames, or one picture.
        masks: mask files by frame of the whole video; None is the first frame that is processed.
        out: result folder.
        export: what is written beside the masks.
    """

    video: Path
    masks: Mapping[int | None, Path]
    out: Path
    start: int = option("first frame to process", 0, group="input", type=int)
    end: int | None = option("end, exclusive (default: the end of the clip)", group="input", type=int)
    stride: int = option("process every STRIDE-th frame", 1, group="input", type=int)
    direction: Direction | Literal["auto"] = option(
        "from the annotated frames; auto: both if the first frame has no mask, else forward",
        "auto",
        group="input",
        choices=["auto", "forward", "backward", "both"],
    )
    resize_mask: Literal["never", "nearest"] = option(
        "for masks of another size than the video", "never", group="input", choices=["never", "nearest"]
    )
    mask_from_jpeg: bool = option("accept masks saved as JPEG", False, group="input")
    on_bad_frame: OnBadFrame = option(
        "hold the picture before it, or stop", "hold", group="input", choices=["hold", "stop"]
    )
    decode_timeout_s: float | None = option(
        "give up on a frame after S seconds",
        group="input",
        flag="--decode-timeout",
        type=float,
        metavar="S",
    )
    checkpoint: str | None = option(
        "run folder or weights file, or 'random' (default: shipped weights)", group="method"
    )
    allow_degrade: bool = option("when memory is short, keep fewer frames", False, group="method")
    export: ExportOptions = field(default_factory=ExportOptions)
