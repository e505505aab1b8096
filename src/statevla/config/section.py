"""What every section of the configuration shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_LARGEST = 1_000_000_000


def _possible(value: int) -> int:
    if value > _LARGEST:
        raise ValueError(f"expected at most {_LARGEST:,}, got {value:,}"[:120])
    return value


Positive = Annotated[int, Field(ge=1), AfterValidator(_possible)]
NonNegative = Annotated[int, Field(ge=0), AfterValidator(_possible)]
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """Unknown keys are errors; numbers are finite; defaults are checked too; nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        frozen=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )
