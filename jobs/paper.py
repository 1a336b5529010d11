"""`orpo-ray paper` as the entry point of a Ray job, with the same CONFIG and overrides:

ray job submit --working-dir . -- python jobs/paper.py configs/paper/hh.yaml storage.path=/shared/runs
"""

import sys

from orpo_ray.cli import main

if __name__ == "__main__":
    main(["paper", *sys.argv[1:]])
