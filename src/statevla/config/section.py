"""What every section of the configuration shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """Unknown keys are errors; defaults are checked too; nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", validate_default=True, frozen=True, protected_namespaces=(), use_attribute_docstrings=True
    )
