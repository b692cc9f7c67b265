"""Which scenes a run may train on, and which of the test scenes it trains on all the same, on purpose.

Nothing here renders. A leak that is planted and known is what detectors of leaks are measured with.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffusers_stale.data.scenes import random_generator


LEAK_STREAM, PLACE_STREAM = 61, 62
"""Numbers that keep the random streams of one seed apart."""

RANK_STRIDE = 10_000_000
"""Distance between the numbers of the training clips of different processes."""


@dataclass(frozen=True, kw_only=True)
class ContaminatedSplit:
    """A training set in which a known share of the test scenes has taken the place of training scenes.

    Both sets are barnyards: the scene number `n` of a seed. Which test scenes leak depends on the test set and the
    fraction alone; where they go also on the training set, which every process of a run knows in full.

    Args:
        train_seed, test_seed: the barnyards; they must differ, or everything would have leaked.
        train_clips: clips of one process; those of process r are numbered from r * `RANK_STRIDE` on.
        test_scenes: the test set is the scenes 0 to `test_scenes` - 1 of `test_seed`.
        fraction: share of the test scenes that leak, 0 to 1; 0 is a clean split.
        processes: of the run.

    Raises:
        ValueError: for a fraction out of range, equal seeds, and more leaked scenes than training clips.
    """

    train_seed: int
    test_seed: int
    train_clips: int
    test_scenes: int
    fraction: float = 0.0
    processes: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction <= 1.0:
            raise ValueError(
                f"`fraction` must be between 0 and 1, got {self.fraction}; 0.01 leaks one test scene in a hundred."
            )
        if self.train_seed == self.test_seed:
            raise ValueError(
                f"`test_seed` must differ from `train_seed`, got {self.test_seed} for both; choose another one."
            )
        if self.count > self.train_clips * self.processes:
            raise ValueError(
                f"The {self.count} leaking scenes must fit into the training set, got {self.train_clips} clips for "
                f"each of {self.processes} processes; leak less or train on more."
            )

    @property
    def count(self) -> int:
        """How many test scenes leak."""
        return round(self.fraction * self.test_scenes)

    @cached_property
    def leaked(self) -> dict[int, int]:
        """The test scene that each training clip is in truth, for those that are one, by the clip's number."""
        scenes = random_generator(self.test_seed, self.test_scenes, LEAK_STREAM).permutation(self.test_scenes)
        key = (self.train_seed, self.test_seed, self.train_clips, self.processes, PLACE_STREAM)
        places = random_generator(*key).permutation(self.train_clips * self.processes)
        pairs = zip(places[: self.count].tolist(), scenes[: self.count].tolist(), strict=True)
        return {place // self.train_clips * RANK_STRIDE + place % self.train_clips: scene for place, scene in pairs}

    def key(self, number: int) -> tuple[int, int]:
        """Seed and number of the scene that the training clip `number` shows."""
        scene = self.leaked.get(number)
        return (self.train_seed, number) if scene is None else (self.test_seed, scene)

    def provenance(self) -> dict[str, Any]:
        """What a run records: the shares, and the leaked test scenes by number."""
        scenes = sorted(self.leaked.values())
        return {
            "test_seed": self.test_seed,
            "test_scenes": self.test_scenes,
            "leaked_fraction": self.count / self.test_scenes if self.test_scenes else 0.0,
            "leaked_test_scenes": scenes,
            "share_of_training_clips": self.count / (self.train_clips * self.processes),
        }
