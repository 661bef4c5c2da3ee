"""The sections of a configuration, each a frozen, typed value; `config.SwapConfig` holds them.

Every field says what it means, its unit, and where its default comes from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

Role = Literal["learn", "forget", "retain"]
Split = Literal["train", "validation", "test"]
StageKind = Literal["learn", "forget", "joint"]
TaskName = Literal["classification", "segmentation", "detection"]
BaseWeights = Literal["fp32", "8bit", "4bit"]
TASKS: tuple[TaskName, ...] = ("classification", "segmentation", "detection")
ROLES: tuple[Role, ...] = ("learn", "forget", "retain")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def learns(order: str) -> bool:
    """Whether a stage of the order learns."""
    return bool(set(order) & set("LJ"))


def forgets(order: str) -> bool:
    """Whether a stage of the order forgets."""
    return bool(set(order) & set("FJ"))


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Layer = Literal["head", "all"] | Share
Colour = Annotated[int, Field(ge=0, le=255)]
Depth = Annotated[str, Field(pattern=r"^(all|auto|last-[1-9][0-9]*)$")]


def _as_tuple(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"it is a word, not a list; write [{value}]")
    return tuple(value) if isinstance(value, list) else value


def _as_names(value: object) -> object:
    """Return names of class numbers; what is none is said in one line, not once for each type."""
    if value is None:
        return None
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value.values()):
        whole = [number for number in value if re.fullmatch("-?[0-9]+", str(number))]
        if len(whole) == len(value):
            below = [number for number in whole if int(number) < 0]
            if below:
                raise ValueError(
                    f"{below[0]} is no value of a mask and no class number, these are from 0 up; "
                    "take it out"
                )
            return {int(number): name for number, name in value.items()}
    raise ValueError(
        "these are no names of numbers; write a mapping of numbers to names, such as {0: cat, 1: "
        "dog}, or a list of names"
    )


def _as_layers(value: object) -> object:
    """Return places as a tuple; one that is none is said in one line, not once for each type."""
    places = value if isinstance(value, list | tuple) else (value,)
    for place in places:
        number = isinstance(place, int | float) and not isinstance(place, bool) and 0 < place <= 1
        if place not in ("head", "all") and not number:
            raise ValueError(
                f"{place!r} is no place; take head, all, or a share of the depth above 0 and up "
                "to 1, as in [head, 0.5, 1.0]"
            )
    return tuple(places)


_AS_LAYERS = BeforeValidator(_as_layers, json_schema_input_type=Layer | tuple[Layer, ...])


class Frozen(BaseModel):
    """A section: frozen, without unknown keys, its docstrings the descriptions of its fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _truth_is_no_number(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        """Refuse yes, no, true and false where a number is wanted, for which Python takes them."""
        checked = check(value)
        if isinstance(value, bool) and not isinstance(checked, bool):
            raise ValueError("this is a number, not true or false")
        return checked


class ScenePaths(Frozen):
    """Images and their annotations, where these lie in different places."""

    images: str
    """Folder of images."""
    annotations: str
    """Folder of masks, of Pascal VOC's XML files or of YOLO's text files, or a COCO JSON file."""


def _kind_of_data(value: object) -> str:
    """Return which of the types of `SourceConfig.data` a value is meant as."""
    if isinstance(value, Mapping):
        return "ScenePaths" if {"images", "annotations"} & set(value) else "SplitPaths"
    return type(value).__name__ if isinstance(value, BaseModel) else "str"


def _kind_of_split(value: object) -> str:
    return "ScenePaths" if isinstance(value, Mapping | ScenePaths) else "str"


ImagesAndAnnotations = Annotated[
    Annotated[str, Tag("str")] | Annotated[ScenePaths, Tag("ScenePaths")],
    Discriminator(_kind_of_split),
]


class SplitPaths(Frozen):
    """A source whose splits lie in different places.

    Each is a path, or for segmentation and detection `{images: ..., annotations: ...}`.
    """

    train: ImagesAndAnnotations
    """Training images: a folder of class folders, or a table file."""
    validation: ImagesAndAnnotations | None = None
    """Validation images; cut from `train` by seed when left out."""
    test: ImagesAndAnnotations | None = None
    """Test images; cut from `train` by seed when left out."""


class SourceConfig(Frozen):
    """Where the images of one role come from, and which of them are used."""

    data: Annotated[
        Annotated[str, Tag("str")]
        | Annotated[SplitPaths, Tag("SplitPaths")]
        | Annotated[ScenePaths, Tag("ScenePaths")],
        Discriminator(_kind_of_data),
    ] = ""
    """An image folder (one folder a class, or train/validation/test folders of such), a local
    parquet, arrow, JSONL or CSV file with an image column, a Hugging Face dataset id, or `{train:
    ..., test: ...}`. For segmentation and detection: a folder in one of the usual layouts (images
    and masks, COCO, Pascal VOC, YOLO), a COCO JSON file, a table, or `{images: ..., annotations:
    ...}`, also under train, validation and test. May be empty only where the data set is passed in
    memory to `kswap.swap`."""
    classes: Annotated[tuple[str, ...] | None, BeforeValidator(_as_tuple)] = None
    """Class names that take this role. None: for learn and forget every class of the source, for
    retain the other classes of the model."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Class name in the source -> class name of the model, where they are spelt differently."""
    fraction: Share = 1.0
    """Share of the training images that is used, stratified per class (at least one); of a stream
    about this share, by content. Test images are never thinned out."""
    labels: Literal["complete", "partial"] | None = None
    """Segmentation and detection: whether every object of every class the source names is annotated
    (complete), or only those of this role's classes surely are and the rest is left open, so that
    the base model supervises it (partial). None: partial for learn, complete for forget and
    retain."""
    class_names: Annotated[tuple[str, ...] | dict[int, str] | None, BeforeValidator(_as_names)] = (
        None
    )
    """Names of the values of masks or of class numbers (of classification too), in order from 0 or
    as `{value: name}`; after `reduce_zero_label`. None: of masks and boxes from a file beside the
    data (id2label.json, classes.txt, data.yaml ...), else the model's labels."""
    palette: dict[str, tuple[Colour, Colour, Colour]] | None = None
    """Class name -> red, green and blue, for masks that are pictures in colour. Names such as
    background, void and unknown are understood. None: from class_dict.csv beside the data, if
    there."""
    reduce_zero_label: bool | None = None
    """Whether 0 in a mask means `not labelled` and class 0 is written as 1 (ADE20K). None: what the
    model's processor says."""
    ignore_index: Annotated[int, Field(ge=0, le=65535)] = 255
    """Value in a mask of pixels that are neither trained nor scored."""
    config_name: str | None = None
    """Which configuration of a Hugging Face data set with several: of a hub id, or of a folder laid
    out as on the hub (configurations in its README.md, or a folder for each)."""
    image_column: str | None = None
    """Column with the image (bytes, path, or both); found by itself when left out."""
    label_column: str | None = None
    """Column with the class name or class id; found by itself when left out."""
    mask_column: str | None = None
    """Segmentation: column with the mask (an image); found by itself when left out."""
    objects_column: str | None = None
    """Detection: column with the boxes and classes of an image; found by itself when left out."""
    box_format: Literal["xywh", "xyxy", "cxcywh"] = "xywh"
    """Detection: what the numbers of a box in `objects_column` are: left, top, width, height
    (COCO); left, top, right, bottom; or centre, width, height."""
    box_unit: Literal["pixels", "fractions"] = "pixels"
    """Detection: unit of the boxes in `objects_column`."""
    streaming: bool = False
    """Training images are read as they are needed, and never all in memory or on the disk. `data`
    names a Hugging Face dataset id, parquet, arrow, JSONL or CSV files, WebDataset tar shards, or a
    folder of these; several as `shards-{000..010}.tar` or `*.parquet`. Beside `KEY.jpg` a shard has
    `KEY.cls`, `.txt` or `.json` with the class, `KEY.png` or `KEY.mask.png` with the mask, or the
    objects in `KEY.json`."""
    shuffle_buffer: Annotated[int, Field(ge=1)] = 1000
    """Streaming: encoded images that are shuffled together; shards come in a new order in every
    pass. Where shards are sorted by class, batches are as mixed as the buffer is large."""
    sample_images: Annotated[int, Field(ge=2)] = 2000
    """Streaming: images that are read beforehand, from all shards alike, and stay in memory: test
    and validation images are cut from them (or so many read of each split of its own), and the
    first values of new rows, features of classes and audits come from the rest."""
    images_per_pass: Annotated[int, Field(ge=1)] | None = None
    """Streaming: images of this role in one pass, which `epochs` counts where the stream is a
    stage's anchor, and by which it shares a stream with other roles. None: not known."""

    @model_validator(mode="after")
    def _only_of_streams(self) -> SourceConfig:
        for name in ("shuffle_buffer", "sample_images", "images_per_pass"):
            if not self.streaming and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is of a source that streams; add streaming: true, or leave it out"
                )
        return self


class DataConfig(Frozen):
    """How images are read, kept and split."""

    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of a source's images cut for validation where the source has no validation split."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of a source's images cut for the test where the source has no test split."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What to do with a file that cannot be decoded: stop and name it, or skip, count and list
    it."""
    memory_limit_bytes: Annotated[int, Field(ge=0)] = 4 * 1024**3
    """Decoded images are kept in memory up to this many bytes, in a memory-mapped file beyond."""
    augment: Literal["none", "flip", "flip-crop", "flip-crop-colour"] = "none"
    """Augmentation of training batches, on tensors (kornia): mirror; crop and scale; change
    brightness and contrast. Masks and boxes follow. In classification the base model's outputs that
    supervise distillation are those of the image without augmentation."""


class AdapterConfig(Frozen):
    """LoRA on the feed-forward linears of every transformer block (PEFT)."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank r of each LoRA pair. Source: the paper's 8."""
    scale: Positive = 1.0
    """Factor on B·A, that is alpha / r in PEFT's terms."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of A."""


class HeadConfig(Frozen):
    """The rows that learned classes add to the head."""

    init: Literal["class-mean", "random"] = "class-mean"
    """Start of a new row: the centred mean feature of its training images, scaled to the old rows,
    or Xavier-uniform (the paper)."""
    train: Literal["new", "all", "none"] = "new"
    """Rows that train: the new ones, all, or none (the paper freezes the head)."""
    margin: NonNegative = 0.0
    """Nats taken off the bias of learned classes after the last stage (post-hoc logit adjustment,
    Menon et al. 2021): a new class must lead by that much, and takes fewer images from retained
    ones that look like it. Heads without a bias are left alone."""


class StreamConfig(Frozen):
    """A loader: images of one or more roles, shuffled together."""

    roles: Annotated[tuple[Role, ...], BeforeValidator(_as_tuple)]
    """Roles whose images the stream draws. Roles that this stage does not know (yet) are left
    out."""
    batch_size: Annotated[int, Field(ge=1)]
    """Images the stream contributes to each batch; a smaller stream contributes all it has."""


class TermConfig(Frozen):
    """One weighted summand of the loss, over units whose class has one of `roles`."""

    roles: Annotated[tuple[Role, ...], BeforeValidator(_as_tuple)]
    """Roles of the units the term is the mean over."""
    objective: Literal[
        "cross_entropy",
        "hedged_cross_entropy",
        "bounded_ce_batch",
        "bounded_ce_sample",
        "masked_distillation",
        "distillation",
        "restricted_distillation",
        "tilted_distillation",
        "negative_ce",
        "negative_distillation",
        "random_labels",
        "uniform",
        "nearest_class",
        "dispersion",
        "impersonation",
        "translation",
        "discrimination",
        "class_mean_head",
        "subspace",
        "feature_distillation",
        "prototype",
        "bounded_prototype",
    ]
    """Name of the objective (kswap.objectives; equations in docs/method.md)."""
    weight: NonNegative = 1.0
    """Factor of the term; 0 leaves it out."""
    reduction: Literal["mean", "share"] = "mean"
    """Mean over the units of the term, or their share in the task's own loss over the batch: with
    `share` and weights of 1 the terms of all roles add up to the loss of the library."""
    bound: Positive | None = None
    """Nats at which a bounded cross-entropy stops pushing; None means ln K (K rows of the head)."""
    temperature: Positive = 1.0
    """Softmax temperature of the distillation objectives; of `class_mean_head` that of its cosines,
    divided by 10."""
    layers: Annotated[tuple[Layer, ...], _AS_LAYERS] = ("head",)
    """Where the objectives on features look: `head`, what the head receives; a number from 0 to 1,
    the output of the block at that share of the depth (1: the last block), its first token and the
    mean of its tokens (segmentation and detection: the mean of those under a region or box, or the
    query nearest to it); `all`, the head and every block. The loss is the mean over the places."""
    whiten: bool = False
    """Whether features are first whitened by the base's covariance within retained classes on the
    training images, plus the mean variance in every direction, so that directions count as they do
    for a head that is fitted to a few images."""
    hedge: Share = 0.3
    """Of `hedged_cross_entropy`: the base's part in the target."""
    tilt: NonNegative = 1.0
    """Of `tilted_distillation`: factor on the similarity of classes, a cosine; 0 is
    `masked_distillation`."""
    energy: Share = 0.9
    """Of `subspace`: share of the variance of the forget class's features that its subspace
    holds."""


class SparsityConfig(Frozen):
    """Group lasso: one group for each block, all LoRA matrices of its feed-forward network."""

    weight: NonNegative = 0.0
    """Factor alpha of the sum of group norms; 0 leaves it out."""
    method: Literal["proximal", "subgradient"] = "proximal"
    """A proximal step after each optimiser step (groups become exactly zero), or the norm in the
    loss with an epsilon (the paper)."""
    epsilon: Positive = 1e-8
    """Added under the square root of the sub-gradient form, whose gradient is NaN at a zero
    group."""


class OptimiserConfig(Frozen):
    """AdamW and its schedule, restarted at every stage."""

    lr: Positive = 2e-3
    """Peak learning rate."""
    final_lr: NonNegative = 0.0
    """Learning rate at the end of a cosine or linear schedule."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the schedule after the warm-up."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps in which the rate rises linearly from 0."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of the adapter. Rows of the head have none, so that frozen rows stay
    bit-equal."""
    clip_norm: Positive | None = None
    """Maximum norm of the gradient; None: no clipping."""


class DampeningConfig(Frozen):
    """Selective synaptic dampening (SSD): weights are shrunk instead of trained."""

    selection: Positive = 100.0
    """Alpha: a weight is dampened where its importance to what is to be forgotten is more than so
    many times that to what is kept. Chosen on validation images of the classification demo
    (LOG.md, 2026-11-24). Source: 10 for ResNet-18, 5 for ViT, where all training images stand for
    what is kept, those to be forgotten among them."""
    strength: Positive = 1.0
    """Lambda: a dampened weight is multiplied by this times the ratio of both importances, by 1 at
    most. Source: 1."""
    images: Annotated[int, Field(ge=1)] = 100
    """Images of each role, evenly spaced, that the importances are means over, one at a time."""


class StageConfig(Frozen):
    """One kind of stage."""

    epochs: Positive = 5.0
    """Length, in passes over the anchor stream."""
    min_steps: Annotated[int, Field(ge=1)] = 1
    """Lower limit of the number of optimiser steps, for small sources."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Upper limit of the number of optimiser steps."""
    anchor: str
    """Name of the stream whose passes are counted. The longest stream, where the stage lacks it."""
    streams: dict[str, StreamConfig]
    """Loaders by name; one batch holds what each contributes, and there is one forward for all."""
    terms: dict[str, TermConfig]
    """Summands of the loss by name."""
    optimiser: OptimiserConfig = Field(default_factory=OptimiserConfig)
    """Optimiser and schedule."""
    sparsity: SparsityConfig = Field(default_factory=SparsityConfig)
    """Group lasso."""
    saliency: Share | None = None
    """Share of each adapter tensor's entries that train: those with the largest gradient of the
    cross-entropy on forget images when the stage begins (SalUn). None: all."""
    depth: Depth = "all"
    """Blocks whose adapter trains: `all`; `last-K`, the K last ones in the order of the forward; or
    `auto`, the fewest last ones that hold 15 % of the squared gradient when it begins. What
    lies below them does not change, and is computed once for each image where
    `training.prefix_cache` allows."""
    consolidation: NonNegative = 0.0
    """Factor of 1/2 Σ F (θ - θ_0)² over the adapter (EWC), F the Fisher information on images of
    protected roles when the stage begins; 0 leaves it out."""
    renew_steps: Annotated[int, Field(ge=0)] = 0
    """Steps after which `discrimination` looks anew at how retained classes lie in the model as it
    is by then, a forward of at most 64 images of each (fewer where there are more than 32); 0: as
    they lie in the base, throughout."""
    negate: Positive | None = None
    """Task arithmetic: what the stage did to the layers is taken off again so many times after it,
    that is, W_before - negate · (W_after - W_before), at the adapter's rank. None: it stays."""
    dampening: DampeningConfig | None = None
    """The stage takes no step: SSD shrinks the weights of the adapted linears, as the nearest
    change of the adapter's rank, and the rows of the head that train. None: the stage trains."""

    @model_validator(mode="after")
    def _anchor_is_a_stream(self) -> StageConfig:
        if self.anchor not in self.streams:
            raise ValueError(
                f"anchor {self.anchor!r} is no stream of this stage; "
                f"take one of {', '.join(self.streams)}"
            )
        return self

    @model_validator(mode="after")
    def _dampening_is_alone(self) -> StageConfig:
        trains = {
            "negate": self.negate is not None,
            "saliency": self.saliency is not None,
            "consolidation": self.consolidation > 0,
        }
        for name in (name for name, asked in trains.items() if asked and self.dampening):
            raise ValueError(
                f"a stage with dampening takes no step, so that {name} has no meaning; "
                f"leave {name} or dampening out"
            )
        return self


class StagesConfig(Frozen):
    """The three kinds of stage."""

    learn: StageConfig
    """L: learn classes are trained."""
    forget: StageConfig
    """F: forget classes are removed."""
    joint: StageConfig
    """J: both at once."""


class TrainingConfig(Frozen):
    """The loop, whatever the stage."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes a GPU when there is one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Compute precision (Accelerate's mixed precision). Weights and the optimiser stay in fp32."""
    base_weights: BaseWeights = "fp32"
    """What the frozen linears of the transformer blocks are held in while the adapter trains: 8bit
    and 4bit by bitsandbytes, on a GPU, for less memory. The head and LoRA stay in fp32, and what is
    saved is the adapter on the base in full precision."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Micro-batches a step is cut into; the gradient is that of the whole batch."""
    prefix_cache: bool = True
    """Whether what lies below the blocks that train in a stage (`depth`) is computed once for each
    image and kept: in memory up to `data.memory_limit_bytes`, beyond it in a file."""
    prefix_limit_bytes: Annotated[int, Field(ge=0)] = 32 * 1024**3
    """What would take more on the disk is not kept."""
    views: Annotated[int, Field(ge=1)] = 2
    """Augmented views that are kept of each image, in place of a new one at every step. The second,
    fourth ... are mirrored."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    eval_batch_size: Annotated[int, Field(ge=1)] = 64
    """Images in a batch without gradients (scores, base outputs, features)."""
    checkpoint_steps: Annotated[int, Field(ge=1)] = 25
    """A resumable checkpoint is written after this many steps, and after every stage."""
    trackers: Annotated[
        tuple[Literal["tensorboard", "trackio", "wandb"], ...], BeforeValidator(_as_tuple)
    ] = ()
    """Experiment trackers (through Accelerate), when installed."""
    analysis: bool = False
    """Also look at what each layer does: its change, gradients of each role and their cosines, in
    RUN/arrays/analysis-STAGE.json. On the command line `--analysis` is short for it."""
    analysis_steps: Annotated[int, Field(ge=1)] = 10
    """Gradients are looked at in the first of so many steps (one more backward for each role)."""
    score_validation: bool = False
    """Also score the validation split after every stage (to choose hyper-parameters)."""
