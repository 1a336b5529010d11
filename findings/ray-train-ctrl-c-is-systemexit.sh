#!/usr/bin/env bash
# Ray 2.60.0 (ray[train]): Ctrl-C during `Trainer.fit()` raises no KeyboardInterrupt. `fit` replaces the process's
# handler of SIGINT (and leaves it replaced); what comes out is SystemExit, with the code 1 of any failure, so neither an
# `except KeyboardInterrupt` around `fit` (to save something, say) nor an `except Exception` runs, and a script cannot
# tell a person's Ctrl-C by 130. Plain Ray raises KeyboardInterrupt from `ray.get`.
#
# Seen: "trainer.fit: SystemExit 1, exit code 1", "ray.get: KeyboardInterrupt, exit code 130". Exits with 1 where that
# has changed. Needs Python 3.11 and 600 MB; takes two minutes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check 'ray[train]==2.60.0' 'pandas==3.1.1'
cat > "$folder/driver.py" <<'PYTHON'
import os
import sys
import time

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

folder = sys.argv[2]


def work(config=None):
    open(os.path.join(folder, "at-work"), "w").close()
    time.sleep(600)


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
try:
    if sys.argv[1] == "trainer.fit":
        scaling = ScalingConfig(num_workers=1)
        DataParallelTrainer(work, scaling_config=scaling, run_config=RunConfig(storage_path=folder)).fit()
    else:
        ray.get(ray.remote(work).remote())
except BaseException as error:
    print(f"{sys.argv[1]}: {type(error).__name__} {error}".strip())
    if isinstance(error, KeyboardInterrupt):
        sys.exit(130)
    raise
PYTHON
export RAY_TRAIN_V2_ENABLED=1
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ray

print("ray", ray.__version__)
folder, expected = Path(sys.argv[1]), {"trainer.fit": ("SystemExit", 1), "ray.get": ("KeyboardInterrupt", 130)}
found = {}
for way in expected:
    mark = folder / "at-work"
    mark.unlink(missing_ok=True)
    driver = subprocess.Popen(
        [sys.executable, str(folder / "driver.py"), way, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 240
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    os.kill(driver.pid, signal.SIGINT)
    said, _ = driver.communicate(timeout=120)
    print(said.strip() + f", exit code {driver.returncode}")
    found[way] = (said.split(": ")[-1].split()[0], driver.returncode)
sys.exit(found != expected)
PYTHON
