"""The expressions of a search space: `loguniform(0.02, 2)`, `uniform(0, 1)`, `choice(cosine, linear)`, `grid(1, 2)`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

import yaml

Kind = Literal["loguniform", "uniform", "choice", "grid"]
_EXPRESSION = re.compile(r"\s*(loguniform|uniform|choice|grid)\s*\((.*)\)\s*", re.DOTALL)
_RANGES = ("loguniform", "uniform")


@dataclass(frozen=True)
class Dimension:
    """What one key of a configuration may be."""

    kind: Kind
    values: tuple[Any, ...]
    """The two ends of a range, or what there is to choose from."""

    @property
    def is_range(self) -> bool:
        return self.kind in _RANGES

    def holds(self, value: Any) -> bool:
        """Whether it may be this value."""
        if not self.is_range:
            return value in self.values
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and bool(self.values[0] <= value <= self.values[1])

    @property
    def numeric(self) -> bool:
        """Whether values have an order that a figure can show."""
        return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.values)


def parse_dimension(text: str) -> Dimension:
    """Raises `ValueError`, which says what was expected."""
    match = _EXPRESSION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"expected loguniform(low, high), uniform(low, high), choice(a, b, …) or grid(a, b, …) (got {text!r:.60})"
        )
    kind = cast(Kind, match[1])
    try:
        values = tuple(_number(value) for value in yaml.safe_load(f"[{match[2]}]"))
    except yaml.YAMLError:
        raise ValueError(f"the values in {text!r:.60} cannot be read") from None
    dimension = Dimension(kind, values)
    if dimension.is_range:
        if len(values) != 2 or not dimension.numeric:
            raise ValueError(f"{kind} takes two numbers, its ends (got {text!r:.60})")
        low, high = values
        if not low < high or not math.isfinite(high - low):
            raise ValueError(f"{kind}: the first end should be below the second (got {text!r:.60})")
        if kind == "loguniform" and low <= 0:
            raise ValueError(f"loguniform: both ends should be above 0 (got {text!r:.60})")
    elif not values or len({repr(value) for value in values}) < len(values):
        raise ValueError(f"{kind} takes one or more different values (got {text!r:.60})")
    return dimension


def _number(value: Any) -> Any:
    """YAML reads `1e-6` as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
