"""Measures a checkpoint on held-out prompts and writes a report; the same as `stale-diffusion evaluate`.

    python scripts/evaluate.py CHECKPOINT --output FOLDER
    python scripts/evaluate.py CHECKPOINT --output FOLDER --prompts 256 --steps 30 --views 5x5 --frames 16
    python scripts/evaluate.py --compare REPORT_FOLDER barnyard:steps=8 barnyard:steps=8:guidance=2 --output FOLDER

Exit code: 0 when the report was written, 1 when something was wrong; with --strict, 2 when a bar is missed.
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from diffusers_stale.cli import app


if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]], prog_name="evaluate.py")
