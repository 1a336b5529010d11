"""The page of the paper remade: `paper/index.html`, beside the files of its tables and figures.

It is whatever there is: stages that have failed or were not begun leave their places empty, and the page says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orpo_ray.paper.figures import Figure, paper_figures
from orpo_ray.paper.outcomes import Outcomes, read_outcomes
from orpo_ray.paper.page_parts import (
    Claim,
    StageRow,
    TableView,
    claims_of,
    not_run,
    short_title,
    stage_rows,
    table_view,
    tally,
)
from orpo_ray.paper.scale import Scale, scale_of, short_count
from orpo_ray.paper.stages import PaperStages
from orpo_ray.paper.tables import paper_tables
from orpo_ray.report.numbers import number
from orpo_ray.report.page import render, write_page

NAME = "index.html"
_SEEDS = "-seeds"
"""What the name of a table ends in that has each seed's numbers of another."""
