"""Figures and self-contained HTML pages, drawn from run folders alone."""

from orpo_ray.report.comparison_page import write_comparison
from orpo_ray.report.curves import curves_png
from orpo_ray.report.evaluation_page import write_evaluation_report
from orpo_ray.report.page import write_report
from orpo_ray.report.sweep_page import write_sweep_report

__all__ = ["curves_png", "write_comparison", "write_evaluation_report", "write_report", "write_sweep_report"]
