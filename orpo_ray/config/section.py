"""What every section of the configuration shares: strictness, and the types of its numbers."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from orpo_ray.config.paths import Place
from orpo_ray.masking import masked_tree

_FOR_A_FILE = "for a file"
ANSWERED_BY = {True: "(outputs)", False: "(a model)"}
"""What pydantic calls the two kinds of an evaluation's models in a location: whether their answers are there."""


def _no_boolean(value: Any) -> Any:
    """pydantic reads `lr: on` as 1.0; here it is a mistake."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number (got {value}, which YAML also reads from yes, no, on and off)")
    return value


def _plain(value: Any) -> Any:
    """What YAML writes and reads back as it was."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"keys should be texts (got {key!r:.40})")
            _plain(inner)
    elif isinstance(value, list):
        for inner in value:
            _plain(inner)
    elif not (value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))):
        raise ValueError(f"holds what is no text, finite number, true, false, null, list or mapping ({value!r:.40})")
    return value


def _without_secrets(value: dict[str, Any], info: SerializationInfo) -> dict[str, Any]:
    return masked_tree(value, by_name=True) if info.context == _FOR_A_FILE else value


def _whole_or_auto(value: Any, least: int) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and least <= value <= 10**6):
        return value
    raise ValueError(f"should be a whole number of at least {least}, or auto (got {value!r:.40})")


Integer = Annotated[int, BeforeValidator(_no_boolean)]
Number = Annotated[float, BeforeValidator(_no_boolean)]
Count = Annotated[Integer, Field(ge=1, le=10**12)]
CountOrAuto = Annotated[int | Literal["auto"], PlainValidator(partial(_whole_or_auto, least=1))]
WholeOrAuto = Annotated[int | Literal["auto"], PlainValidator(partial(_whole_or_auto, least=0))]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
RunName = Annotated[str, Field(pattern=NAME, max_length=100)]
"""A name that is a folder's: it leads nowhere else."""
FreeForm = Annotated[dict[str, Any], AfterValidator(_plain), PlainSerializer(_without_secrets)]
"""Settings that others define. In a file, texts whose key names a secret are masked."""


class Section(BaseModel):
    """Base of every section: unknown keys and numbers that are not finite are refused, values are frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False, protected_namespaces=()
    )

    @classmethod
    def completed(cls, mapping: dict[str, Any], origin: str) -> dict[str, Any]:
        """`mapping`, overrides applied, with what other files say of it. Raises `UserError`, naming `origin`."""
        return mapping

    def to_yaml(self) -> str:
        """Every key, defaults included, in the order of its declaration; secrets are masked (see `masking`)."""
        return yaml.safe_dump(self.for_a_file(), sort_keys=False, allow_unicode=True)

    def for_a_file(self) -> dict[str, Any]:
        """Plain values, as `to_yaml` writes them."""
        return masked_tree(self.model_dump(mode="json", by_alias=True, context=_FOR_A_FILE))


class PathSection(Section):
    """Settings of what is found at a path. Where only its path is given, the text alone stands for it."""

    path: Place

    @model_validator(mode="before")
    @classmethod
    def _from_its_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _as_short_as_given(self, handler: SerializerFunctionWrapHandler) -> Any:
        return self.path if self == type(self)(path=self.path) else handler(self)
