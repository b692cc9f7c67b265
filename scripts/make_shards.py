"""Packs a folder of clips with metadata.jsonl into WebDataset shards, which are plain tar files.

    python scripts/make_shards.py my/clips my/shards --clips 100

Clips that cannot be read are named; the first one ends it unless --max-broken allows for some.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from diffusers_stale.data.folders import BrokenFiles, folder_clips
from diffusers_stale.data.shards import write_shards


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the clips and their metadata.jsonl")
    parser.add_argument("output", type=Path, help="a folder for the shards")
    parser.add_argument("--clips", type=int, default=100, help="clips a shard; some hundred megabytes are usual")
    parser.add_argument("--max-broken", type=int, default=0, help="broken clips that may be left out")
    arguments = parser.parse_args()
    if arguments.clips < 1:
        parser.error(f"--clips must be at least 1, got {arguments.clips}")
    try:
        clips = folder_clips(arguments.folder, 0, BrokenFiles(arguments.max_broken))
        shards = write_shards(clips, arguments.output, arguments.clips)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(shards)} shards in {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
