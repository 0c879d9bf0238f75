"""Inference protocols: every switch in which published label propagations differ, and named presets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from vosnet.errors import UsageError, known_names_hint
from vosnet.matching import Neighborhood
from vosnet.memory import REFERENCES, ContextRule, References

SQRT_DIM: Final = "sqrt_dim"


@dataclass(frozen=True)
class Protocol:
    """How labels are propagated from frame to frame.

    Attributes:
        layer: the encoder's layer that is read, unless the checkpoint names one.
        shape: neighborhood of a query cell: "square" or "disc".
        radius: half-side of the square or radius of the disc, cells.
        strict: True keeps distances below `radius`, False also those equal to it.
        first_frame: "global" searches the whole reference frame, "local" only the neighborhood.
        context: which frames are read: "replicate", "clamp" and "queue" see `vosnet.memory.context_frames`,
            "mast" see `vosnet.memory.spaced_frames`.
        num_recent: recent frames besides the reference frame; 0 with context "mast".
        k: neighbors per query cell; None with readout "window".
        temperature: divides the dot products before the softmax; "sqrt_dim" is the square root of the number
            of feature channels.
        mask_down: mask to feature grid: "bilinear" (soft, of one-hot masks), "nearest" (cell centers) or
            "slice" (every output_stride-th pixel from the top left).
        down_align_corners: where "bilinear" puts the grid: corner pixels on corner cells, or half-pixel
            centers.
        mask_up: feature grid to pixels: "bilinear" or "nearest".
        up_align_corners: as `down_align_corners`, on the way up.
        min_max: stretch each object's map over the frame to 0..1 before the decision.
        memory_values: what later frames copy from: "soft", the answer's probabilities; "hard", the decided
            mask; "copied", the readout itself, even where `rounds` decode another answer from it.
        readout: "nearest": softmax over the k most similar cells of all neighborhoods; "window": over every
            cell of them.
        normalize: compare L2-normalized features, so that dot products are cosines.
        outside: "window" only: cells beyond the frame get no weight ("exclude"), or keep logit 0 and copy
            nothing ("zero").
        references: context "mast" only: frames read per query, 1, 3, 5 or "all". "all" keeps every frame: per
            frame, memory grows by its features (6.3 MiB for 64 channels at 480p and stride 4) and values, and
            time by one frame's readout.
        far_after: context "mast" with readout "window" only: a frame more than this many before the query is
            searched in a wider window first; None never.
        max_dilation: how much wider at most; see `dilation`.
        empty_objects: an annotated object that vanishes when downsampled to the feature grid is an error
            ("refuse"), or lost with a warning ("lose"), as benchmarks count it.
        short_side: resize frames to this shorter side, pixels; None keeps the size.
        multiple: make both sides multiples of this; 1 leaves them.
        rounding: "floor" or "up" to that multiple; the aspect ratio may change a little.
        decide_at: "source" decides each pixel of the source, "input" each pixel the network saw and then
            copies the nearest.
        std: standard deviations for the input, where they differ from the checkpoint's.
        rounds: passes of the readout through frame-mask encoder and mask decoder; 0 keeps the copied mask.
            More than 0 needs a checkpoint that holds these networks.
    """

    layer: str
    shape: Literal["square", "disc"]
    radius: int
    strict: bool
    first_frame: Literal["global", "local"]
    context: Literal[ContextRule, "mast"]
    num_recent: int
    k: int | None
    temperature: float | Literal["sqrt_dim"]
    mask_down: Literal["bilinear", "nearest", "slice"]
    down_align_corners: bool
    mask_up: Literal["bilinear", "nearest"]
    up_align_corners: bool
    min_max: bool
    memory_values: Literal["soft", "hard", "copied"]
    readout: Literal["nearest", "window"] = "nearest"
    normalize: bool = True
    outside: Literal["exclude", "zero"] = "exclude"
    references: References | None = None
    far_after: int | None = None
    max_dilation: int = 4
    empty_objects: Literal["refuse", "lose"] = "refuse"
    short_side: int | None = None
    multiple: int = 1
    rounding: Literal["floor", "up"] = "floor"
    decide_at: Literal["source", "input"] = "source"
    std: tuple[float, float, float] | None = None
    rounds: int = 0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError("E164", f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name, least in _WHOLE_NUMBERS.items():
            value = getattr(self, name)
            optional = name in {"k", "short_side", "far_after"}
            if not (value is None and optional) and (not isinstance(value, int) or value < least):
                raise UsageError("E164", f"{name} must be a whole number of at least {least}, got {value!r}")
        given: float | str = self.temperature
        if isinstance(given, str) and given != SQRT_DIM:
            raise UsageError("E164", f"temperature must be a number or {SQRT_DIM!r}, got {given!r}")
        if not isinstance(given, str) and not 0 < given < math.inf:
            raise UsageError("E164", f"temperature must be positive, got {given!r}")
        for wrong, code, message, hint in self._conflicts():
            if wrong:
                raise UsageError(code, message, hint)

    def _conflicts(self) -> Iterator[tuple[bool, str, str, str]]:
        """Switches that do not go together: whether they do not, the code, what is wrong and what to do."""
        message = "a disc is strict (distance < radius); no kernel searches a closed one"
        hint = "Use strict=True; radius + 1 also holds all of the closed disc."
        yield self.shape == "disc" and not self.strict, "E164", message, hint

        nearest, far = self.readout == "nearest", self.far_after is not None
        message = "readout 'nearest' needs k, the neighbors per query cell"
        yield nearest and self.k is None, "E170", message, ""
        message = "outside belongs to readout 'window': neighbors lie in the frame"
        yield nearest and self.outside != "exclude", "E170", message, ""
        message = f"readout 'window' weighs every cell, but k is {self.k}"
        yield not nearest and self.k is not None, "E170", message, "Use k=null, or readout=nearest."
        message = f"readout 'window' reads squares in every frame, got shape {self.shape!r}"
        message += f" and first_frame {self.first_frame!r}"
        hint = "Use shape=square strict=false first_frame=local, or readout=nearest."
        squares = self.shape == "square" and self.first_frame == "local"
        yield not nearest and not squares, "E170", message, hint

        mast = self.context == "mast"
        for name in ("references", "far_after"):
            message = f"{name} belongs to context 'mast', but context is {self.context!r}"
            hint = f"Use {name}=null, or num_recent to read fewer frames."
            yield not mast and getattr(self, name) is not None, "E171", message, hint
        message = f"context 'mast' needs references, one of {REFERENCES}, got {self.references!r}"
        fits = self.references in REFERENCES and not isinstance(self.references, bool)
        yield mast and not fits, "E171", message, ""
        message = f"context 'mast' takes references, not num_recent, but that is {self.num_recent}"
        yield mast and self.num_recent != 0, "E171", message, "Use num_recent=0 references=5."
        message = "far_after needs readout 'window': neighbors are searched once"
        yield far and nearest, "E171", message, "Use far_after=null, or readout=window."

    def dilation(self, gap: int) -> int:
        """How many times wider a frame `gap` frames before the query is searched first; 1 is not at all."""
        if self.far_after is None or gap <= self.far_after:
            return 1
        return min(self.max_dilation, gap // self.far_after + 1)

    def temperature_for(self, channels: int) -> float:
        """The number that divides dot products of features with `channels` channels."""
        return math.sqrt(channels) if isinstance(self.temperature, str) else self.temperature

    @property
    def neighborhood(self) -> Neighborhood:
        """The neighborhood in the kernels' terms, where a square holds its rim and a disc does not."""
        radius = self.radius - 1 if self.shape == "square" and self.strict else self.radius
        return Neighborhood(self.shape, radius, int(self.first_frame == "global"))


_CHOICES = {
    name: get_args(hint) for name, hint in get_type_hints(Protocol).items() if get_origin(hint) is Literal
}

_WHOLE_NUMBERS = {  # and the least of each
    "radius": 1, "k": 1, "multiple": 1, "short_side": 1, "far_after": 1, "max_dilation": 1, "num_recent": 0,
    "rounds": 0,
}  # fmt: skip

# Jabri et al. 2020, test_on_davis. The disc and the global first frame are in the code, not in the paper.
_CRW = Protocol(
    layer="layer3",
    shape="disc",
    radius=12,
    strict=True,
    first_frame="global",
    context="replicate",
    num_recent=20,
    k=10,
    temperature=0.05,
    mask_down="bilinear",
    down_align_corners=False,
    mask_up="bilinear",
    up_align_corners=False,
    min_max=False,
    memory_values="soft",
)

# Lai et al. 2020, the released code. Read at stride 4 by its own network; other encoders have their own
# stride, and the radius counts their cells: 12 cells are 48 pixels at stride 4 and 96 at stride 8.
# Differs: dot products are divided by the root of the channels, without which training does not converge on
# today's PyTorch (the authors divide by nothing); the labels of each far frame are sampled with its own
# offsets (in the authors' code with those of the last one).
# Sampled at the top left pixel of a cell but answered half a cell further, hard masks creep down and to the
# right a little with every frame, here as there; mask_down=nearest does not.
_MAST = dataclasses.replace(
    _CRW,
    layer="layer4",
    shape="square",
    strict=False,
    first_frame="local",
    context="mast",
    num_recent=0,
    references=5,
    far_after=15,
    readout="window",
    k=None,
    normalize=False,
    temperature=SQRT_DIM,
    outside="zero",
    mask_down="slice",
    memory_values="hard",
)

PRESETS: dict[str, Protocol] = {
    # Araslanov et al. 2021: CRW's propagation on layer4, corners aligned. The paper states a 25x25 square for
    # all frames and 20 context frames; the code that made the published numbers has the disc and 1 + 20.
    "dul": dataclasses.replace(_CRW, layer="layer4", down_align_corners=True, up_align_corners=True),
    "crw": _CRW,
    # Xu and Wang 2021 for ResNet-18; ResNet-50 has radius=18.
    "vfs": dataclasses.replace(
        _CRW,
        first_frame="local",
        context="clamp",
        temperature=0.07,
        mask_down="nearest",
        min_max=True,
        short_side=480,
    ),
    # Caron et al. 2021, eval_video_segmentation; 0.228 is its own constant.
    # Differs: exactly k neighbors are kept; the authors keep every value equal to the k-th.
    "dino": dataclasses.replace(
        _CRW,
        layer="layer4",
        shape="square",
        strict=False,
        first_frame="local",
        context="queue",
        num_recent=7,
        k=5,
        temperature=0.1,
        mask_down="nearest",
        min_max=True,
        short_side=480,
        multiple=64,
        decide_at="input",
        std=(0.228, 0.224, 0.225),
    ),
    "mast": _MAST,
    # Zhu et al. 2020: five references as MAST's and one affinity over all their windows of 25 x 25, say
    # the authors. Ours, as the paper leaves them open: the wider search of far frames, hard memory, zeros
    # beyond the frame and division by the root of the channels, all as in `mast`; masks are looked up at cell
    # centers, where `mask_up` puts them again.
    "memory_tracker": dataclasses.replace(_MAST, mask_down="nearest"),
    # Li et al. 2023: the first and the last 20 frames, three rounds; round 0 is the copied mask, which the
    # paper's table shows to run as fast as CRW. The paper states neither how cells are matched at test time
    # (here CRW's neighbors) nor which masks memory holds: here the copied ones, so that what the decoder gets
    # wrong in one frame is not copied on. For a decoder trained on exact masks "soft" is the better choice.
    # Differs: the authors' code keeps six frames and averages logits with the copied mask.
    "unified": dataclasses.replace(_CRW, layer="layer4", rounds=3, memory_values="copied"),
    # The plug-in of Li et al. 2023: the same rounds on the readouts of other protocols.
    "crw_decoded": dataclasses.replace(_CRW, rounds=3, memory_values="copied"),
    "mast_decoded": dataclasses.replace(_MAST, rounds=3),
}


def make_protocol(preset: str, **overrides: Any) -> Protocol:
    """The preset with some switches changed.

    Raises:
        UsageError: an unknown preset or switch, with the nearest known one, or a bad value (E164).
    """
    if preset not in PRESETS:
        raise UsageError("E164", f"preset {preset!r} is unknown", f"Known: {', '.join(PRESETS)}.")
    check_switches(overrides)
    return dataclasses.replace(PRESETS[preset], **overrides)


def check_switches(names: Iterable[str]) -> None:
    """Raise unless all are switches of a protocol (E164)."""
    known = [field.name for field in dataclasses.fields(Protocol)]
    for name in names:
        if name not in known:
            message = f"{name!r} is no switch of a propagation protocol"
            raise UsageError("E164", message, known_names_hint(name, known))
