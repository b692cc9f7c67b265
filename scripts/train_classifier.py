"""Trains the networks by which barnyard movies are measured, and writes them into the package.

OMP_NUM_THREADS=1 python scripts/train_classifier.py                     # tells attributes
OMP_NUM_THREADS=1 python scripts/train_classifier.py --network layers    # tells the layer of every pixel
"""

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from diffusers_stale.evaluation.classifier import SHIPPED_WEIGHTS, save_classifier
from diffusers_stale.evaluation.classifier_training import ClassifierTraining, train_classifier
from diffusers_stale.evaluation.layer_training import LayerTraining, train_layer_finder
from diffusers_stale.evaluation.layers import SHIPPED_LAYERS, save_layer_finder


NETWORKS = {
    "attributes": (ClassifierTraining, train_classifier, save_classifier, SHIPPED_WEIGHTS),
    "layers": (LayerTraining, train_layer_finder, save_layer_finder, SHIPPED_LAYERS),
}
"""How each network is configured, trained and saved, and where it ships from."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="attributes")
    parser.add_argument("--output", type=Path, help="the weights (default: in the package)")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--scenes", type=int, help="rendered clips to learn from")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    configure, train, save, shipped = NETWORKS[arguments.network]
    changes = {name: value for name in ("seed", "scenes", "steps") if (value := getattr(arguments, name)) is not None}
    network, notes = train(replace(configure(), **changes))
    command = shlex.join(["python", "scripts/train_classifier.py", *sys.argv[1:]])
    output = arguments.output or shipped
    save(network, output, {"command": command} | notes)
    for name, value in notes.items():
        print(f"{name}: {value}")
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
