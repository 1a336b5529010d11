"""`orpo-ray sweep` as the entry point of a Ray job, with the same CONFIG and overrides:

ray job submit --working-dir . -- python jobs/sweep.py configs/opt-125m-hh-sweep.yaml trials=48
"""

import sys

from orpo_ray.cli import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
