"""Starts the Space: `python space/app.py`, or by pushing this folder to a Space of Hugging Face.

python space/app.py --port 7861 --checkpoint runs/barnyard/movie
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any


HERE = Path(__file__).resolve().parent
WELCOME = HERE / "stale_space" / "welcome.lf.safetensors"
"""What visitors see first: made by the command line with `stale-diffusion generate`."""

CACHE = "stale_space"
"""Folder of temporary files; nothing else should be in it, since what is old is deleted."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=None, help="a folder or Hub id; by default the one that ships")
    parser.add_argument("--host", default=None, help="address to listen on; by default this machine only")
    parser.add_argument("--port", type=int, default=None, help="by default the first free one from 7860 on")
    parser.add_argument("--open", action="store_true", help="open a browser")
    return parser.parse_args()


def lent_device(seconds: Callable[..., int]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """ZeroGPU's decorator on its Spaces, elsewhere one that changes nothing. To be asked before CUDA is touched.

    `seconds`: how long the device is needed, of the arguments of what is decorated.
    """
    if find_spec("spaces") is None:
        return lambda function: function
    import spaces

    return spaces.GPU(duration=seconds)


def main() -> None:
    arguments = parse_arguments()
    # Read when Gradio is imported, and so before that.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(tempfile.gettempdir()) / CACHE))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from stale_space.settings import Limits, lent_seconds

    limits = Limits()
    on_device = lent_device(lent_seconds)
    import torch

    from diffusers_stale import LightField, StaleDiffusionPipeline, checkpoint_path
    from stale_space.generation import Studio
    from stale_space.page import build_page
    from stale_space.results import Results
    from stale_space.serving import launch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = StaleDiffusionPipeline.from_pretrained(arguments.checkpoint or checkpoint_path()).to(device)
    results = Results(Path(os.environ["GRADIO_TEMP_DIR"]), limits.keep_seconds, limits.disk_bytes)
    results.tidy_for_ever()
    page = build_page(Studio(pipeline, limits, on_device), results, limits, LightField.load(WELCOME))
    launch(page, results, limits, host=arguments.host, port=arguments.port, open_browser=arguments.open)


if __name__ == "__main__":
    main()
