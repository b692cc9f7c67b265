"""What a training run can be told: one frozen dataclass a stage, presets of all four, and changes by name.

Nothing here trains. Every length of time is in seconds, every size in the unit that the field says.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from diffusers_stale.data.sources import BARNYARD
from diffusers_stale.training.clip_settings import ClipSettings
from diffusers_stale.training.grids import parse_grids
from diffusers_stale.training.ranges import check_ranges


STAGES = ("autoencoder", "text", "image", "movie")
"""The stages in the order in which one needs the other."""

SHARES = (
    "contamination", "caption_dropout", "hinge_from", "hinge_fraction", "attribute_swap_rate", "embedding_noise_rate",
    "input_noise_rate", "view_shuffle_rate", "view_shuffle", "frame_shuffle_rate", "frame_shuffle",
)  # fmt: skip
"""Settings from 0 to 1."""

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
"""Ways to write a switch."""

SWITCHES = (
    "hinge_weight", "hinge_warmup", "embedding_noise", "input_noise", "attribute_swaps", "text_rate", "text_cache_mb",
)  # fmt: skip
"""Settings of denoising stages of 0, which switches them off, or more."""

Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["auto", "no", "bf16", "fp16"]
TrackerName = Literal["tensorboard", "trackio"]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What every stage has.

    `max_steps` and `max_seconds` bound the run; the learning rate is annealed to zero over the larger of the two
    fractions. `max_seconds` counts training only, over all resumptions. A step is of `accumulation` batches. Steps
    whose gradient is not finite are skipped and counted; `max_skipped` of them in a row end the run.

    The moving average is of `ema_form` "constant", whose decay is `ema_decay` after a warm-up as (1 + step) /
    (10 + step), or "power", whose profile has the standard deviation `ema_width` as a share of the run so far
    (`averages.power_decay`). With the `precision` "fp16" losses are scaled, and the scale is lowered where gradients
    overflow, in steps that count as skipped; "auto" is "bf16" on hardware that computes it, and "no" elsewhere.

    Several processes take the mean of their gradients at every step; with `local_steps` above 1 they train on their
    own and take the mean of their weights every so many steps (`stale_gradients.StaleGradients`).

    Figures go to `trackers`. Intervals (`*_every`) are in steps, `save_every` in seconds.
    """

    seed: int = 0
    max_steps: int | None = 1000
    max_seconds: float | None = None
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    schedule: Schedule = "cosine"
    beta2: float = 0.99
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    max_skipped: int = 100
    ema_form: Literal["constant", "power"] = "constant"
    ema_decay: float = 0.998
    ema_width: float = 0.1
    local_steps: int = 1
    precision: Precision = "auto"
    log_every: int = 20
    sample_every: int = 500
    save_every: float = 600.0
    keep_checkpoints: int = 2
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    held_out_seed: int = 1_000_003

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_seconds is None:
            raise ValueError("`max_steps` or `max_seconds` must be given, got neither; a run needs an end.")
        check_ranges(self)
        if not math.isfinite(self.learning_rate):
            raise ValueError(f"`learning_rate` must be finite, got {self.learning_rate}; 1e-3 is usual.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be at least 0 and below 1, got {self.ema_decay}; 0.999 is usual.")
        if not 0 < self.ema_width < 0.28:
            raise ValueError(f"`ema_width` must be above 0 and below 0.28, got {self.ema_width}; 0.1 is usual.")
        if self.local_steps > 1 and self.precision == "fp16":
            raise ValueError(
                f"`local_steps` above 1 needs the precision bf16 or no, got {self.local_steps} with fp16: processes "
                "would scale their losses differently."
            )


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(ClipSettings, StageConfig):
    """Autoencoder of single frames. Channels are listed from the full resolution down, each level halves it.

    The loss is `l1_weight` times the absolute error, `mse_weight` times the squared one, `gradient_weight` times the
    absolute error of differences between neighbouring pixels and `kl_weight` times the Kullback-Leibler divergence.
    `pool_frames` frames are rendered, or taken from clips, before training and drawn from. `held_out_frames` measure
    PSNR: of barnyards of another seed, of `held_out_data`, or else other frames of the clips trained on.

    `start_from` is the folder of an earlier pipeline or autoencoder, whose weights are taken. With `trainable`
    "decoder" its encoder stays as it is: latents remain what they are, so networks that were trained on them go on
    working, with `scripts/exchange_decoder.py`.
    """

    start_from: str | None = None
    trainable: Literal["all", "decoder"] = "all"
    batch_size: int = 8
    learning_rate: float = 2e-3
    image_size: int = 64
    block_channels: tuple[int, ...] = (32, 64, 64)
    layers_per_block: int = 1
    norm_num_groups: int = 16
    latent_channels: int = 8
    l1_weight: float = 1.0
    mse_weight: float = 2.0
    gradient_weight: float = 0.5
    kl_weight: float = 1e-6
    pool_frames: int = 24_000
    held_out_frames: int = 64
    baselines: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_clips()
        coarsest = 2 ** (len(self.block_channels) - 1)
        if self.image_size % coarsest:
            raise ValueError(
                f"`image_size` must be a multiple of {coarsest} with {len(self.block_channels)} `block_channels`, got "
                f"{self.image_size}; each after the first halves it."
            )
        if self.trainable == "decoder" and self.start_from is None:
            raise ValueError("`trainable` decoder needs an encoder that was trained, got no `start_from`; name one.")


@dataclass(frozen=True, kw_only=True)
class TextConfig(StageConfig):
    """Text encoder, taught to tell the attributes that a caption of a barnyard states. `scenes` scenes are drawn from.

    The vocabulary is that of `tokenizer_captions` captions of barnyards, and of all captions of the clips in `data`.
    """

    batch_size: int = 128
    learning_rate: float = 1e-3
    max_steps: int | None = 600
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    intermediate_size: int = 384
    max_tokens: int = 32
    data: str = BARNYARD
    tokenizer_captions: int = 4000
    scenes: int = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `heads`, got {self.hidden_size} and {self.heads}; change one."
            )


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig(ClipSettings, StageConfig):
    """What training of the 2D and of the 5D UNet have in common.

    `start_from` is the folder of an earlier pipeline, whose UNet of the same shape the weights are taken from: all of
    them in the image stage (text encoder included), those of the view and time layers in the movie stage.

    The test set is the scenes 0 to `test_scenes` - 1 of `held_out_seed`; the share `contamination` of them leaks into
    the training set, where a leak is to be studied (`data.splits.ContaminatedSplit`).

    The squared error is weighted 1 + `foreground_weight` * (share of animal in a latent pixel), normalised to mean 1;
    the extra weight falls to zero over the last `foreground_anneal` of the run. The text encoder learns at
    `text_rate` times the learning rate. `caption_dropout` of the captions are replaced by the empty one, for guidance.

    With a `hinge_weight`, captions must denoise better than wrong ones do, by `hinge_margin` (`losses.CONTRASTS`).
    What is wrong is `hinge_caption`: "mirrored", left for right in those that state a direction; "joy", the token of
    tears of joy alone; "joy_suffix", the caption followed by it. After training with joy, the token is a negative
    prompt that means what captions are not, and the pipeline's default one.

    The hinge counts in the noisiest part of the process, from `hinge_from` of its timesteps on: there the direction
    cannot be seen and has to be read. With `hinge_noise` "ramp" it counts from 0 there to 1 at the end, with "step" it
    counts 1. The share `hinge_fraction` of the samples where it counts pay the second forward pass; the weight grows
    from 0 over the first `hinge_warmup` steps. Plain training ignores the direction for long, since it is worth only
    1 % of the error. The two errors share their noise, so the weight may be large: 0.25 did nothing in 300 steps, 10
    did.

    What is trained is `trainable`: "all"; or "lora", low-rank updates of `lora_rank` and `lora_alpha` beside frozen
    weights (`trainable.py`). With a `text_rate` of 0, and wherever not all is trained, the text encoder is frozen;
    then up to `text_cache_mb` MB of its embeddings are kept. That pays where captions come back: a scene has a new
    wording at almost every draw unless `wordings` bounds how many there are of each. `gradient_checkpointing` trades
    time for memory, `shard_weights` exchange between processes for it: each holds a part of all that is trained
    (FSDP2, `sharding.ShardedWeights`).

    Corruptions (`mess_up.py`), each of a rate and a strength: `attribute_swap_rate` and `attribute_swaps` (how many
    wrong values), `embedding_noise_rate` and `embedding_noise` (times 1 / sqrt(channels)),
    `input_noise_rate` and `input_noise` (deviation).
    """

    start_from: str | None = None
    contamination: float = 0.0
    test_scenes: int = 1000
    loss: Literal["mse", "huber"] = "mse"
    loss_weighting: Literal["uniform", "min_snr"] = "uniform"
    foreground_weight: float = 3.0
    foreground_anneal: float = 0.2
    text_rate: float = 0.3
    caption_dropout: float = 0.1
    trainable: Literal["all", "lora"] = "all"
    lora_rank: int = 8
    lora_alpha: float = 8.0
    gradient_checkpointing: bool = False
    shard_weights: bool = False
    text_cache_mb: float = 0.0
    wordings: int | None = None
    hinge_weight: float = 0.0
    hinge_margin: float = 0.05
    hinge_from: float = 0.6
    hinge_caption: Literal["mirrored", "joy", "joy_suffix"] = "mirrored"
    hinge_form: Literal["hinge", "logistic"] = "hinge"
    hinge_margin_kind: Literal["relative", "absolute"] = "relative"
    hinge_fraction: float = 1.0
    hinge_warmup: int = 0
    hinge_noise: Literal["step", "ramp"] = "step"
    attribute_swap_rate: float = 0.0
    attribute_swaps: int = 1
    embedding_noise_rate: float = 1.0
    embedding_noise: float = 0.0
    embedding_noise_kind: Literal["gaussian", "uniform"] = "gaussian"
    input_noise_rate: float = 1.0
    input_noise: float = 0.0
    image_size: int = 64
    encode_batch: int = 64
    sample_steps: int = 20
    guidance_scale: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_clips()
        for name in SHARES:
            value = getattr(self, name, 0.0)
            if not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be between 0 and 1, got {value}; it is a share.")
        for name in SWITCHES:
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}; 0 switches it off.")
        if self.shard_weights and (self.precision == "fp16" or self.local_steps > 1):
            raise ValueError(
                f"`shard_weights` needs the precision bf16 or no, and `local_steps` of 1, got {self.precision} and "
                f"{self.local_steps}; leave one of them out."
            )
        if self.hinge_form == "logistic" and not self.hinge_margin > 0:
            raise ValueError(
                f"`hinge_margin` must be above 0 for the logistic form, got {self.hinge_margin}; it is a temperature."
            )

        if not self.renders and self.contamination > 0:
            raise ValueError(
                "`contamination` leaks rendered test scenes, got data without barnyard; add it to `data`."
            )

    @property
    def trains_joy(self) -> bool:
        """Whether the token of tears of joy is taught to mean what captions are not."""
        return self.hinge_weight > 0 and self.hinge_caption != "mirrored"


@dataclass(frozen=True, kw_only=True)
class ImageConfig(DenoisingConfig):
    """2D text-to-image. `pool_frames` frames, each of another scene, are rendered and encoded before training."""

    batch_size: int = 32
    learning_rate: float = 8e-4
    warmup_steps: int = 200
    ema_decay: float = 0.999
    pool_frames: int = 24_000
    block_channels: tuple[int, ...] = (48, 96, 160)
    layers_per_block: int = 1
    attention_heads: int = 4
    norm_num_groups: int = 16
    prediction_type: Literal["v_prediction", "epsilon", "sample", "flow_prediction"] = "v_prediction"

    def __post_init__(self) -> None:
        super().__post_init__()
        # The first level has no attention.
        if any(channels % self.attention_heads for channels in self.block_channels[1:]):
            raise ValueError(
                f"`block_channels` after the first must be multiples of `attention_heads`, got {self.block_channels} "
                f"and {self.attention_heads}; change one."
            )


@dataclass(frozen=True, kw_only=True)
class MovieConfig(DenoisingConfig):
    """5D fine-tuning of the inflated 2D UNet on factorised grids.

    `static_grids` are drawn from in the first `static_share` of the run, `moving_grids` afterwards; both are written
    "rows x cols x frames : batch : weight", as in "3x3x1:6:2, 1x1x8:6:1" (see `grids.parse_grids`). New parameters
    learn at `learning_rate`, inherited ones at `inherited_rate` times it. Pools hold `static_clips` clips of one
    moment and `moving_clips` movies of `num_frames` frames, of `view_rows` x `view_cols` views each, with baselines
    drawn from `baselines`. Grids of a single view are cut from `single_view_clips` movies of that view alone, if there
    are any; they cost a ninth to prepare, and motion takes more scenes to learn than parallax. The network is shown
    some views or frames of about `known_share` of the movies clean (`known.draw_known_masks`), so that it can go on
    from an image or a video; with 0 it has no input for them. What tells views and frames of a movie apart weighs
    `deviation_weight` times (`losses.with_deviation_weight`).
    `trainable` may also be "view_layers" or "new_layers", which add time layers and the input for what is known. Two
    corruptions more than others have: `view_shuffle_rate` and `view_shuffle`, `frame_shuffle_rate` and
    `frame_shuffle` (share of places that are shuffled).
    """

    batch_size: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    ema_decay: float = 0.995
    hinge_weight: float = 10.0
    inherited_rate: float = 1 / 3
    trainable: Literal["all", "new_layers", "view_layers", "lora"] = "all"
    text_rate: float = 0.1
    view_rows: int = 3
    view_cols: int = 3
    num_frames: int = 8
    static_clips: int = 3000
    moving_clips: int = 600
    single_view_clips: int = 0
    view_shuffle_rate: float = 0.0
    view_shuffle: float = 1.0
    frame_shuffle_rate: float = 0.0
    frame_shuffle: float = 1.0
    baselines: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    static_share: float = 0.5
    known_share: float = 0.3
    deviation_weight: float = 1.0
    static_grids: str = "3x3x1:4:5, 1x3x1:12:1, 3x1x1:12:1, 1x1x1:32:1, 1x1x8:4:1"
    moving_grids: str = "1x1x8:4:3, 3x3x1:4:2, 1x3x4:3:2, 3x1x4:3:2, 3x3x4:1:2, 3x3x8:1:1, 1x1x1:24:2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.deviation_weight > 0:
            raise ValueError(f"`deviation_weight` must be above 0, got {self.deviation_weight}; 1 weighs all alike.")
        largest = None if self.has_clips else (self.view_rows, self.view_cols, self.num_frames)
        parse_grids(self.static_grids, largest)
        parse_grids(self.moving_grids, largest)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One configuration for each stage."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    movie: MovieConfig = field(default_factory=MovieConfig)


def with_changes(config: TrainingConfig, changes: Iterable[str], stages: Iterable[str] = STAGES) -> TrainingConfig:
    """`config` with every "key=value" in `changes` applied, a later one over an earlier one.

    A key is a field's name, meant for those of `stages` that have it, or "stage.field". Raises `ValueError` for a key
    that names no field, with the nearest one that exists, and for a value that is not of the field's type.
    """
    stages = tuple(stages)
    values: dict[str, dict[str, str]] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"A change must read key=value, got {change!r}; for example learning_rate=3e-4.")
        for stage, name in fields_named(config, key.strip(), stages):
            values.setdefault(stage, {})[name] = text.strip()
    return with_values(config, values)


def with_values(config: TrainingConfig, values: dict[str, dict[str, str]]) -> TrainingConfig:
    """`config` with new values, given as text by stage and field; those of a stage are checked together."""
    for stage, texts in values.items():
        old = getattr(config, stage)
        hints = {item.name: item.type for item in dataclasses.fields(old)}
        new = dataclasses.replace(old, **{name: parse_value(name, text, hints[name]) for name, text in texts.items()})
        config = dataclasses.replace(config, **{stage: new})
    return config


def stage_config(stage: str, values: dict[str, Any]) -> StageConfig:
    """The configuration of `stage` that a report holds as JSON `values`.

    Settings that were added since it was written take their defaults. Raises `ValueError` for unknown ones.
    """
    kind = type(getattr(TrainingConfig(), stage))
    known = {item.name for item in dataclasses.fields(kind)}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(
            f"The settings of stage {stage} must be known, got {', '.join(unknown)}; upgrade diffusers-stale if the "
            "run comes from a newer one."
        )
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def fields_named(config: TrainingConfig, key: str, stages: tuple[str, ...]) -> list[tuple[str, str]]:
    """The (stage, field) pairs that `key` means; raises `ValueError` if there is none."""
    pairs = [(stage, item.name) for stage in STAGES for item in dataclasses.fields(getattr(config, stage))]
    found = [(stage, name) for stage, name in pairs if key == f"{stage}.{name}" or (key == name and stage in stages)]
    if not found:
        names = {name for stage, name in pairs if stage in stages} | {f"{stage}.{name}" for stage, name in pairs}
        raise ValueError(
            f"No setting of stage {', '.join(stages)} is called {key!r}; did you mean {nearest(key, names)!r}?"
        )
    return found


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of `names` that is spelt most like `name`."""
    return difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.0)[0]


def parse_value(name: str, text: str, hint: Any) -> Any:
    """`text` as a value of the type `hint`; raises `ValueError` naming the field where it is none."""
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise ValueError(f"`{name}` must be one of {', '.join(get_args(hint))}, got {text!r}; choose one of them.")
        return text
    if get_origin(hint) is tuple:
        parts = [part.strip() for part in text.strip("()[] ").split(",")]
        return tuple(parse_value(name, part, get_args(hint)[0]) for part in parts if part)
    kinds = get_args(hint) or (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    kind = next(item for item in kinds if item is not type(None))
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError(f"`{name}` must be true or false, got {text!r}; write one of them.")
        return BOOLEANS[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"`{name}` must be of type {kind.__name__}, got {text!r}; write one.") from error


SMOKE = {"max_steps": 2, "warmup_steps": 1, "log_every": 1, "sample_every": 2}
"""Settings of a run that only shows that everything works together."""

PRESETS = {
    "barnyard": TrainingConfig(
        autoencoder=AutoencoderConfig(max_steps=None, max_seconds=2400),
        text=TextConfig(),
        image=ImageConfig(max_steps=None, max_seconds=7200),
        movie=MovieConfig(max_steps=None, max_seconds=7200),
    ),
    "smoke": TrainingConfig(
        autoencoder=AutoencoderConfig(
            **SMOKE, batch_size=2, image_size=32, block_channels=(8, 8, 8), norm_num_groups=4, latent_channels=4,
            pool_frames=6, held_out_frames=2,
        ),
        text=TextConfig(
            **SMOKE, batch_size=4, hidden_size=16, layers=1, heads=2, intermediate_size=16, tokenizer_captions=200,
            scenes=8,
        ),
        image=ImageConfig(
            **SMOKE, batch_size=2, image_size=32, pool_frames=6, encode_batch=4, block_channels=(8, 16, 16),
            attention_heads=2, norm_num_groups=4, sample_steps=2,
        ),
        movie=MovieConfig(
            **SMOKE, image_size=32, encode_batch=4, view_rows=3, view_cols=3, num_frames=2, static_clips=3,
            moving_clips=2, static_grids="3x3x1:1:1", moving_grids="3x3x2:1:1", sample_steps=2,
        ),
    ),
}  # fmt: skip
"""Complete configurations by name."""
