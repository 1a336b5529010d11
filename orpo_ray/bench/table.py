"""Results as tables: on the console, and between two marks of a Markdown page.

python -m orpo_ray.bench.table docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from orpo_ray.bench.results import STAGES, TRAINERS
from orpo_ray.config import BenchmarkConfig, EvaluationBenchmarkConfig, load_benchmark
from orpo_ray.errors import UserError
from orpo_ray.parsing import from_json, read_text
from orpo_ray.storage.run_folder import write_atomically
from orpo_ray.terminal import Console

BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
RESULTS, CONFIGS = Path("benchmarks/results"), Path("configs/bench")
_HEADERS = {
    TRAINERS: (
        "contestant", "seconds a step", "of the first's", "over all", "pairs/s", "tokens/s", "MFU", "peak GiB",
        "in all",
    ),
    STAGES: ("contestant", "seconds", "of the first's", "a second", "tokens computed", "times the first's"),
}  # fmt: skip
_NOT_MEASURED = "not measured: "

Result = dict[str, Any]


def print_result(result: Result, console: Console) -> None:
    """The result's tables on a terminal."""
    measured = [_HEADERS[result["kind"]], *(row for row in rows(result) if not row[1].startswith(_NOT_MEASURED))]
    widths = [max(map(len, column)) for column in zip(*measured, strict=True)]
    aligned = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in measured]
    unmeasured = [f"{name}: {why}" for name, why, *_ in rows(result) if why.startswith(_NOT_MEASURED)]
    for line in [*aligned, *unmeasured, *remarks(result)]:
        console.say(line)


def rows(result: Result) -> list[tuple[str, ...]]:
    """A row of cells, as in the header, for every contestant."""
    if result["kind"] == STAGES:
        return [_stage_row(name, entry) for name, entry in result["contestants"].items()]
    first = next(iter(result["contestants"].values()))
    return [_row(name, entry, first) for name, entry in result["contestants"].items()]


def _row(name: str, entry: dict[str, Any], first: dict[str, Any]) -> tuple[str, ...]:
    if "not_measured" in entry:
        return (name, f"{_NOT_MEASURED}{entry['not_measured']}", *[""] * (len(_HEADERS[TRAINERS]) - 2))
    return (
        name,
        _spread(entry["seconds"]),
        _spread(entry["seconds_to_first"]) if "seconds_to_first" in entry else "",
        _short(_over_all(entry, first)) if "seconds_to_first" in entry else "",
        _short(entry["pairs_per_second"]["median"]),
        f"{entry['tokens_per_second']['median']:,.0f}",
        f"{entry['mfu']['median']:.0%}",
        _gib(entry["peak_bytes"]),
        _gib(entry["resident_bytes"]),
    )


def _stage_row(name: str, entry: dict[str, Any]) -> tuple[str, ...]:
    computed = entry["computed_tokens"]
    return (
        name,
        _spread(entry["seconds"]),
        _spread(entry["seconds_to_first"]) if "seconds_to_first" in entry else "",
        f"{_rate(entry['per_second']['median'])} {entry['makes']}",
        "" if computed is None else f"{computed:,}",
        f"{entry['tokens_to_first']:.2f}" if "tokens_to_first" in entry else "",
    )


def remarks(result: Result) -> list[str]:
    """A line for each trainer whose step was taken apart, that saves, or whose pairs are longer than the first's; what
    a stage's benchmark comes to.
    """
    if result["kind"] == STAGES:
        slower = result.get("to_the_slower")
        return [f"both at once take {_spread(slower)} of the slower one's seconds"] if slower else []
    lines = []
    first = next(iter(result["contestants"].values()))
    for name, entry in result["contestants"].items():
        if entry.get("parts"):
            whole = sum(entry["parts"].values())
            shares = ", ".join(f"{part} {seconds / whole:.1%}" for part, seconds in entry["parts"].items())
            lines.append(f"{name}: {shares}")
        saves_every = (
            result["configuration"]["contestants"][name].get("overrides", {}).get("train.checkpoint_every_steps")
        )
        if saves_every and "seconds_to_first" in entry:
            lines.append(
                f"{name}: a checkpoint every {saves_every} steps; {_over_all(entry, first):.3f} of the first's seconds "
                f"over {len(entry['rounds']['seconds'])} steps in all"
            )
        if result["configuration"]["contestants"][name]["stretch"] and "tokens_to_first" in entry:
            lines.append(
                f"{name}: {entry['tokens_to_first']['median']:.2f} times the tokens in "
                f"{entry['seconds_to_first']['median']:.2f} times the seconds, so "
                f"{_spread(entry['seconds_to_first_by_tokens'])} of the cost per token"
            )
    return lines


def _over_all(entry: dict[str, Any], first: dict[str, Any]) -> float:
    """Seconds of all measured steps beside those of the first contestant's, which took the same pairs."""
    return float(sum(entry["rounds"]["seconds"]) / sum(first["rounds"]["seconds"]))


def _spread(values: dict[str, float]) -> str:
    return f"{_short(values['median'])} ({_short(values['min'])}–{_short(values['max'])})"


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1 else f"{value:.2f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f}"


def read_results(folder: Path) -> list[Result]:
    """The results in a folder that holds other files too, by name. Raises `UserError` where one is not readable."""
    found = []
    for path in _files(folder, "*.json"):
        try:
            found.append(from_json(read_text(path)))
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
    return [result for result in found if isinstance(result, dict) and result.get("kind") in _HEADERS]


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern), key=lambda path: path.stem)


def markdown(results: list[Result], configured: list[BenchmarkConfig | EvaluationBenchmarkConfig]) -> str:
    """All results, and what is configured but was not measured, as Markdown: a table for each kind."""
    measured = {result["name"] for result in results}
    missing = [config for config in configured if config.name not in measured]
    tables = []
    for kind in _HEADERS:
        lines = [line for result in results if result["kind"] == kind for line in _lines(result)]
        lines += [_missing(config, kind) for config in missing if kind == _kind(config)]
        if lines:
            header = ("benchmark", *_HEADERS[kind])
            tables.append("\n".join([_line(header), _line(["---"] * len(header)), *lines]))
    said = [f"- `{result['name']}`, {remark}" for result in results for remark in remarks(result)]
    where = dict.fromkeys(_where(result) for result in results)
    return "\n\n".join([*tables, "\n".join([*said, *where])])


def _lines(result: Result) -> list[str]:
    names = [f"`{result['name']}`", *[""] * (len(result["contestants"]) - 1)]
    return [_line((name, *row)) for name, row in zip(names, rows(result), strict=True)]


def _kind(config: BenchmarkConfig | EvaluationBenchmarkConfig) -> str:
    return TRAINERS if isinstance(config, BenchmarkConfig) else STAGES


def _missing(config: BenchmarkConfig | EvaluationBenchmarkConfig, kind: str) -> str:
    reason, contestants = "not yet run", "orpo_ray"
    if isinstance(config, BenchmarkConfig):
        contestants = ", ".join(config.contestants)
        reason = "no GPU here" if config.needs == "cuda" else reason
    cells = (f"`{config.name}`", contestants, f"{_NOT_MEASURED}{reason}")
    return _line((*cells, *[""] * (len(_HEADERS[kind]) - 2)))


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _where(result: Result) -> str:
    machine, versions = result["machine"], result["versions"]
    device = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    names = [f"{name} {version}" for name, version in versions.items() if name != "orpo_ray"]
    return f"- measured on {device}, with {', '.join(names)}"


def rewrite(page: Path, results: Path, configs: Path) -> None:
    """Put the tables of all results in place of what stands between the marks of `page`.

    Raises `UserError` where it has no such marks.
    """
    text = page.read_text(encoding="utf-8")
    if not re.search(f"{BEGIN}.*{END}", text, re.DOTALL):
        raise UserError(f"{page}: has no {BEGIN} ... {END} to put the tables between")
    configured = [load_benchmark(path) for path in _files(configs, "*.yaml")]
    block = f"{BEGIN}\n{markdown(read_results(results), configured)}\n{END}"
    write_atomically(page, re.sub(f"{BEGIN}.*{END}", lambda _: block, text, flags=re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of result files (%(default)s)")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="folder of benchmarks (%(default)s)")
    arguments = parser.parse_args()
    rewrite(arguments.page, arguments.results, arguments.configs)


if __name__ == "__main__":
    main()
