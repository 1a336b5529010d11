"""One line of what the doctor says."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["OK", "WARN", "FAIL"]


class Finding(NamedTuple):
    verdict: Verdict
    """`WARN`: some runs do without, or it is a risk; `FAIL`: runs will stop because of it."""
    check: str
    found: str
    fix: str = ""
    """What to do about it; empty where nothing is to be done."""


def grouped(findings: dict[str, Finding]) -> list[Finding]:
    """One line for all nodes that were found alike; `findings` by node."""
    nodes: dict[Finding, list[str]] = {}
    for node, finding in findings.items():
        nodes.setdefault(finding, []).append(node)
    if len(nodes) == 1 and len(findings) > 1:
        return [finding._replace(found=f"all {len(findings)} nodes: {finding.found}") for finding in nodes]
    named = len(findings) > 1
    return [
        finding._replace(found=f"{', '.join(who)}: {finding.found}") if named else finding
        for finding, who in nodes.items()
    ]
