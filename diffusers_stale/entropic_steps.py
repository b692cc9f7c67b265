"""The mathematics of few steps: where to put them, by the entropic clock.

Pure functions of noise levels, in NumPy and float64; how old results count is `stale_weights.py`'s. The derivations
stand in `docs/maximum_entropy.md`.
"""

from collections.abc import Sequence

import numpy as np


CLOCK_SCALES = (0.07, 14.0)
"""Standard deviations of data between which the prior of the entropic clock is log-uniform."""

CLOCK_POINTS = 64
"""Number of scales in the prior of the clock."""

CLOCK_ANGLES = 16384
"""Number of angles at which the clock is read to invert it."""

ERROR_PART = 0.25
"""Share of `error_clock` in the time by which steps for noise predictions are equal; the rest is entropic time."""

GUIDANCE_POWER = 0.5
"""Of the guidance scale, by which scales of the prior grow: of the clock, and of stale weights."""

LAST_PART = 0.89
"""Length of the last step, which leads to no noise, in entropic time, relative to the others."""

FEW_STEPS = 4
"""Runs of at most so many steps without a calibration are made otherwise: what decides between modes is most of it."""

LAST_PART_OF_FEW = 1.1
"""`LAST_PART` of few steps."""

NOISE_PARTS_OF_FOUR = (0.97, 1.04, 0.76, 1.23)
"""Lengths of four steps for noise predictions, by `step_clock`, relative to their mean."""

LATE_STARTS = {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.08, 5: 0.05}
"""Entropic time at which runs of so few steps begin, where the process begins earlier: so near to pure noise a
network knows but the mean of the data, and an evaluation in four or five is dear. Guidance multiplies that mean, and
divides this."""

HIGHEST_RATIO = 50.0
"""Noise-to-signal ratio beyond which errors of a network grow no more."""


def entropic_clock(angles: np.ndarray, shift: float = 1.0) -> np.ndarray:
    """Entropic time at the noise levels (cos, sin) of `angles`: from 0 at pure noise to 1 at none.

    For Gaussian data of scale c the information gained until the noise-to-signal ratio is s, rescaled to be finite at
    both ends, is 1 - 2/pi * atan(s / c); here the mean over log-uniform c. `shift` multiplies all scales.
    """
    scales = shift * np.geomspace(*CLOCK_SCALES, CLOCK_POINTS)
    # atan(s / c) as atan2(sin, c * cos): finite at pure noise.
    turned = np.arctan2(np.sin(angles)[:, None], scales * np.cos(angles)[:, None])
    return 1.0 - 2.0 / np.pi * turned.mean(axis=1)


def error_clock(angles: np.ndarray, shift: float = 1.0) -> np.ndarray:
    """How much of an error of noise predictions the end of a path has yet to feel, at the noise levels of `angles`.

    An error e of the noise prediction changes sample / alpha by e dr, with r for the noise-to-signal ratio. A network
    for Gaussian data of scale c leaves c / sqrt(c^2 + r^2) of that at the end: per unit of log r, relative to c, the
    end moves by e r / sqrt(c^2 + r^2), whose integral is asinh(r / c). Here the mean over the scales of
    `entropic_clock`, for ratios up to `HIGHEST_RATIO`; it falls to 0 at no noise.
    """
    scales = shift * np.geomspace(*CLOCK_SCALES, CLOCK_POINTS)
    return np.arcsinh(capped_ratio(angles)[:, None] / scales).mean(axis=1)


def capped_ratio(angles: np.ndarray) -> np.ndarray:
    """Noise-to-signal ratios, at most `HIGHEST_RATIO`."""
    return np.tan(np.minimum(angles, np.arctan(HIGHEST_RATIO)))


def guidance_stretch(guidance_scale: float) -> float:
    """By how much wider guidance makes data look.

    At much noise a guided clean prediction overshoots the mean of what is asked for by the factor `guidance_scale`,
    and comes back as the noise falls, to data as wide as ever: between the two, the geometric mean.
    """
    return max(abs(guidance_scale), 1.0) ** GUIDANCE_POWER


def step_clock(angles: np.ndarray, start: float, shift: float = 1.0, predicts_noise: bool = False) -> np.ndarray:
    """Time by which steps are equal, at `angles` of a process that begins at the angle `start`: from 0 to 1 at none.

    Entropic time; where the network predicts noise, whose errors in the clean prediction grow as the noise-to-signal
    ratio, with a part of `error_clock`. Errors of other predictions do not grow, and entropic time suits them.
    """
    begin = entropic_clock(np.array([start]), shift)
    times = (entropic_clock(angles, shift) - begin) / (1.0 - begin)
    if not predicts_noise:
        return times
    return (1.0 - ERROR_PART) * times + ERROR_PART * (
        1.0 - error_clock(angles, shift) / error_clock(np.array([start]), shift)
    )


def measured_clock(angles: np.ndarray, noise_errors: np.ndarray) -> np.ndarray:
    """Entropic time at descending `angles`, from the mean squared error of the noise prediction measured at each.

    By the I-MMSE relation that error m is the information gained per unit of log-SNR; sqrt(m (1 - m)) is the same with
    an integral that is finite at both ends, and gives `entropic_clock` for Gaussian data. From 0 to 1.
    """
    errors = np.clip(noise_errors, 0.0, 1.0)
    # d(log s) = d(angle) / (sin cos); at both ends, where that is 0 / 0, the clock runs as beside them.
    slopes = np.sin(angles) * np.cos(angles)
    inside = slopes > 1e-4
    rates = np.sqrt(errors * (1.0 - errors))[inside] / slopes[inside] + 1e-6
    rates = np.interp(-angles, -angles[inside], rates)
    times = np.concatenate([[0.0], np.cumsum(0.5 * (rates[1:] + rates[:-1]) * -np.diff(angles))])
    return times / times[-1]


def check_clock(clock: dict[str, list[float]] | None) -> None:
    """Raises `ValueError` unless `clock` is None or has descending `angles` and ascending `times`, as many."""
    if clock is None:
        return
    try:
        angles, times = (np.asarray(clock[key], dtype=np.float64) for key in ("angles", "times"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`clock` must have `angles` and `times`, lists of numbers, got {clock!r:.80}; calibrate again, or pass "
            "None."
        ) from error
    fine = angles.ndim == 1 and angles.shape == times.shape and angles.size > 1
    if (
        not fine
        or not np.isfinite([angles, times]).all()
        or (np.diff(angles) >= 0).any()
        or (np.diff(times) < 0).any()
    ):
        raise ValueError(
            f"`clock` must have descending `angles` and ascending `times`, as many, got {angles.size} and "
            f"{times.size} numbers; calibrate again, or pass None."
        )


def equal_steps(
    steps: int, angles: np.ndarray, times: np.ndarray, end: float, last_part: float = LAST_PART
) -> np.ndarray:
    """`steps` descending angles, the first of `angles` and others between which a clock advances alike.

    `times`: of the clock at descending `angles`, ending at the time of no noise; `end`: the angle that no step is
    below. The last step, from the last of these angles to no noise, is `last_part` as long as the others.
    """
    last = last_part if steps > 1 else 1.0
    others = (steps - last) / max(steps - 1, 1)
    return parted_steps([*[others] * (steps - 1), last], angles, times, end)


def parted_steps(parts: Sequence[float], angles: np.ndarray, times: np.ndarray, end: float) -> np.ndarray:
    """As `equal_steps`, for steps of which a clock advances by `parts`, relative to each other: one angle for each."""
    passed = np.cumsum([0.0, *parts])[:-1] / sum(parts) * (times[-1] - times[0])
    most = float(np.interp(-end, -angles, times)) - times[0]
    chosen = np.interp(times[0] + passed * min(1.0, most / max(passed[-1], 1e-30)), times, angles)
    chosen[0] = angles[0]
    return chosen


def entropic_angles(
    steps: int, start: float, end: float, shift: float = 1.0, predicts_noise: bool = False, guidance_scale: float = 1.0
) -> np.ndarray:
    """`steps` descending angles, from `start` and not below `end`, between which `step_clock` advances alike; from
    `LATE_STARTS` on where that is later."""
    begin = start
    if steps in LATE_STARTS:
        angles = np.linspace(start, 0.0, CLOCK_ANGLES)
        begun = entropic_clock(angles, shift) >= LATE_STARTS[steps] / max(abs(guidance_scale), 1.0)
        begin = angles[begun.argmax()]
    angles = np.linspace(begin, 0.0, CLOCK_ANGLES)
    times = step_clock(angles, start, shift, predicts_noise)
    if predicts_noise and steps == len(NOISE_PARTS_OF_FOUR):
        return parted_steps(NOISE_PARTS_OF_FOUR, angles, times, end)
    return equal_steps(steps, angles, times, end, LAST_PART if steps > FEW_STEPS else LAST_PART_OF_FEW)
