"""Checkpoints that ship with the package: each a folder beside this file, as `save_pretrained` writes it."""

from pathlib import Path


ROOT = Path(__file__).parent
INDEX = "model_index.json"
"""The file by which a folder is known to be a checkpoint."""


def checkpoint_path(name: str = "barnyard") -> Path:
    """Folder of the checkpoint `name`; raises `ValueError` listing those that are there if it is not one of them."""
    names = sorted(path.parent.name for path in ROOT.glob(f"*/{INDEX}"))
    if name not in names:
        raise ValueError(
            f"`name` must be one of the checkpoints that ship with this installation ({', '.join(names) or 'none'}), "
            f"got {name!r}; give the folder or Hub id of any other to `StaleDiffusionPipeline.from_pretrained`."
        )
    return ROOT / name
