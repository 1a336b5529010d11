"""What a person reads at the end, made of the lines alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orpo_ray.doctor.gpu.lines import Line

_ABOUT = ("model", "family", "who", "memory", "precision")
_HEADINGS = (
    "model",
    "who",
    "memory",
    "precision",
    "ms",
    "pairs/s",
    "MFU",
    "GiB",
    "predicted",
    "activations",
    "predicted",
)
_SILENT = ("",) * 6


def fault(lines: Sequence[Line]) -> bool:
    """Whether a stage failed, or packing is not exact. Out of memory is an answer, not a fault."""
    return any("error" in line or line.get("ok") is False for line in lines)


def summary(lines: Sequence[Line]) -> str:
    return "\n".join(
        [*_machine(lines), *_parity(lines), *_steps(lines), *_speed(lines), *_memory(lines), *_left(lines)]
    )


def _of(lines: Iterable[Line], stage: str, has: str) -> list[Line]:
    return [line for line in lines if line["stage"] == stage and has in line]


def _machine(lines: Sequence[Line]) -> list[str]:
    found = [
        f"{line['device']['name']}, torch {line['packages']['torch']}, transformers {line['packages']['transformers']}"
        for line in _of(lines, "machine", "device")
    ]
    found += [f"{line['dtype']} {line['tflops']:g} TFLOP/s" for line in _of(lines, "peak", "tflops")]
    found += [f"memory {line['gb_per_s']:,.0f} GB/s" for line in _of(lines, "bandwidth", "gb_per_s")]
    return ["; ".join(found)]


def _parity(lines: Sequence[Line]) -> list[str]:
    judged = [line for line in _of(lines, "parity", "ok") if line["ok"] is not None]
    if not judged:
        return ["packing: not compared with plain forwards"]
    wrong = [f"{line['family']}, {line['way']}, {line['dtype']}" for line in judged if not line["ok"]]
    verdict = f"NOT OK: {'; '.join(wrong)}" if wrong else f"ok in all {len(judged)} comparisons and controls"
    told = [f"packing against plain forwards: {verdict}"]
    for stage, how in (("parity", "as it is"), ("deterministic", "with train.deterministic")):
        twice = _of(lines, stage, "same_gradient")
        sums, gradients = (sum(line[name] for line in twice) for name in ("same_sums", "same_gradient"))
        told.append(f"the same bits twice, {how}: log-probs in {sums}, gradients in {gradients} of {len(twice)}")
    return told


def _steps(lines: Sequence[Line]) -> list[str]:
    memory = {_key(line): line for line in _of(lines, "memory", "measured_gib")}
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for line in (line for line in lines if line["stage"] == "step" and ("ms" in line or "out_of_memory" in line)):
        own = tuple(str(line[name]) for name in _ABOUT if name in line)
        if "ms" not in line:
            rows.append((*own, "out of memory", *_SILENT))
            continue
        taken: list[float | None] = [None] * 4
        if found := memory.get(_key(line)):
            measured, predicted = found["measured_gib"], found["predicted_gib"]
            has = "activations" in predicted
            taken = [measured["peak"], sum(predicted.values()) if has else None, measured["activations"]]
            taken.append(predicted.get("activations"))
        numbers = line["ms"], line["pairs_per_s"], line["mfu"], *taken
        rows.append((*own, *("" if number is None else f"{number:.3g}" for number in numbers)))
    if len(rows) == 1:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return [
        "", *("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows), "",
    ]  # fmt: skip


def _speed(lines: Sequence[Line]) -> list[str]:
    """Of the fastest way of each model against the fastest of the baseline."""
    found = []
    steps = _of(lines, "step", "pairs_per_s")
    for model in dict.fromkeys(line["model"] for line in steps):
        best = {
            who: max(
                (line["pairs_per_s"] for line in steps if (line["model"], line["who"]) == (model, who)), default=None
            )
            for who in ("orpo_ray", "padded")
        }
        if best["orpo_ray"] and best["padded"]:
            found.append(f"{model}: {best['orpo_ray'] / best['padded']:.2f} times the pairs a second of padded rows")
    return found


def _memory(lines: Sequence[Line]) -> list[str]:
    """How far predictions are off."""
    ratios: dict[str, list[float]] = {}
    for line in _of(lines, "memory", "measured_gib"):
        measured, predicted = line["measured_gib"], line["predicted_gib"]
        sums = {"states": predicted["weights"] + predicted["optimizer"]}
        if "activations" in predicted:
            sums |= {"activations": predicted["activations"], "peak": sum(predicted.values())}
        for name, size in sums.items():
            ratios.setdefault(name, []).append(measured[name] / size)
    told = [f"{name} {min(of):.2f} to {max(of):.2f}" for name, of in ratios.items()]
    return [f"memory, measured over predicted: {', '.join(told)}"] if told else []


def _left(lines: Sequence[Line]) -> list[str]:
    left = [line for line in lines if "skipped" in line or "error" in line]
    return [f"{_named(line)}: {line.get('error') or 'skipped: ' + line['skipped']}" for line in left]


def _key(line: Line) -> tuple[object, ...]:
    return tuple(line.get(name) for name in _ABOUT)


def _named(line: Line) -> str:
    return " ".join([line["stage"], *(str(line[name]) for name in _ABOUT if name in line)])
