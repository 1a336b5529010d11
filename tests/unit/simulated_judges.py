"""The simulated judges of `benchmarks/judge_intervals.py`, and how often the intervals around their numbers hold."""

import importlib.util
import sys
from pathlib import Path

_FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "judge_intervals.py"
_spec = importlib.util.spec_from_file_location("judge_intervals", _FILE)
_module = sys.modules["judge_intervals"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

Judge, coverage, rating_coverage = _module.Judge, _module.coverage, _module.rating_coverage
