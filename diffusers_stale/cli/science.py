"""`contamination`, `drift` and `verify`: what of a test set has been trained on, how errors add up while sampling, and
whether a checkpoint is what it says.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusers_stale.cli.app import app, silence_loading, tell, user_errors
from diffusers_stale.cli.options import Seed


if TYPE_CHECKING:
    from diffusers_stale.evaluation.near_duplicates import DuplicateReport, Fingerprints
    from diffusers_stale.training.run_clips import RunClips


SHOWN_MATCHES = 10


@app.command()
def contamination(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_DATA...",
            help="A run folder: its test set against its training set. Or two sets, TEST and TRAIN: a run folder's "
            "training set, a folder of pictures, videos and light fields, or barnyard:SEED:COUNT.",
        ),
    ],
    stage: Annotated[str | None, typer.Option(help="Of a run: image or movie, by default the last trained.")] = None,
    members: Annotated[
        int, typer.Option(min=0, help="Samples of each kind to ask the network's losses for; 0 to leave it out.")
    ] = 200,
    draws: Annotated[int, typer.Option(min=1, help="Noise levels that each loss is averaged over.")] = 8,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A .json file for everything found.")] = None,
) -> None:
    """Search a test set for what has been [bold]trained on[/bold]: near-duplicates, and memory of the network."""
    with user_errors():
        from diffusers_stale.training.run_clips import is_run, open_run, training_pictures

        if len(sources) > 2 or (len(sources) == 1 and not is_run(sources[0])):
            raise ValueError(f"Give one run folder, or two sets (TEST TRAIN), got {' '.join(sources)}.")
        silence_loading()
        found: dict[str, Any] = {}
        if len(sources) == 1:
            from diffusers_stale.evaluation.near_duplicates import fingerprints
            from diffusers_stale.training.run_clips import test_pictures

            run = open_run(Path(sources[0]), stage)
            report = search(fingerprints(test_pictures(run)), fingerprints(training_pictures(run)))
            found["recorded"] = run.split.provenance()
            tell("recorded leak", f"{run.split.count} of {run.config.test_scenes} test scenes")
            if members:
                found["membership"] = ask_members(run, members, draws)
        else:
            report = search(*(fingerprints_of(source, stage) for source in sources))
        found["near_duplicates"] = asdict(report)
        if output is not None:
            output.write_text(json.dumps(found, indent=1) + "\n")
            typer.echo(f"Wrote {output}")


def fingerprints_of(source: str, stage: str | None) -> "Fingerprints":
    from diffusers_stale.evaluation.near_duplicates import fingerprints
    from diffusers_stale.evaluation.picture_sets import pictures_of
    from diffusers_stale.training.run_clips import is_run, open_run, training_pictures

    return fingerprints(training_pictures(open_run(Path(source), stage)) if is_run(source) else pictures_of(source))


def search(tested: "Fingerprints", indexed: "Fingerprints") -> "DuplicateReport":
    """Searches, and tells what was found."""
    from diffusers_stale.evaluation.near_duplicates import find_near_duplicates

    report = find_near_duplicates(tested, indexed)
    count = len(report.matches)
    tell("near-duplicates", f"{count} of {report.tested} tested pictures ({report.share:.2%})")
    tell(
        "searched",
        f"{report.indexed} pictures, by {report.compared} comparisons; pairs are {report.tested * report.indexed}",
    )
    for match in report.matches[:SHOWN_MATCHES]:
        typer.echo(
            f"  {match.name} = {match.other}, {match.differing_bits} of 256 bits differ, "
            f"similarity {match.similarity:.3f}"
        )
    if count > SHOWN_MATCHES:
        typer.echo(f"  and {count - SHOWN_MATCHES} more (--output FILE.json has all)")
    return report


def ask_members(run: "RunClips", count: int, draws: int) -> dict[str, Any]:
    """Asks the network's losses, tells what they betray."""
    from diffusers_stale.evaluation.membership import denoising_losses, membership
    from diffusers_stale.training.run_clips import RunNetwork, members_and_others

    network = RunNetwork(run)
    trained, others = members_and_others(run, count)
    losses = [
        denoising_losses(network.predict, network.scheduler, *network.inputs(request, numbers), draws=draws)
        for request, numbers in ((run.request, trained), (run.test_request, others))
    ]
    result = membership(*losses)
    verdict = "the network remembers" if result.tells_apart else "no memory is seen"
    tell(
        "membership by loss",
        f"AUC {result.auc:.3f} (95 %: {result.low:.3f} to {result.high:.3f}), {result.members} against "
        f"{result.others}: {verdict}",
    )
    return asdict(result)


@app.command()
def drift(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder with a trained image or movie stage.")],
    stage: Annotated[str | None, typer.Option(help="image or movie, by default the last trained.")] = None,
    samples: Annotated[int, typer.Option(min=2, help="Test scenes, and trajectories.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of a trajectory.")] = 20,
    seed: Seed = 0,
) -> None:
    """Measure how [bold]errors accumulate[/bold] from step to step, and plot it in the run folder."""
    with user_errors():
        from diffusers_stale.evaluation.error_accumulation import report_accumulation, write_accumulation
        from diffusers_stale.training.run_clips import RunNetwork, open_run

        silence_loading()
        opened = open_run(run, stage)
        network = RunNetwork(opened)
        inputs = network.inputs(opened.test_request, list(range(min(samples, opened.config.test_scenes))))
        report = report_accumulation(network.predict, network.scheduler, *inputs, steps=steps, seed=seed)
        for name, found in (("as it is", report.plain), (f"noise / {report.scaled.scale:g}", report.scaled)):
            tell(name, f"excess of predicted noise {found.final:+.2%} in the last step, {found.mean:.2%} on average")
        for path in write_accumulation(report, run / f"{opened.stage}_run"):
            typer.echo(f"Wrote {path}")


@app.command()
def verify(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint: name, folder or Hub id.")],
    steps: Annotated[
        int | None,
        typer.Option(
            min=0, help="First steps to train again, of a stage in a run folder; by default 2 of small runs."
        ),
    ] = None,
) -> None:
    """Check a checkpoint's [bold]hashes[/bold] and, where it can be done, train its first steps again to the bit."""
    with user_errors():
        from diffusers_stale.checkpoint_origin import EXPORTED, check_no_run, read_origin
        from diffusers_stale.hub import find_checkpoint
        from diffusers_stale.manifest import manifest_problems

        silence_loading()
        folder = find_checkpoint(checkpoint)
        check_no_run(folder)
        problems = manifest_problems(folder)
        typer.echo("\n".join(problems) or "All files are as they were written.")
        report = read_origin(folder).popitem()[1] if (folder / EXPORTED).is_file() else {}
        if "provenance" in report:
            from diffusers_stale.training.verification import verify_first_steps, verify_parents

            verdict = verify_parents(report, folder.parent)
            wanted = (SMALL_STEPS if is_small(report) else 0) if steps is None else steps
            if wanted and not verdict.differs:
                verdict += verify_first_steps(folder, wanted)
            for sentences, mark in ((verdict.agrees, ""), (verdict.unchecked, "not checked: "), (verdict.differs, "")):
                for sentence in sentences:
                    typer.echo(f"{mark}{sentence}")
            problems += verdict.differs
        else:
            typer.echo("not checked: how it was trained; that can be done in its run folder only.")
        if problems:
            typer.echo("error: this is not what was written, see above; copy or train it again.", err=True)
            raise typer.Exit(1)


SMALL_STEPS, SMALL_CLIPS = 2, 1000


def is_small(report: dict[str, Any]) -> bool:
    """Whether the data of a run is rendered again in a moment."""
    counts = ("pool_frames", "static_clips", "moving_clips", "single_view_clips")
    return sum(report["config"].get(name, 0) for name in counts) <= SMALL_CLIPS
