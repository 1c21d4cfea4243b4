"""All benchmarks one after another, with the settings that this machine is meant to be judged by: `python -m benchmarks`.

Where torch finds a GPU: the network of the paper, bf16, its batch of 128, and the full 65,536 generated images. Otherwise sizes
that a CPU bears. --root DIR names the folder of CIFAR-10's official files (random bytes without it).
"""

import argparse
import subprocess
import sys

import torch

LARGE = ["--network", "cifar10", "--batch", "128", "--precision", "bf16"]
GPU = {
    "search": ["--samples", "65536"],
    "training": [*LARGE, "--steps", "20"],
    "sampling": ["--network", "cifar10", "--batch", "512", "--precision", "bf16"],
    "memory": LARGE,
    "fixed_cost": [*LARGE, "--long", "6"],
    "startup": [],
    "orchestration": ["--seeds", "9"],
}
CPU = {
    "search": [],
    "training": ["--turns", "5"],
    "sampling": [],
    "memory": [],
    "fixed_cost": [],
    "startup": [],
    "orchestration": ["--seeds", "9"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="folder of CIFAR-10's official files, for the search")
    root = parser.parse_args().root
    failed = []
    for name, words in (GPU if torch.cuda.is_available() else CPU).items():
        words = [*words, *(["--root", root] if root and name == "search" else [])]
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words], check=False).returncode:
            failed.append(name)
        print(flush=True)
    if failed:
        sys.exit(f"error: these ended with an error, see above: {', '.join(failed)}")


if __name__ == "__main__":
    main()
