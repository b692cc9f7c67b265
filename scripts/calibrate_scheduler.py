"""Calibrates a checkpoint's scheduler: `python scripts/calibrate_scheduler.py CHECKPOINT --steps 5,8,10 --guidance 3`.

The same as `stale-diffusion calibrate`, for a clone that is not installed.
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from diffusers_stale.cli import app


if __name__ == "__main__":
    app(["calibrate", *sys.argv[1:]], prog_name="calibrate_scheduler")
