"""The configuration: typed, frozen, validated once, saved whole with every run.

Units are in the field's comment: steps and samples, never epochs. Recipes (`recipes.py`) are functions that derive
a `Config` from one another; `load.py` lays a YAML file and the command line over a recipe.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field, model_validator

from ito_ray.config.evaluation import EvalConfig
from ito_ray.config.section import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
)
from ito_ray.config.workers import Workers, WorkersField, require_equal_shares
from ito_ray.errors import ConfigError

Channels = tuple[float, float, float]
"""A number for red, green and blue."""
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
UNNAMED_SOURCE = "train"
RESERVED_ALIASES = ("champion", "previous")
KeyEnds = Literal["auto", "first_dot", "last_dot"]
_SOURCE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""A local path such as year=2024/a.tar would look like a name: write ./year=2024/a.tar."""


class ViewsConfig(Section):
    """Augmented views of one image; crop, jitter and grayscale are those published with ITO."""

    count: PositiveInt = 2
    """V, views per image."""
    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.0)
    """Area of RandomResizedCrop as a fraction of the image."""
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (
        0.4,
        0.4,
        0.4,
        0.1,
    )
    """Strength of brightness, contrast, saturation, hue."""
    jitter_p: Probability = 0.8
    """Chance that a view is jittered."""
    gray_p: Probability = 0.2
    """Chance that a view is made grey."""
    flip_p: Probability = 0.0
    """Horizontal flip; 0 in the paper, since captions name sides."""


class ColumnsConfig(Section):
    """Which Parquet column is what (the first name that the file has), and which json fields hold captions."""

    key: tuple[str, ...] = ("key", "__key__", "id", "uid")
    """Parquet columns that may name a sample."""
    image: tuple[str, ...] = ("image", "jpg", "png", "jpeg", "webp", "image_bytes")
    """Parquet columns that may hold the encoded image."""
    captions: tuple[str, ...] = ("captions", "caption", "text", "txt", "TEXT")
    """Parquet columns that may hold captions."""
    meta: tuple[str, ...] = ("meta",)
    """The Parquet column whose structure or JSON object becomes meta data; text that is neither is kept as it is."""
    key_ends: KeyEnds = "auto"
    """Where the key ends in a tar's names: at the first dot as in WebDataset (000.seg.png), at the last (IMG 1.02.jpg),
    or as the archive's names are understood (docs/data.md)."""
    captions_from: dict[str, PositiveFloat] = {}
    """Take captions from these json fields or Parquet columns (txt: the KEY.txt member) and no others, each with its
    chance to be drawn from, up to a common factor: {caption: 0.7, alt: 0.3}. Where a sample lacks some, the others
    share. Empty: every caption that is found, with equal chances."""


class DataConfig(Section):
    """Where image-text pairs come from and how they become training samples."""

    train: tuple[str, ...] = ()
    """Shards: files, folders, globs or brace patterns; local, s3:// or gs://; .tar or .parquet. To mix several
    sources, name each one's: web=s3://bucket/web/{000..999}.tar icons=demo/data/train."""
    weights: dict[str, PositiveFloat] = {}
    """Fraction of the samples of each named source, up to a common factor: {web: 3, icons: 1}. A small source is
    passed several times while a large one is passed once."""
    heldout: tuple[str, ...] = ()
    """Shards for retrieval during and after training; never trained on."""
    captions: PositiveInt = 1
    """C, captions drawn per sample."""
    templates: dict[str, Probability] = {}
    """Put a training caption into a template now and then: {"a photo of {}": 0.2}; bare with what is left of 1."""
    views: ViewsConfig = ViewsConfig()
    columns: ColumnsConfig = ColumnsConfig()
    rows_per_task: PositiveInt = 256
    """Samples that one Ray Data task reads, decodes and augments."""
    mix: Annotated[int, Field(gt=0, le=256)] = 4
    """Shards that one task draws its samples from, so that no block comes from one shard only."""
    shuffle_buffer: NonNegativeInt = 1024
    """Samples that each rank holds back to mix neighbouring blocks; 0 = take them as they come."""
    max_bad_fraction: Probability = 0.01
    """Share of samples that may be dropped before the run stops."""
    max_pixels: PositiveInt = 64_000_000
    """Larger images are dropped unread: decompression bombs."""
    licence: str = ""
    """Of the training data, for the model card: "CC BY 4.0". Empty: the card says unknown."""
    node_labels: dict[str, str] = {}
    """Decode only on nodes with these labels (`ray start --labels pool=data`): {pool: data}. Empty: wherever a CPU is
    free, on the training nodes too."""

    @property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """The patterns of each source in `train`, by its name."""
        found: dict[str, tuple[str, ...]] = {}
        for pattern in self.train:
            name, separator, rest = pattern.partition("=")
            named = separator and rest and _SOURCE_NAME.fullmatch(name)
            key, value = (name, rest) if named else (UNNAMED_SOURCE, pattern)
            found[key] = (*found.get(key, ()), value)
        return found

    @model_validator(mode="after")
    def _templates_fit(self) -> DataConfig:
        for template in self.templates:
            if template.encode("utf-8", "replace").decode() != template:
                raise ConfigError(f"data.templates: {template!a} has a character that is none (half a surrogate).")
            if template.count("{}") != 1:
                raise ConfigError(f"data.templates: {template!r} must have one {{}}, where the caption goes.")
        if sum(self.templates.values()) > 1 + 1e-9:
            raise ConfigError(
                f"data.templates have probabilities of {sum(self.templates.values()):g} together: give at most 1."
            )
        return self

    @model_validator(mode="after")
    def _sources_fit(self) -> DataConfig:
        names = list(self.sources)
        if self.weights and sorted(self.weights) != sorted(names):
            raise ConfigError(
                f"data.weights names {sorted(self.weights)}, but data.train has the sources {names}: give one weight "
                "for each source, and name sources as in web=s3://bucket/web/*.tar."
            )
        if not self.weights and len(names) > 1:
            raise ConfigError(
                f"data.train has the sources {names}, but data.weights says nothing: give the fraction of samples of "
                f"each, e.g. --data.weights {' '.join(f'{name} 1' for name in names)}."
            )
        return self


class ImageTowerConfig(Section):
    """Any timm model by name."""

    name: str = "vit_base_patch16_224"
    """A model of timm.list_models()."""
    size: PositiveInt = 224
    """Side of the square input in pixels."""
    kwargs: Annotated[dict[str, Any], tyro.conf.arg(constructor=json.loads, metavar="JSON")] = {}
    """Passed to timm.create_model; plain JSON values, since they go into the exported model."""
    pretrained: bool = False
    """Start from timm's weights; asks the network, so never by default."""
    weights: str = ""
    """Start from this safetensors file of timm's weights for `name`: the same without the network."""
    patch_drop: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """ViTs only: share of patches that a training step does not look at (FLIP); cheaper, another regularisation."""
    locked: bool = False
    """LiT: the tower stays as it is, but for its last `open_layers`; needs `pretrained` or `weights`."""
    open_layers: NonNegativeInt = 0
    """Last layers of a locked tower that are trained all the same."""
    mean: Channels | None = None
    """Of the pixels, in units of 0…1. None = what the weights were trained with, OpenAI's for a tower from scratch; the
    saved configuration has the values. A locked tower takes its weights' own only."""
    std: Channels | None = None
    """As `mean`."""


class TextTowerConfig(Section):
    """A Hugging Face text model: from a folder or hub name, or from scratch."""

    kind: Literal["scratch", "clip", "pretrained"] = "clip"
    """scratch: BERT with a WordPiece vocabulary trained on the captions; clip: CLIP's text transformer and BPE."""
    source: str = ""
    """pretrained only: a folder or a hub name."""
    width: PositiveInt = 512
    """Width of the Transformer."""
    layers: PositiveInt = 12
    """Layers of the Transformer."""
    heads: PositiveInt = 8
    """Attention heads; must divide `width`."""
    context: PositiveInt = 77
    """Longest caption in tokens, start and end included."""
    vocab_size: PositiveInt = 49408
    """Tokens in the vocabulary; scratch: at most so many are learned."""
    pool: Literal["mean", "cls", "last"] = "last"
    """Which token becomes the pooled vector: mean of valid ones, the first, the last valid one."""
    locked: bool = False
    """LiT: the tower stays as it is, but for its last `open_layers`; needs kind=pretrained."""
    open_layers: NonNegativeInt = 0
    """Last layers of a locked tower that are trained all the same."""


class ModelConfig(Section):
    """Both towers and the space that they share."""

    image: ImageTowerConfig = ImageTowerConfig()
    text: TextTowerConfig = TextTowerConfig()
    embed_dim: PositiveInt = 512
    """D, width of the shared space."""


class FusionConfig(Section):
    """The Transformer over image and text tokens that exists in training only."""

    layers: PositiveInt = 2
    """Layers of the Transformer."""
    heads: PositiveInt = 8
    """Attention heads; must divide `model.embed_dim`."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden width of the MLP in widths of the Transformer."""
    readout: Literal["cls", "mean", "token"] = "cls"
    """Where the fused vector is read: the image's [CLS], the mean of valid tokens, a learned token."""
    caption_drop: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Ours, not the paper's: the chance that a fused vector does not see its caption. All fused vectors of a sample
    share the caption, so they could find each other by it alone; one that does not see it must be found by the picture
    (docs/method.md)."""
    temperature: Literal["shared", "own"] = "shared"
    """shared: the fusion loss uses the alignment's logit scale, as the paper reads; own: it learns one. Ours."""


class MethodConfig(Section):
    """L = L_align + λ · L_fusion."""

    name: Literal["clip", "siglip", "ito"] = "ito"
    """The loss; clip and siglip take one view and one caption."""
    fusion_weight: NonNegativeFloat = 2.0
    """λ; 0 = the alignment-only ablation, and no fusion module is built."""
    fusion_schedule: Literal["constant", "rising", "falling"] = "constant"
    """How λ goes over the training: as it is, from 0 up to it, or from it down to 0; ours but for constant."""
    alignment_weights: tuple[NonNegativeFloat, ...] = ()
    """w_vc, view by view: (v0c0, v0c1, …, v1c0, …); empty = all 1."""
    mask_duplicates: bool = False
    """Samples of a batch with the very same caption are no negatives of each other, in every loss."""
    fusion: FusionConfig = FusionConfig()


class OptimConfig(Section):
    """Linear warm-up and cosine decay to 0; no weight decay on norms, biases, positions and logit scale."""

    name: Literal["adamw", "lion", "muon", "adafactorbv", "nadamw", "adopt"] = "adamw"
    """As in timm.optim; each wants a rate of its own (Lion about a tenth of AdamW's)."""
    lr: PositiveFloat = 1e-3
    """Highest learning rate, at the end of warm-up."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of matrices."""
    betas: tuple[Probability, Probability] = (0.9, 0.98)
    """Decay of the moments of the gradient and of its square."""
    eps: PositiveFloat = 1e-6
    """Added to the root of the second moment."""
    warmup_steps: NonNegativeInt = 10_000
    """Steps of linear warm-up; must be fewer than `train.steps`."""
    grad_clip: NonNegativeFloat = 0.0
    """Largest global gradient norm; 0 = off."""


class TrainConfig(Section):
    """How long, how wide, on what."""

    steps: PositiveInt = 150_000
    """Optimiser steps of the whole run."""
    global_batch: PositiveInt = 2048
    """B, pairs per step over all ranks."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every rank holds everything; fsdp: they share weights, gradients and moments: for towers that do not fit."""
    micro_batch: NonNegativeInt = 0
    """Pairs of one rank that go through the towers at once; the loss still contrasts the whole batch (gradient
    caching), for one more forward pass. 0 = all at once. BatchNorm sees micro-batches, as it sees ranks. With a range
    of workers, the most: each size takes the largest divisor of its share."""
    workers: WorkersField = Workers(1, 1)
    """W, ranks. 1..4: start with what fits, grow when nodes come, go on with fewer when they are
    lost. Batch and learning rate stay the recipe's; sizes that do not divide train.global_batch are passed over."""
    gpu: bool = False
    """One GPU per worker (nccl) instead of CPUs (gloo)."""
    node_labels: dict[str, str] = {}
    """Train only on nodes with these labels: {pool: train}. Empty: wherever there is room."""
    wait_minutes: NonNegativeFloat = 0.0
    """How long to wait at the start for nodes that an autoscaler brings; 0 = refuse what has no room now."""
    cpus_per_worker: PositiveFloat = 1.0
    """What Ray reserves; Ray Data needs at least one CPU beside all workers."""
    threads: PositiveInt = 1
    """Torch threads in a worker."""
    gradient_checkpointing: bool = False
    """Compute the activations inside each block again in the backward pass instead of keeping them."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay of a moving average of the encoder's weights, which then is what is evaluated and shipped; 0 = none. It
    rises to this value with the steps, so that the first weights are soon forgotten."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the processor multiplies it natively (GPU, AMX), else fp32."""
    seed: int = 0
    """Decides initial weights, order of samples, views and captions."""
    log_every: PositiveInt = 20
    """Steps between logged metrics."""
    checkpoint_every: PositiveInt = 1000
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that are kept."""
    checkpoint_store: str = ""
    """Copy checkpoints to a second place while training goes on: s3://…, gs://… or a folder of another disk. A run that
    has lost its newest ones goes on from the copy in `<checkpoint_store>/<name>`. Does nothing in a sweep's trials."""
    max_failures: NonNegativeInt = 3
    """Restarts after a worker or node is lost."""

    @model_validator(mode="after")
    def _store_is_known(self) -> TrainConfig:
        scheme, separator, _ = self.checkpoint_store.partition("://")
        if separator and scheme not in ("s3", "gs"):
            raise ConfigError(
                f"train.checkpoint_store={self.checkpoint_store} is no place for copies: give an s3:// or gs:// "
                "address, or a folder."
            )
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of workers that training may have, ascending."""
        return self.workers.dividing(self.global_batch)

    def micro_batch_of(self, share: int) -> int:
        """Pairs that a rank with `share` of them embeds at once: the largest divisor that `micro_batch` allows."""
        most = min(self.micro_batch or share, share)
        return next(size for size in range(most, 0, -1) if share % size == 0)


class TrackingConfig(Section):
    """Where runs are tracked and the encoder is registered."""

    uri: str = ""
    """MLflow tracking and registry URI; empty = MLFLOW_TRACKING_URI, else SQLite in `<output>/mlflow`."""
    experiment: str = "ito"
    """MLflow experiment."""
    model_name: str = "ito-dual-encoder"
    """Registered model that gets a version at the end of the run."""
    alias: str = "candidate"
    """Moves to every new version. `champion` moves through the gate alone: `python -m pipelines.register promote`."""

    @model_validator(mode="after")
    def _gate_is_the_only_way(self) -> TrackingConfig:
        if self.alias in RESERVED_ALIASES:
            raise ConfigError(
                f"tracking.alias={self.alias} moves through the gate alone: leave it at `candidate`, and let "
                "python -m pipelines.register promote decide. A model's first version becomes champion by itself."
            )
        return self


class Config(Section):
    """Everything that decides a run."""

    name: str = "run"
    """Names the run: its folder under `output`, its MLflow run. The same name again resumes."""
    output: str = "runs"
    """Folder for checkpoints, exports and the embedded MLflow; on a cluster one that all nodes share."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _batch_fits(self) -> Config:
        train, steps = self.train, self.optim.warmup_steps
        require_equal_shares(train.global_batch, train.workers, train.micro_batch)
        if train.parallel == "fsdp" and train.ema:
            raise ConfigError(
                f"train.ema={train.ema:g} keeps a whole second encoder on every rank, and train.parallel=fsdp is there "
                "to avoid that: set train.ema=0 or train.parallel=ddp."
            )
        if steps >= train.steps:
            raise ConfigError(
                f"optim.warmup_steps={steps} leaves nothing of train.steps={train.steps}: warm-up must be shorter."
            )
        return self

    @model_validator(mode="after")
    def _views_fit_the_method(self) -> Config:
        views, captions = self.data.views.count, self.data.captions
        pairs, method = views * captions, self.method
        if method.name != "ito" and pairs != 1:
            raise ConfigError(
                f"method.name={method.name} contrasts one view with one caption, but data.views.count={views} and "
                f"data.captions={captions}: set both to 1, or method.name=ito."
            )
        if method.name == "ito" and method.fusion_weight > 0 and pairs < 2:
            raise ConfigError(
                f"method.fusion_weight={method.fusion_weight:g} needs a second fused vector per sample, but "
                f"data.views.count={views} and data.captions={captions}: raise one of them, or set "
                "method.fusion_weight=0."
            )
        weights = method.alignment_weights
        if weights and len(weights) != pairs:
            raise ConfigError(
                f"method.alignment_weights has {len(weights)} values, but data.views.count × data.captions = {pairs}: "
                "give one weight for each, view by view."
            )
        if weights and not any(weights):
            raise ConfigError("method.alignment_weights are all 0: at least one pair must be aligned.")
        low, high = self.data.views.crop_scale
        if not low <= high <= 1:
            raise ConfigError(f"data.views.crop_scale=({low:g}, {high:g}): give 0 < smallest ≤ largest ≤ 1.")
        return self

    @model_validator(mode="after")
    def _towers_can_be_built(self) -> Config:
        method, text, image = self.method, self.model.text, self.model.image
        if method.name == "ito" and self.model.embed_dim % method.fusion.heads:
            raise ConfigError(
                f"model.embed_dim={self.model.embed_dim} is not divisible by method.fusion.heads="
                f"{method.fusion.heads}: change one of them."
            )
        if text.kind != "pretrained" and text.width % text.heads:
            raise ConfigError(
                f"model.text.width={text.width} is not divisible by model.text.heads={text.heads}: change one."
            )
        if text.kind == "pretrained" and not text.source:
            raise ConfigError(
                "model.text.source is empty, but model.text.kind=pretrained: give a folder or a hub name."
            )
        if image.locked and not (image.pretrained or image.weights):
            raise ConfigError(
                "model.image.locked=true would keep random weights: give model.image.weights, or "
                "model.image.pretrained=true while online."
            )
        if text.locked and text.kind != "pretrained":
            raise ConfigError(
                f"model.text.locked=true would keep the random weights of model.text.kind={text.kind}: set "
                "model.text.kind=pretrained and model.text.source."
            )
        return self
