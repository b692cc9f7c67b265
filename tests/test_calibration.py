"""Calibration: it retraces its teacher in fewer steps, survives saving, and is refused where it does not fit."""

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from diffusers_stale import calibration
from diffusers_stale.calibration import TEACHER_STALE, cost
from diffusers_stale.calibration_record import Calibration, sample_weights_of
from diffusers_stale.cli.inspection import calibration_prompts
from diffusers_stale.cli.options import parse_counts
from diffusers_stale.entropic_steps import entropic_clock, measured_clock
from diffusers_stale.evaluation.exact_problems import EXACT_PROBLEMS
from diffusers_stale.evaluation.scheduler_plot import load_scheduler, noise_levels_of, plot_scheduler, weights_of
from diffusers_stale.pipeline_calibration import CalibrationSettings, calibrate_pipeline
from diffusers_stale.pipeline_stale import StaleDiffusionPipeline
from diffusers_stale.robust_fit import robust_fit
from diffusers_stale.scheduling_stale import StaleScheduler


STEPS = (5, 8)
QUICK = {"noises": 12, "held_out": 6, "teacher_steps": 48, "batch_size": 64, "progress_bar": False}


class Network:
    """The perfect network of an exact problem, which counts the samples it is asked for."""

    def __init__(self, scheduler: StaleScheduler, kind: str):
        self.scheduler, self.problem, self.asked = scheduler, EXACT_PROBLEMS[kind](11), 0

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.asked += len(sample)
        alpha, sigma = (float(level) for level in self.scheduler.noise_levels(timestep.reshape(1)))
        clean = self.problem.clean(sample, alpha, sigma)
        if self.scheduler.is_flow:
            return (sample - clean) / sigma
        return (alpha * sample - clean) / sigma

    def end(self, scheduler: StaleScheduler, noise: torch.Tensor, steps: int) -> torch.Tensor:
        scheduler.set_timesteps(steps)
        sample = noise
        for timestep in scheduler.timesteps:
            sample = scheduler.step(self(sample, timestep), timestep, sample).prev_sample
        return sample


def calibrated(kind: str = "power_law", **options: object) -> tuple[StaleScheduler, Network]:
    scheduler = StaleScheduler(**options)
    network = Network(scheduler, kind)
    shape = (network.problem.dimensions,)
    scheduler.calibrate(network, shape, STEPS, torch.Generator().manual_seed(0), **QUICK)
    return scheduler, network


@pytest.mark.parametrize("kind", ["power_law", "low_rank", "separated"])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "flow_prediction"])
def test_a_calibrated_run_ends_nearer_to_the_exact_path_on_noise_never_seen(kind, prediction_type):
    scheduler, network = calibrated(kind, prediction_type=prediction_type)
    noise = torch.randn(12, network.problem.dimensions, generator=torch.Generator().manual_seed(99))
    exact = network.problem.endpoint(noise, math.pi / 2, steps=200)
    plain = StaleScheduler(prediction_type=prediction_type)
    ratios = []
    for steps in STEPS:
        errors = [
            float((network.end(each, noise, steps) - exact).square().mean(dim=1).sqrt().median())
            for each in (scheduler, plain)
        ]
        ratios.append(errors[0] / errors[1])
    assert math.prod(ratios) ** (1 / len(ratios)) < 0.6


def test_what_the_fit_does_not_better_stays_uncalibrated():
    """The network is wild on the noises to fit on, and calm on those held out."""
    scheduler = StaleScheduler(prediction_type="sample")
    calls = torch.Generator().manual_seed(1)

    def network(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        wild = torch.randn(sample.shape, generator=calls)
        wild[-6:] = 0.0
        return torch.tanh(2.0 * sample) + 10.0 * wild

    scheduler.calibrate(network, (4,), STEPS, torch.Generator().manual_seed(0), **(QUICK | {"noises": 4}))
    for steps, entry in scheduler.calibration.entries.items():
        assert entry.error == entry.uncalibrated_error
        assert entry.timesteps == pytest.approx(scheduler.uncalibrated_plan(steps).timesteps)
        assert not any(entry.sample_weights)


def test_the_cost_is_what_was_said():
    scheduler, network = calibrated()
    assert network.asked == cost(STEPS, QUICK["noises"], QUICK["held_out"], QUICK["teacher_steps"])
    assert scheduler.calibration.provenance["noises"] == QUICK["noises"]


def test_held_out_errors_foretell_those_of_new_noise():
    scheduler, network = calibrated("power_law")
    noise = torch.randn(24, network.problem.dimensions, generator=torch.Generator().manual_seed(5))
    exact = network.problem.endpoint(noise, math.pi / 2, steps=200)
    for steps, entry in scheduler.calibration.entries.items():
        error = (
            float((network.end(scheduler, noise, steps) - exact).square().mean().sqrt()) / network.problem.deviation
        )
        assert 0.2 < error / entry.error < 5.0


def test_saved_then_loaded_takes_the_same_steps(tmp_path):
    scheduler, network = calibrated()
    scheduler.save_pretrained(tmp_path)
    again = StaleScheduler.from_pretrained(tmp_path)
    noise = torch.randn(2, network.problem.dimensions)
    for steps in (5, 8, 11):  # (the last one by the calibrated clock alone)
        assert torch.equal(network.end(again, noise, steps), network.end(scheduler, noise, steps))
    plain = StaleScheduler.from_pretrained(tmp_path, calibration=None, clock=None)
    plain.set_timesteps(5)
    usual = StaleScheduler()
    usual.set_timesteps(5)
    assert torch.equal(plain.timesteps, usual.timesteps)


def test_memory_is_bounded_by_max_stale():
    scheduler, network = calibrated(max_stale=1)
    assert all(len(weights) <= 2 for entry in scheduler.calibration.entries.values() for weights in entry.weights)
    scheduler, network = calibrated()
    kept, plain = [], scheduler.step

    def step(*arguments, **options):
        result = plain(*arguments, **options)
        kept.append(len(scheduler._clean))
        return result

    scheduler.step = step
    network.end(scheduler, torch.randn(1, network.problem.dimensions), 8)
    assert 2 < max(kept) <= 8


def test_a_bound_on_memory_holds_for_a_calibration_that_was_made_without(tmp_path):
    scheduler, network = calibrated()
    scheduler.save_pretrained(tmp_path)
    for most in (1, 8):
        bounded = StaleScheduler.from_pretrained(tmp_path, max_stale=most)
        bounded.set_timesteps(8)
        sample = torch.randn(1, network.problem.dimensions)
        for timestep in bounded.timesteps:
            sample = bounded.step(network(sample, timestep), timestep, sample).prev_sample
            assert len(bounded._clean) <= most + 1
        assert (bounded._entry is None) == (most == 1)


def test_entered_in_the_middle_a_calibrated_run_has_no_weights_for_what_it_has_not_seen():
    scheduler, network = calibrated()
    start = torch.randn(1, network.problem.dimensions, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(3)
    plain, ends = StaleScheduler(), []
    plain.set_timesteps(timesteps=scheduler.timesteps[3:].tolist())
    for each, timesteps in ((scheduler, scheduler.timesteps[3:]), (plain, plain.timesteps)):
        sample = start
        for timestep in timesteps:
            sample = each.step(network(sample, timestep), timestep, sample).prev_sample
        ends.append(sample)
    assert torch.allclose(*ends, atol=1e-5)


def test_errors_are_those_of_noise_that_was_held_out():
    """Measured again: by runs of the calibrated scheduler from the same noise, against the teacher's."""
    scheduler, network = calibrated()
    count, draw = QUICK["noises"] + QUICK["held_out"], torch.Generator().manual_seed(0)
    noise = torch.randn(count, network.problem.dimensions, generator=draw)
    teacher = network.end(StaleScheduler(max_stale=TEACHER_STALE), noise, QUICK["teacher_steps"])
    deviation = float((teacher - teacher.mean(dim=0)).square().mean().sqrt())
    for steps, entry in scheduler.calibration.entries.items():
        for each, error in ((scheduler, entry.error), (StaleScheduler(), entry.uncalibrated_error)):
            missed = network.end(each, noise[QUICK["noises"] :], steps) - teacher[QUICK["noises"] :]
            assert float(missed.square().mean().sqrt()) / deviation == pytest.approx(error, rel=1e-3)


def test_weights_are_fitted_on_no_noise_that_is_held_out(monkeypatch):
    seen = set()

    def fit(combined: list[torch.Tensor], wanted: torch.Tensor) -> np.ndarray:
        seen.update(len(part) for part in [*combined, wanted])
        return robust_fit(combined, wanted)

    monkeypatch.setattr(calibration, "robust_fit", fit)
    calibrated()
    assert seen == {QUICK["noises"]}


def test_a_few_wild_noises_do_not_rule_the_fit():
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 24, 8, generator=draw)
    wanted = 2.0 * first - second
    wanted[:2] = 30.0 * first[:2]
    assert robust_fit([first, second], wanted) == pytest.approx([2.0, -1.0], abs=0.3)


@pytest.mark.parametrize(("uncalibrated_miss", "chosen"), [(0.2, 1), (0.05, 2)])
def test_one_wild_noise_does_not_choose_the_plan(monkeypatch, uncalibrated_miss, chosen):
    """The second plan is good but for one noise, the third as bad for all; all others are useless. But no plan is
    chosen whose root mean square is above that of the uncalibrated run."""
    misses = [[0.5] * 8, [0.01] * 7 + [0.3], [0.04] * 8, [0.5] * 8, [0.5] * 8]
    plans = iter(misses)

    def ends(teacher: Any, distances: list[float]) -> torch.Tensor:
        return teacher.end[-8:] + teacher.deviation * torch.tensor(distances)[:, None]

    def fit(scheduler: StaleScheduler, network: Any, teacher: Any, *others: Any) -> tuple:
        plan = next(plans)
        return [900.0, 100.0], [[1.0], [1.0]], [float(misses.index(plan))] * 2, ends(teacher, plan)

    def uncalibrated(scheduler: StaleScheduler, network: Any, teacher: Any, *others: Any) -> tuple:
        return [900.0, 100.0], [[1.0], [1.0]], [9.0, 9.0], ends(teacher, [uncalibrated_miss] * 8)

    monkeypatch.setattr(calibration, "_fit", fit)
    monkeypatch.setattr(calibration, "_uncalibrated", uncalibrated)
    scheduler = StaleScheduler()
    scheduler.calibrate(lambda sample, _: sample, (4,), [2], noises=8, held_out=8, progress_bar=False)
    assert scheduler.calibration.entries[2].sample_weights == [float(chosen)] * 2


def test_a_teacher_is_spaced_for_the_guidance_of_its_model():
    times = []
    for options, provenance in (({}, {}), ({}, {"guidance_scale": 9.0}), ({"guidance_scale": 9.0}, None)):
        scheduler = StaleScheduler(**options)
        draw = torch.Generator().manual_seed(0)
        scheduler.calibrate(lambda x, t: torch.tanh(x), (3,), (5,), draw, **QUICK, provenance=provenance)
        times.append(scheduler.calibration.entries[5].timesteps)
    assert times[1] == times[2] != times[0]


def test_conditions_follow_their_noises():
    seen = set()

    def network(sample: torch.Tensor, timestep: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        seen.update(told.tolist())
        assert len(told) == len(sample)
        return -told[:, None].expand_as(sample)

    scheduler = StaleScheduler(prediction_type="v_prediction")
    conditions = torch.arange(18.0)
    scheduler.calibrate(network, (3,), (5,), torch.Generator().manual_seed(0), **QUICK, conditions=conditions)
    assert seen == set(range(18))
    with pytest.raises(ValueError, match="must be 18"):
        scheduler.calibrate(network, (3,), (5,), **QUICK, conditions=conditions[:4])


def test_it_is_left_aside_where_guidance_or_checkpoint_differ_much(caplog):
    scheduler, network = calibrated()
    layer = torch.nn.Linear(8, 8)
    found = copy.deepcopy(scheduler.config.calibration)
    found["provenance"] |= {"guidance_scale": 3.0, "weights": sample_weights_of(layer)}
    scheduler = StaleScheduler(calibration=found)
    other = torch.nn.Linear(8, 8)
    entry = np.float32(scheduler.calibration.entries[5].timesteps)

    def used() -> bool:
        scheduler.set_timesteps(5)
        return bool(np.allclose(scheduler.timesteps.numpy(), entry))

    assert scheduler.check_calibration(3.2, sample_weights_of(layer.half()))
    assert used()
    assert not caplog.records
    assert not scheduler.check_calibration(7.5, None)
    assert "guidance_scale=3.0, not 7.5: it is left aside" in caplog.text
    assert not used()
    assert not scheduler.check_calibration(3.0, sample_weights_of(other))
    assert "another checkpoint" in caplog.text
    assert not used()
    assert scheduler.check_calibration(3.0, None)
    assert used()


def test_it_is_left_aside_where_a_flow_is_shifted_otherwise(caplog):
    options = {"prediction_type": "flow_prediction", "use_dynamic_shifting": True}
    scheduler = StaleScheduler(**options)
    scheduler.set_timesteps(STEPS[0], mu=0.5)
    scheduler.calibrate(Network(scheduler, "power_law"), (256,), STEPS, torch.Generator().manual_seed(0), **QUICK)
    assert scheduler.calibration.provenance["shift"] == pytest.approx(math.exp(0.5))
    calibrated_times = scheduler.calibration.entries[STEPS[0]].timesteps
    scheduler.set_timesteps(STEPS[0], mu=0.55)
    assert scheduler.timesteps.tolist() == pytest.approx(calibrated_times)
    assert not caplog.records
    scheduler.set_timesteps(STEPS[0], mu=1.2)
    assert "flows shifted by 1.65, not 3.32: it is left aside" in caplog.text
    plain = StaleScheduler(**options)
    plain.set_timesteps(STEPS[0], mu=1.2)
    assert scheduler.timesteps.tolist() == plain.timesteps.tolist()


def test_it_is_left_aside_where_a_run_says_that_its_guidance_is_another(caplog):
    """Without a pipeline that asks before: what `set_timesteps` is told counts, what it is not told does not."""
    scheduler, _ = calibrated()
    found = copy.deepcopy(scheduler.config.calibration)
    found["provenance"]["guidance_scale"] = 3.0
    scheduler, plain = (StaleScheduler(calibration=each, clock=scheduler.config.clock) for each in (found, None))
    plain = StaleScheduler()
    for guidance, fits in ((None, True), (3.2, True), (9.0, False), (1.0, False), (3.0, True)):
        scheduler.set_timesteps(5, guidance_scale=guidance)
        assert (scheduler._entry is not None) == fits
        assert ("is left aside" in caplog.text) == (not fits)
        caplog.clear()
        if not fits:
            plain.set_timesteps(5, guidance_scale=guidance)
            assert torch.equal(scheduler.timesteps, plain.timesteps)


def test_a_new_calibration_is_in_force_whatever_was_said_of_the_old_one():
    scheduler, network = calibrated()
    shape, draw = (network.problem.dimensions,), torch.Generator().manual_seed(0)
    scheduler.calibration.provenance["guidance_scale"] = 3.0
    assert not scheduler.check_calibration(9.0)
    scheduler.calibrate(network, shape, STEPS, draw, **QUICK, provenance={"guidance_scale": 9.0})
    scheduler.set_timesteps(5)
    assert scheduler._entry is not None


def test_guidance_of_an_earlier_run_is_not_that_of_a_calibration():
    times = []
    for before in (None, 9.0):
        scheduler = StaleScheduler()
        scheduler.set_timesteps(5, guidance_scale=before)
        scheduler.calibrate(lambda x, t: torch.tanh(x), (3,), (5,), torch.Generator().manual_seed(0), **QUICK)
        times.append(scheduler.calibration.entries[5].timesteps)
    assert times[0] == times[1]


def test_the_smallest_number_of_steps_that_will_do():
    scheduler, _ = calibrated()
    errors = {steps: entry.error for steps, entry in scheduler.calibration.entries.items()}
    assert scheduler.suggest_steps(max_error=10.0) == 5
    assert scheduler.suggest_steps(max_error=errors[8]) == (8 if errors[5] > errors[8] else 5)
    with pytest.raises(ValueError, match="`max_error` must be at least"):
        scheduler.suggest_steps(max_error=1e-12)
    with pytest.raises(ValueError, match="needs a calibration"):
        StaleScheduler().suggest_steps()


@pytest.mark.parametrize(
    "harm",
    [
        lambda entry: entry["timesteps"].pop(),
        lambda entry: entry["timesteps"].reverse(),
        lambda entry: entry["timesteps"].__setitem__(0, 5000.0),
        lambda entry: entry["weights"][1].__setitem__(0, float("nan")),
        lambda entry: entry["weights"][0].append(1.0),
        lambda entry: entry.pop("sample_weights"),
        lambda entry: entry.__setitem__("weights", "many"),
        lambda entry: entry.__setitem__("error", None),
        lambda entry: entry.__setitem__("error", "0.1"),
        lambda entry: entry.__setitem__("timesteps", [str(time) for time in entry["timesteps"]]),
        lambda entry: entry["sample_weights"].__setitem__(0, "0"),
    ],
)
def test_entries_that_do_not_fit_are_refused_by_name(harm):
    scheduler, _ = calibrated()
    found = json.loads(json.dumps(scheduler.config.calibration))
    harm(found["entries"]["8"])
    with pytest.raises(ValueError, match="entry '8'"):
        StaleScheduler(calibration=found)


def test_bad_input_says_what_was_expected():
    scheduler = StaleScheduler()

    def broken(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return sample * float("nan")

    with pytest.raises(ValueError, match="not finite"):
        scheduler.calibrate(broken, (3,), STEPS, **QUICK)
    assert scheduler.calibration is None
    for changes in ({"num_inference_steps": ()}, {"num_inference_steps": (0,)}, {"noises": 1}, {"teacher_steps": 9}):
        with pytest.raises(ValueError, match="must be"):
            scheduler.calibrate(broken, (3,), **({"num_inference_steps": STEPS} | QUICK | changes))
    for name in ("many", "5.5", None):
        with pytest.raises(ValueError, match=f"entry {name!r}"):
            Calibration({"entries": {name: {}}}, scheduler.process)
    for data in ({"steps": 3}, {"entries": {}}, [1]):
        with pytest.raises(ValueError, match="`entries`"):
            Calibration(data, scheduler.process)
    flow = StaleScheduler(prediction_type="flow_prediction")
    entry = {"timesteps": [1000.0, 0.0], "weights": [[1.0], [1.0]], "sample_weights": [0.0, 0.0]}
    with pytest.raises(ValueError, match="entry '2' must hold .* above no noise"):
        Calibration({"entries": {"2": entry | {"error": 0.1, "uncalibrated_error": 0.1}}}, flow.process)
    for clock in ({"angles": [1.0, 2.0], "times": [0.0, 1.0]}, {"angles": [1.0]}, {"angles": [], "times": []}):
        with pytest.raises(ValueError, match="`clock` must have"):
            StaleScheduler(clock=clock)
    assert parse_counts("--steps", "8, 5,5") == (5, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_inference_steps": 5}, "must be a list of numbers from 1 to 1000, got 5"),
        ({"num_inference_steps": (5.5,)}, "must be a list of numbers"),
        ({"num_inference_steps": ("5",)}, "must be a list of numbers"),
        ({"shape": 3}, "`shape` and `batch_size`"),
        ({"shape": ()}, "`shape` and `batch_size`"),
        ({"batch_size": 0}, "`shape` and `batch_size`"),
        ({"noises": 4.5}, "`noises` must be"),
        ({"teacher_steps": 48.5}, "`teacher_steps` must be"),
        ({"provenance": {"guidance_scale": "strong"}}, "`provenance` must be"),
        ({"provenance": {"guidance_scale": torch.tensor(3.0)}}, "`provenance` must be"),
        ({"provenance": {"shift": 0.0}}, "`provenance` must be"),
        ({"model": lambda sample, timestep: (sample,)}, r"`model` must return a tensor .* got tuple"),
        ({"model": lambda sample, timestep: sample[:1]}, r"`model` must return a tensor of the shape .*\(1, 3\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_they_cost_anything(changes, message):
    usual = {"model": lambda sample, timestep: sample, "shape": (3,), "num_inference_steps": STEPS} | QUICK
    with pytest.raises(ValueError, match=message):
        StaleScheduler().calibrate(**(usual | changes))


def test_numbers_of_numpy_can_be_saved(tmp_path):
    scheduler = StaleScheduler()
    shape, steps = np.array([3, 2]), np.array([3, 4, 3])
    scheduler.calibrate(lambda x, t: torch.tanh(x), shape, steps, torch.Generator().manual_seed(0), **QUICK)
    scheduler.save_pretrained(tmp_path)
    assert list(StaleScheduler.from_pretrained(tmp_path).calibration.entries) == [3, 4]


@pytest.mark.parametrize("provenance", [None, [1], {"shift": 0}, {"shift": "wide"}, {"weights": [None]}])
def test_a_provenance_that_cannot_be_compared_is_refused(provenance):
    scheduler, _ = calibrated()
    with pytest.raises(ValueError, match="`provenance` must be"):
        StaleScheduler(calibration=scheduler.config.calibration | {"provenance": provenance})


def test_a_clock_measured_on_gaussian_data_is_the_one_that_theory_says():
    """Of scale 1: the error of the noise prediction is 1 / (1 + s^2), the clock 1 - 2/pi atan(s)."""
    angles = np.linspace(math.pi / 2 - 1e-4, 1e-4, 4001)
    times = measured_clock(angles, 1.0 / (1.0 + np.tan(angles) ** 2))
    assert np.allclose(times, 1.0 - 2.0 / math.pi * angles, atol=2e-3)
    assert np.all(np.diff(entropic_clock(angles)) > 0)


def test_a_pipeline_is_calibrated_with_its_prompts_and_guidance(make_components):
    tiny_pipeline = StaleDiffusionPipeline(**{**make_components(), "scheduler": StaleScheduler()})
    settings = CalibrationSettings(
        num_inference_steps=(4,), noises=4, held_out=2, teacher_steps=12, num_frames=2, guidance_scale=2.0
    )
    calibrate_pipeline(tiny_pipeline, ["a horse", "a pig"], settings, progress_bar=False)
    made_for = tiny_pipeline.scheduler.config.calibration["provenance"]
    assert made_for["guidance_scale"] == 2.0
    assert made_for["prompts"] == ["a horse", "a pig"]
    assert len(made_for["weights_sha256"]) == 64
    tiny_pipeline("a horse", view_rows=1, view_cols=1, num_frames=2, num_inference_steps=4, guidance_scale=2.0)
    assert tiny_pipeline.scheduler._entry is not None
    tiny_pipeline("a horse", view_rows=1, view_cols=1, num_frames=2, num_inference_steps=4, guidance_scale=6.0)
    assert tiny_pipeline.scheduler._entry is None
    assert tiny_pipeline.scheduler.guidance_scale == 6.0
    tiny_pipeline("a horse", view_rows=1, view_cols=1, num_frames=2, num_inference_steps=3, guidance_scale=0.0)
    assert tiny_pipeline.scheduler.guidance_scale == 1.0  # (none, that is)
    with pytest.raises(ValueError, match="at least one sentence"):
        calibrate_pipeline(tiny_pipeline, [], settings)


def test_prompts_come_from_a_file_or_from_the_barnyard(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a horse\n\n a pig \n")
    assert calibration_prompts(path) == ["a horse", "a pig"]
    assert len(set(calibration_prompts(None))) > 20
    path.write_text("\n")
    with pytest.raises(ValueError, match="sentence a line"):
        calibration_prompts(path)


def test_the_plot_shows_what_the_scheduler_does(tmp_path):
    scheduler, _ = calibrated()
    scheduler.save_pretrained(tmp_path)
    loaded = load_scheduler(tmp_path)
    for steps in (5, 7):
        levels = noise_levels_of(loaded, steps)
        assert set(levels) == {"StaleScheduler", "Karras", "uniform", "Align Your Steps"}
        assert all(len(ratios) == steps and (np.diff(ratios) < 0).all() for ratios in levels.values())
    assert np.nansum(weights_of(loaded, 7), axis=1) == pytest.approx(np.ones(7))
    drawn = noise_levels_of(StaleScheduler(), 10)["StaleScheduler"]  # (from pure noise on, equal steps)
    assert np.diff(entropic_clock(np.arctan(drawn))) == pytest.approx(np.full(9, 1.0109 / 10), abs=2e-3)
    plot_scheduler(loaded, tmp_path / "plots" / "one.png", 5)
    assert (tmp_path / "plots" / "one.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"\.png"):
        plot_scheduler(loaded, tmp_path / "one.jpeg", 5)
    with pytest.raises(ValueError, match="scheduler_config"):
        load_scheduler(tmp_path / "nowhere")
    for text in ("[1]", "{"):
        (tmp_path / "list.json").write_text(text)
        with pytest.raises(ValueError, match="JSON"):
            load_scheduler(tmp_path / "list.json")


def test_the_plot_of_a_flow_that_is_shifted_by_the_size_of_pictures_is_that_of_the_largest(tmp_path):
    flux = StaleScheduler(prediction_type="flow_prediction", use_dynamic_shifting=True)
    shifted = StaleScheduler(prediction_type="flow_prediction", flow_shift=math.exp(flux.config.max_shift))
    got, expected = (noise_levels_of(each, 5)["StaleScheduler"] for each in (flux, shifted))
    assert got == pytest.approx(expected, rel=1e-6)
    plot_scheduler(flux, tmp_path / "flux.png", 5)


def test_the_plot_shows_no_weights_of_a_calibration_that_is_left_aside():
    scheduler, _ = calibrated()
    bounded = StaleScheduler(calibration=scheduler.config.calibration, max_stale=1)
    assert weights_of(scheduler, 8).shape[1] > 2
    assert weights_of(bounded, 8).shape[1] == 2
