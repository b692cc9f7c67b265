"""The way of a trained checkpoint to others: a folder with its card, its provenance and its hashes, and to the Hub."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from diffusers_stale.checkpoint_checks import INDEX
from diffusers_stale.checkpoint_origin import EXPORTED, SHIPPED
from diffusers_stale.hub import HUB_ID
from diffusers_stale.manifest import write_manifest
from diffusers_stale.model_card import PICTURES, CardPicture, model_card


UNTOLD = """\
Trained with [diffusers_stale](https://pypi.org/project/diffusers-stale/): text to 5D light-field movies. Whoever
trained it has not yet said what it is for, what it was trained on, and where it fails."""
"""What a card says where its author has said nothing."""

CLIENT_ERROR = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ in ("HTTPError", "OSError"))
"""What the Hub's HTTP client raises where there is no connection; versions use different clients."""

HUB_ERRORS = (HfHubHTTPError, HFValidationError, CLIENT_ERROR, OSError)


def write_shared(
    source: Path,
    target: Path,
    name: str,
    reports: dict[str, dict[str, Any]],
    about: str = UNTOLD,
    evaluations: Sequence[dict[str, Any]] = (),
    pictures: Sequence[CardPicture] = (),
    defaults: dict[str, float] | None = None,
) -> str:
    """Copies the pipeline in `source` to `target`, which it replaces, with what others need to trust it.

    Args:
        source: an exported movie stage.
        target: the new folder.
        name: of the checkpoint, for its card.
        reports: training reports by stage, for provenance.json.
        about: Markdown that only a person can write.
        evaluations: what runs of `scripts/evaluate.py` wrote to `report.json`.
        pictures: of the card, copied beside it.
        defaults: settings of the pipeline that were found after training, such as `default_negative_baseline`.

    Returns:
        The card, which is README.md there.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(EXPORTED, ".*"))
    if defaults:
        index = target / INDEX
        index.write_text(json.dumps(json.loads(index.read_text()) | defaults, indent=2) + "\n")
    (target / SHIPPED).write_text(json.dumps(reports, indent=1) + "\n")
    card = model_card(name, about, target, reports, evaluations, pictures)
    for picture in pictures:
        (target / PICTURES).mkdir(exist_ok=True)
        shutil.copyfile(picture.source, target / PICTURES / picture.name)
    (target / "README.md").write_text(card, encoding="utf-8")
    write_manifest(target)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return card


def claim_repository(repo: str, private: bool = False) -> None:
    """Makes the model repository `repo` (owner/name) on the Hub, unless it is there.

    Done before training, it shows at once whether sharing will be possible. Raises `ValueError` where it is not.
    """
    if not HUB_ID.fullmatch(repo):
        raise ValueError(f"A repository must be called owner/name, got {repo!r}; for example me/my-barnyard.")
    try:
        HfApi().create_repo(repo, repo_type="model", private=private, exist_ok=True)
    except HUB_ERRORS as error:
        raise ValueError(
            f"{repo} cannot be written to ({_reason(error)}); log in with `hf auth login` and a token that may write."
        ) from error


def push_folder(folder: Path, repo: str, message: str) -> str:
    """Uploads `folder` to the repository `repo` in one commit, whose address is returned; hidden files stay here.

    Raises `ValueError` saying how to try again.
    """
    try:
        commit = HfApi().upload_folder(
            folder_path=folder,
            repo_id=repo,
            repo_type="model",
            commit_message=message,
            ignore_patterns=[".*", "**/.*"],
        )
    except HUB_ERRORS as error:
        raise ValueError(
            f"{folder} could not be uploaded ({_reason(error)}); it is complete, so try `hf upload {repo} {folder}`."
        ) from error
    return str(commit.commit_url)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
