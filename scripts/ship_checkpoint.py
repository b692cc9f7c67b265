"""Puts a trained checkpoint where it ships from, with a card that says what made it and how it does.

    python scripts/ship_checkpoint.py runs/barnyard --evaluation runs/barnyard/report_time runs/barnyard/report_views

A stage that was started from the weights of a shipped checkpoint (`start_from`) carries on its provenance.

Copies RUN/movie to diffusers_stale/checkpoints/NAME, with the training reports of all stages as provenance.json and
the card as README.md; the card goes to model_card.md too.
"""

import argparse
import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from diffusers_stale.checkpoint_origin import without_repeats
from diffusers_stale.checkpoints import ROOT as CHECKPOINTS
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
    parser.add_argument("--about", type=Path, default=ROOT / "docs" / "about_barnyard.md", help="text of the card")
    return parser.parse_args()


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
        card = write_shared(arguments.run / "movie", target, arguments.name, reports, about, evaluations)
        (ROOT / "model_card.md").write_text(card)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
