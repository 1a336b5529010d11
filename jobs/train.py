"""`orpo-ray train` as the entry point of a Ray job, with the same CONFIG and overrides:

ray job submit --working-dir . -- python jobs/train.py configs/opt-125m-hh-orpo.yaml optim.lr=1e-5
"""

import sys

from orpo_ray.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
