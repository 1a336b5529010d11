"""`python -m orpo_ray.doctor.gpu`: `orpo-ray doctor --gpu` where torch and transformers are all that is installed."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from orpo_ray.doctor.gpu import SECONDS
from orpo_ray.errors import UserError
from orpo_ray.visible import say


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m orpo_ray.doctor.gpu", description=__doc__)
    options.add_argument("--seconds", type=float, default=SECONDS, help="stop after so many (default: %(default)g)")
    options.add_argument("--out", type=Path, default=None, help="the file of JSON lines (default: a new one here)")
    options.add_argument("--toy", action="store_true", help="the same on the CPU, at toy size")
    return options


def main() -> int:
    start = time.perf_counter()  # importing torch is part of the time
    arguments = parser().parse_args()
    from orpo_ray.doctor.gpu.run import check_gpu

    try:
        return check_gpu(arguments.seconds, arguments.out, toy=arguments.toy, start=start)
    except UserError as error:
        say(f"error: {error}", error=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
