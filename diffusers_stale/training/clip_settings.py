"""What a stage can be told about the data that it is trained on, beside how it is trained."""

from dataclasses import dataclass

from diffusers_stale.data.sources import BARNYARD, kinds


NOT_NEGATIVE = ("data_frame_rate", "data_workers", "max_broken")


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """Settings of the stages that see pictures.

    `data` is what is trained on, sources with weights as `data.sources.parse_sources` reads them: rendered barnyards,
    folders of clips, shards, monocular videos. Real clips are cut to a square of `image_size` pixels, and
    `data_frame_rate` frames a second are taken of them (0: all). Up to `max_broken` clips may turn out broken in each
    process. `data_workers` threads decode shards ahead. On `held_out_data`, sources too, the loss is measured.
    """

    data: str = BARNYARD
    held_out_data: str | None = None
    data_frame_rate: float = 8.0
    data_workers: int = 2
    max_broken: int = 10

    def check_clips(self) -> None:
        """Raises `ValueError` for what cannot be, before any file is looked at."""
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}; 0 is none.")
        kinds(self.data)
        if self.held_out_data is not None and BARNYARD in kinds(self.held_out_data, "held_out_data"):
            raise ValueError("`held_out_data` must be clips, got barnyard; its loss is measured where `data` has it.")

    @property
    def renders(self) -> bool:
        """Whether barnyards are among the data."""
        return BARNYARD in kinds(self.data)

    @property
    def has_clips(self) -> bool:
        """Whether there is anything but barnyards among the data."""
        return kinds(self.data) != {BARNYARD}
