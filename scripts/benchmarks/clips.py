"""How long clips of one's own take to find and to decode, in core time, which a busy machine does not change much.

    python scripts/benchmarks/clips.py --side 256

Renders clips of 3x3 views of 48 frames at 24 frames a second, writes a video for each view and shards of them, and
reads 8 frames of all views, 8 frames a second, at the size that training wants.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

from diffusers_stale import LightField
from diffusers_stale.data.clips import Clip, make_clip
from diffusers_stale.data.folders import METADATA, BrokenFiles, folder_clips
from diffusers_stale.data.layers import layered_clip
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.data.shards import shard_clips, shards_of, write_shards
from diffusers_stale.light_field.export import write_video


CLIPS, VIEWS, FRAMES, FRAME_RATE = 4, 3, 48, 24.0
READ = 8


def write_clips(folder: Path, side: int) -> None:
    movie = LightField.from_float(render_scene(sample_scene(1, 1), VIEWS, VIEWS, FRAMES, side, side).pixels)
    for number in range(CLIPS):
        (folder / str(number)).mkdir(parents=True)
        for row in range(VIEWS):
            for col in range(VIEWS):
                write_video(folder / str(number) / f"{row}_{col}.mp4", movie.view(row, col), FRAME_RATE, zoom=1)
    lines = [json.dumps({"file_name": str(number), "text": "a barnyard"}) for number in range(CLIPS)]
    (folder / METADATA).write_text("\n".join(lines))


def timed(function: Callable[[], Iterable[object]]) -> tuple[list, float]:
    """What `function` gives, and milliseconds of core time."""
    before = time.process_time()
    found = list(function())
    return found, (time.process_time() - before) * 1000


def milliseconds_a_picture(clip: Clip, size: int) -> float:
    def read() -> torch.Tensor:
        return clip.read(range(VIEWS), range(VIEWS), range(READ), size)

    read()
    return min(timed(read)[1] for _ in range(5)) / (VIEWS * VIEWS * READ)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256, help="pixels of the videos, each way")
    side = parser.parse_args().side
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, shards = Path(name) / "clips", Path(name) / "shards"
        write_clips(folder, side)
        write_shards(folder_clips(folder, 0, BrokenFiles(0)), shards, CLIPS)
        in_folder, probing = timed(lambda: folder_clips(folder, 8, BrokenFiles(0)))
        packed, indexing = timed(lambda: shard_clips(shards_of(shards)[0], 8, BrokenFiles(0)))
        print(f"finding a clip of a folder {probing / CLIPS:.2f} ms, of a shard {indexing / CLIPS:.2f} ms")
        view = in_folder[0].form
        single = type(view)(name="view", views={(0, 0): view.views[1, 1]})
        video = make_clip("view", ("a barnyard",), single, single.sizes(), 8)
        layered = layered_clip(video, VIEWS, VIEWS, (1.0,), 0)
        for kind, clip in (("folder", in_folder[0]), ("shard", packed[0]), ("monocular", layered)):
            times = ", ".join(f"{milliseconds_a_picture(clip, size):.2f} ms at {size}" for size in (64, side))
            print(f"{kind}: a picture of {side} pixels in {times}")


if __name__ == "__main__":
    main()
