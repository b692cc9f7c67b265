"""Puts a trained checkpoint where it ships from, with a card that says what made it and how it does.

    python scripts/ship_checkpoint.py runs/barnyard --evaluation runs/barnyard/report_time runs/barnyard/report_views

A stage that was started from the weights of a shipped checkpoint (`start_from`) carries on its provenance.

Copies RUN/movie to diffusers_stale/checkpoints/NAME, with the training reports of all stages as provenance.json and
the card as README.md; the card goes to model_card.md too. It shows the best, typical and worst movies of every
evaluation, and the curves of --scaling, a folder that scripts/benchmarks/scaling.py wrote.
"""

import argparse
import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from diffusers_stale.checkpoint_origin import without_repeats
from diffusers_stale.checkpoints import ROOT as CHECKPOINTS
from diffusers_stale.denoising import NEGATIVE_CONDITIONS
from diffusers_stale.model_card import PICTURES, CardPicture
from diffusers_stale.sharing import write_shared
from diffusers_stale.training.reports import collect_reports


ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder, in which all stages were trained")
    parser.add_argument("--name", default="barnyard")
    parser.add_argument(
        "--evaluation", type=Path, nargs="*", default=[], help="folders that scripts/evaluate.py wrote"
    )
    parser.add_argument("--scaling", type=Path, help="folder that scripts/benchmarks/scaling.py wrote")
    for name in NEGATIVE_CONDITIONS:
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=float,
            help="what its pipeline takes by default, see StaleDiffusionPipeline",
        )
    parser.add_argument("--about", type=Path, default=ROOT / "docs" / "about_barnyard.md", help="text of the card")
    return parser.parse_args()


def card_pictures(evaluations: list[Path], scaling: Path | None) -> list[CardPicture]:
    """What the card shows of reports that have a ranking, and of the curves over compute."""
    pictures = []
    for folder in evaluations:
        settings = json.loads((folder / "report.json").read_text())["settings"]
        grid = f"{settings['view_rows']}x{settings['view_cols']} views, {settings['frames']} frames"
        caption = (
            f"Movies of {grid} (the middle view and frame), best, middle and worst eight by the classifier's "
            "confidence in what their sentences state, one row each; in red what it sees instead."
        )
        if (folder / "ranked.png").is_file():
            pictures.append(CardPicture(folder / "ranked.png", f"{folder.name}.png", caption))
    if scaling is not None:
        told = "The image stage from nothing at several budgets: error and obedience over processor time."
        pictures.append(CardPicture(scaling / "scaling.png", "scaling.png", told))
    return pictures


def main() -> int:
    arguments = parse_arguments()
    target = CHECKPOINTS / arguments.name
    try:
        reports = collect_reports(arguments.run)
        for report in reports.values():
            if (earlier := report["config"].get("start_from")) is not None:
                report["started_from"] = json.loads((Path(earlier) / "provenance.json").read_text())
        reports = without_repeats(reports)
        evaluations = [json.loads((folder / "report.json").read_text()) for folder in arguments.evaluation]
        about = arguments.about.read_text()
        pictures = card_pictures(arguments.evaluation, arguments.scaling)
        given = {f"default_{name}": getattr(arguments, name) for name in NEGATIVE_CONDITIONS}
        defaults = {name: value for name, value in given.items() if value is not None}
        card = write_shared(
            arguments.run / "movie", target, arguments.name, reports, about, evaluations, pictures, defaults
        )
        beside = (target / PICTURES).relative_to(ROOT).as_posix()
        (ROOT / "model_card.md").write_text(card.replace(f"]({PICTURES}/", f"]({beside}/"))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
