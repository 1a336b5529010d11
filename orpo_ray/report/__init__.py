"""Figures and self-contained HTML pages, drawn from run folders alone."""

from orpo_ray.report.comparison import Sample, curves_png, write_comparison
from orpo_ray.report.page import write_report

__all__ = ["Sample", "curves_png", "write_comparison", "write_report"]
