"""What every section of the configuration shares: strictness, and the types of its numbers."""

from __future__ import annotations

from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_boolean(value: Any) -> Any:
    """pydantic reads `lr: on` as 1.0; here it is a mistake."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number (got {value}, which YAML also reads from yes, no, on and off)")
    return value


Integer = Annotated[int, BeforeValidator(_no_boolean)]
Number = Annotated[float, BeforeValidator(_no_boolean)]
Count = Annotated[Integer, Field(ge=1, le=10**12)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of every section: unknown keys and numbers that are not finite are refused, values are frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False, protected_namespaces=()
    )

    def to_yaml(self) -> str:
        """Every key, defaults included, in the order of its declaration."""
        mapping = self.model_dump(mode="json", by_alias=True)
        return yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True)
