"""Trains the classifier that tells the attributes of barnyard movies, and writes it into the package.

OMP_NUM_THREADS=1 python scripts/train_classifier.py
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


def parse_arguments() -> argparse.Namespace:
    default = ClassifierTraining()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=SHIPPED_WEIGHTS, help="the weights (default: in the package)")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--scenes", type=int, default=default.scenes, help="rendered clips to learn from")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    config = replace(ClassifierTraining(), seed=arguments.seed, scenes=arguments.scenes, steps=arguments.steps)
    classifier, notes = train_classifier(config)
    command = shlex.join(["python", "scripts/train_classifier.py", *sys.argv[1:]])
    save_classifier(classifier, arguments.output, {"command": command} | notes)
    for name, value in notes.items():
        print(f"{name}: {value}")
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
