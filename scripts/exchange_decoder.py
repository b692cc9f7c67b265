"""Puts a decoder that was trained further into a pipeline whose network was trained on the same latents.

    python scripts/train.py --stage autoencoder --output runs/decoder --set trainable=decoder \\
        --set start_from=runs/barnyard/movie
    python scripts/exchange_decoder.py runs/barnyard/movie runs/decoder/autoencoder
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from diffusers_stale.training.decoders import exchange_decoder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path, help="folder of the pipeline, which is changed")
    parser.add_argument("autoencoder", type=Path, help="folder of the autoencoder with the new decoder")
    options = parser.parse_args()
    try:
        exchange_decoder(options.pipeline, options.autoencoder)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.pipeline / 'vae'} decodes as {options.autoencoder} does.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
