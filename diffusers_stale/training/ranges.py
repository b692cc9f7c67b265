"""Bounds that a setting has in every stage that has it. What settings owe to each other stands in `config.py`."""

POSITIVE = (
    "max_steps", "max_seconds", "batch_size", "accumulation", "learning_rate", "clip_norm", "max_skipped", "log_every",
    "sample_every", "keep_checkpoints", "local_steps", "lora_rank", "lora_alpha", "wordings", "image_size",
    "latent_channels", "pool_frames", "held_out_frames", "scenes", "hidden_size", "heads", "attention_heads",
    "encode_batch", "sample_steps", "static_clips", "moving_clips",
)  # fmt: skip
"""Settings that must be greater than 0, where they are given."""

POSITIVE_LISTS = ("block_channels", "baselines")
"""Settings that must have at least one value, each greater than 0."""

NOT_NEGATIVE = ("seed", "held_out_seed", "warmup_steps", "single_view_clips", "inherited_rate")
"""Settings of 0 or more."""


def check_ranges(config: object) -> None:
    """Raises `ValueError` for a setting of `config` that is out of its range."""
    for name in POSITIVE:
        value = getattr(config, name, None)
        if value is not None and not value > 0:
            raise ValueError(f"`{name}` must be greater than 0, got {value}; give a positive number.")
    for name in POSITIVE_LISTS:
        values = getattr(config, name, (1,))
        if not (values and all(value > 0 for value in values)):
            raise ValueError(f"`{name}` must be numbers greater than 0, got {values}; give one at least.")
    for name in NOT_NEGATIVE:
        value = getattr(config, name, 0)
        if not value >= 0:
            raise ValueError(f"`{name}` must be at least 0, got {value}; give 0 or more.")
