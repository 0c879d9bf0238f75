"""The sections of a recipe: every key, its type, its range and its default. Frozen once validated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from vosnet.models.resnet import Arch, OutputStride, Padding
from vosnet.propagation.protocol import PRESETS
from vosnet.transforms import ColorSpace


def tuple_from_list(value: Any) -> Any:
    """A YAML list as a tuple; YAML has no tuples."""
    return tuple(value) if isinstance(value, list) else value


def known_preset(name: str) -> str:
    """`name`, if there is such a preset."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; known are {', '.join(PRESETS)}")
    return name


Preset = Annotated[str, AfterValidator(known_preset)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of a recipe: unknown keys, wrong types, NaN and infinity are errors; values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def require_one(section: Section, *names: str) -> None:
    """Check that exactly one of three keys is given."""
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise ValueError(f"give exactly one of {', '.join(names[:-1])} and {names[-1]}, found {found}")


class EncoderSection(Section):
    """The network that is trained and kept; `layer` is torchvision's name of its last stage.

    `test_layer` is the stage to read at test time when that is an earlier one: checkpoints say it.
    """

    arch: Arch = "resnet18"
    layer: Literal["layer2", "layer3", "layer4"] = "layer4"
    output_stride: OutputStride = 8
    padding: Padding = "zeros"
    color_space: ColorSpace = "rgb"
    test_layer: Literal["layer2", "layer3", "layer4"] | None = None

    @model_validator(mode="after")
    def _has_the_test_layer(self) -> EncoderSection:
        if self.test_layer is not None and self.test_layer > self.layer:
            raise ValueError(f"test_layer {self.test_layer} lies after layer {self.layer}")
        return self


class OptimizerSection(Section):
    """The optimizer and its parameter groups: weights, biases, weights of normalization layers."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat
    betas: Annotated[tuple[Fraction, Fraction], BeforeValidator(tuple_from_list)] = (0.9, 0.999)
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 0.0
    bias_lr_factor: PositiveFloat = 1.0
    decay_bias: bool = False
    decay_norm: bool = True


class ScheduleSection(Section):
    """How long to train, by exactly one of epochs, steps or minutes, and how the learning rate falls.

    `cosine` falls over the whole length, whatever its unit, to `final_factor` of `lr`; `step` multiplies by
    `gamma` every `step_epochs`, `milestones` at each of the epochs named; `warmup_steps` rise linearly from
    zero before any.
    """

    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    minutes: PositiveFloat | None = None
    decay: Literal["constant", "step", "milestones", "cosine"] = "constant"
    step_epochs: PositiveInt | None = None
    milestones: Annotated[tuple[PositiveInt, ...], BeforeValidator(tuple_from_list)] = ()
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    final_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_steps: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_length(self) -> ScheduleSection:
        require_one(self, "epochs", "steps", "minutes")
        if self.decay == "step" and self.step_epochs is None:
            raise ValueError("decay: step needs step_epochs, the epochs between two steps")
        if self.decay != "step" and self.step_epochs is not None:
            raise ValueError(f"step_epochs belongs to decay: step, but decay is {self.decay}")
        if (self.decay == "milestones") != bool(self.milestones):
            raise ValueError("decay: milestones and milestones, a list of epochs, belong together")
        return self


class TrainingSection(Section):
    """How a step is computed. `batch_size` counts the clips of one optimizer step over all ranks."""

    batch_size: PositiveInt
    accumulate: PositiveInt = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    compile: bool = False
    sync_batchnorm: bool = False
    clip_grad_norm: PositiveFloat | None = None
    ema_decay: Fraction | None = None
    workers: NonNegativeInt = 1
    prefetch: PositiveInt = 3
    save_minutes: PositiveFloat = 10.0
    log_steps: PositiveInt = 20
    bad_steps_in_a_row: PositiveInt = 10

    @model_validator(mode="after")
    def _divides(self) -> TrainingSection:
        if self.batch_size % self.accumulate:
            message = f"batch_size ({self.batch_size}) must be a multiple of accumulate ({self.accumulate})"
            raise ValueError(message)
        return self


class ValidationSection(Section):
    """J&F on named sequences of a DAVIS root while training; which checkpoint is kept as `best`."""

    root: str
    split: str | None = None
    sequences: Annotated[tuple[str, ...], BeforeValidator(tuple_from_list)] = ()
    preset: Preset | None = None  # None: the recipe's own
    resolution: str = "480p"
    every_epochs: PositiveInt | None = None
    every_steps: PositiveInt | None = None
    every_minutes: PositiveFloat | None = None
    optional: bool = True

    @model_validator(mode="after")
    def _one_interval(self) -> ValidationSection:
        require_one(self, "every_epochs", "every_steps", "every_minutes")
        if (self.split is None) == (not self.sequences):
            raise ValueError("give either split or sequences")
        return self


class PhaseOptimizer(Section):
    """What a phase may change of the optimizer."""

    lr: PositiveFloat | None = None


class PhaseTraining(Section):
    """What a phase may change of the computation of a step."""

    batch_size: PositiveInt | None = None
    accumulate: PositiveInt | None = None


class PhaseSection(Section):
    """A part of the run with settings of its own; what it does not name is the recipe's.

    An objective of another name starts from that objective's defaults, and a length (epochs, steps, minutes)
    replaces the recipe's. Networks go over from phase to phase; the optimizer's state does when
    `optimizer_state` is "kept".
    """

    name: str
    objective: dict[str, Any] = {}
    data: dict[str, Any] = {}
    optimizer: PhaseOptimizer = PhaseOptimizer()
    schedule: dict[str, Any] = {}
    training: PhaseTraining = PhaseTraining()
    optimizer_state: Literal["fresh", "kept"] = "fresh"


class Recipe(Section):
    """Everything that decides a training run, and the `preset` that its weights are propagated with.

    The keys of `objective` and `data` are the fields of the settings they describe; see
    `vosnet.recipe.sections`, which checks them.
    """

    version: Literal[2] = 2
    title: str = ""
    seed: NonNegativeInt = 0
    deterministic: bool = False
    preset: Preset = "dul"
    encoder: EncoderSection = EncoderSection()
    objective: dict[str, Any]
    data: dict[str, Any]
    optimizer: OptimizerSection
    schedule: ScheduleSection
    training: TrainingSection
    validation: ValidationSection | None = None
    phases: Annotated[tuple[PhaseSection, ...], BeforeValidator(tuple_from_list)] = ()

    @model_validator(mode="after")
    def _phases_have_names(self) -> Recipe:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"phases need different names, got {', '.join(names)}")
        return self
