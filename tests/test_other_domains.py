"""The examples beyond video: their data is what it says, their networks learn, and all schedulers are compared."""

import dataclasses
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch


SCRIPT = Path(__file__).parent.parent / "scripts" / "other_domains.py"
NAMES = ("series", "heights", "field")
SHAPES = {"series": (3, 64), "heights": (1, 32, 32), "field": (3, 24, 24)}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("other_domains", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["other_domains"] = module  # (dataclasses look their module up)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["other_domains"]


@pytest.fixture(scope="module")
def train_briefly(script: ModuleType):
    """Trains a domain's network for 30 updates, once."""
    made = {}

    def trained(name: str):
        if name not in made:
            made[name] = script.train(script.DOMAINS[name], 60.0, most_updates=30, pool=256)
        return made[name]

    return trained


@pytest.mark.parametrize("name", NAMES)
def test_data_depends_on_the_seed_only(script: ModuleType, name: str):
    generate = script.DOMAINS[name].generate
    data = generate(5, 3)
    assert data.shape == (5, *SHAPES[name])
    assert data.dtype == torch.float32
    assert torch.isfinite(data).all()
    assert torch.equal(data, generate(5, 3))
    assert not torch.equal(data, generate(5, 4))


def test_returns_have_the_kurtosis_memory_and_correlation_of_their_model(script: ModuleType):
    """The moments of log-normal volatility are known (Taylor 1986)."""
    returns = script.market_series(20_000, 0)
    variance = script.VOLATILITY_SPREAD**2
    square = 2.0 / math.pi  # (of the mean of the absolute value of a normal number)
    covariances = [square * math.expm1(variance / 4 * script.VOLATILITY_MEMORY**lag) for lag in range(1, 6)]
    assert script.kurtosis(returns) == pytest.approx(3.0 * math.exp(variance), rel=0.05)
    expected = np.mean(covariances) / (math.exp(variance / 4) - square)
    assert script.volatility_memory(returns) == pytest.approx(expected, rel=0.05)
    assert float(returns.std()) == pytest.approx(script.DAILY_DEVIATION, rel=0.02)
    correlation = np.corrcoef(returns.transpose(0, 1).reshape(3, -1).numpy())
    np.testing.assert_allclose(correlation[np.triu_indices(3, 1)], script.ASSET_CORRELATION, atol=0.02)


def test_height_maps_have_the_slope_they_are_made_with_and_ridges(script: ModuleType):
    hills = script.height_maps(500, 0, ridges=0.0)
    assert script.spectral_slope(hills) == pytest.approx(-script.HEIGHT_EXPONENT, abs=0.15)
    crests = script.height_maps(500, 0, ridges=1.0)
    skewness = [float(((maps - maps.mean()) ** 3).mean() / maps.std() ** 3) for maps in (hills, crests)]
    assert abs(skewness[0]) < 0.1
    assert skewness[1] < -0.5


def test_fields_solve_their_equation(script: ModuleType):
    fields = script.tracer_fields(50, 0).double()  # (of constant mass; noise is no solution)
    assert script.transport_residual(fields) < 1e-5
    mass = fields.mean(dim=(2, 3))
    torch.testing.assert_close(mass[:, 2], mass[:, 0], rtol=1e-5, atol=0.0)
    assert float(fields.min()) > -1e-3
    assert script.transport_residual(torch.randn(50, 3, 24, 24)) > 1.0


def test_puffs_move_with_the_wind(script: ModuleType):
    """The centre of a single puff, on the torus, is the phase of the first wave."""
    field = script.tracer_fields(50, 0).double()
    rows = torch.fft.fft2(field)[:, :, 1, 0].angle()
    columns = torch.fft.fft2(field)[:, :, 0, 1].angle()
    for phases, velocity in zip((rows, columns), script.FIELD_VELOCITY, strict=True):
        moved = torch.remainder((phases[:, 0] - phases[:, 1]) / (2 * math.pi), 1.0)
        torch.testing.assert_close(moved, torch.full_like(moved, velocity), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_short_training_lowers_the_loss(train_briefly, name: str):
    losses = train_briefly(name).losses
    assert len(losses) == 30
    assert np.mean(losses[-10:]) < 0.97 * np.mean(losses[:5])


def test_training_refuses_no_time(script: ModuleType):
    with pytest.raises(ValueError, match="`seconds` must be greater than 0, got 0"):
        script.train(script.DOMAINS["series"], 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_all_schedulers_get_finite_figures(script: ModuleType, train_briefly, name: str):
    domain, trained = script.DOMAINS[name], train_briefly(name)
    comparison = script.compare(
        domain, trained, steps=(3, 4), samples=2, reference_steps=5, noises=4, held_out=1, teacher_steps=12
    )
    schedulers = {"StaleScheduler", script.CALIBRATED, *script.stock_schedulers(domain.prediction_type)}
    assert set(comparison.figures) == {"real data", "reference", *schedulers}
    for scheduler in schedulers:
        figures = comparison.figures[scheduler]
        assert list(figures) == ["error", *domain.statistics]
        assert np.isfinite([*figures.values()]).all()
        assert 0.0 < figures["error"][1] < 1.0
    assert comparison.samples.shape == (2, *SHAPES[name])
    assert script.markdown(comparison).count("\n") == 2 + len(schedulers) + 1


@pytest.mark.parametrize("prediction_type", ["v_prediction", "flow_prediction"])
def test_the_reference_is_exact_for_gaussian_data(script: ModuleType, prediction_type: str):
    """White data of deviation c: the best prediction is known, and the path of a noise ends at c times the noise."""
    scheduler, deviation = script.StaleScheduler(prediction_type=prediction_type), 0.5

    def network(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        alpha, sigma = scheduler.noise_levels(timestep)
        scale = (alpha * deviation) ** 2 + sigma**2
        clean, noise = alpha * deviation**2 / scale * sample, sigma / scale * sample
        return noise - clean if scheduler.is_flow else alpha * noise - sigma * clean

    noise = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    exact = script.reference(scheduler, network, noise, 50)
    torch.testing.assert_close(exact, deviation * noise, rtol=3e-3, atol=0.0)


def test_the_command_line_prints_a_table_and_draws(script: ModuleType, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setitem(script.DOMAINS, "series", dataclasses.replace(script.DOMAINS["series"], samples=8))
    has_matplotlib = importlib.util.find_spec("matplotlib") is not None
    script.main(["series", "--seconds", "2", *(["--output", str(tmp_path)] if has_matplotlib else [])])
    printed = capsys.readouterr().out
    assert "| 5, 10, 20 steps | error | kurtosis | autocorrelation |" in printed
    assert f"| {script.CALIBRATED} |" in printed
    assert (tmp_path / "series.png").is_file() == has_matplotlib
