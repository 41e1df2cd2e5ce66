"""Read-only records, such as every table and result is made of."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    model_validator,
)

from qbench.errors import unknown

Scalar = str | FiniteFloat
"""A value of an axis."""

Count = Annotated[int, Field(ge=1, le=10**9)]
"""A number of things, of which there is one at least."""


class Frozen(BaseModel):
    """A read-only record in which an unknown key is an error that names the near match, and true is
    no number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        fields = cls.model_fields
        if not isinstance(data, Mapping):
            return data
        if not data.keys() <= fields.keys():
            allowed = [field.alias or name for name, field in fields.items()]
            for key in data:
                if key not in allowed and key not in fields:
                    raise ValueError(str(unknown("key", key, allowed)))
        for key, value in data.items():
            if not isinstance(value, bool) or key not in fields:
                continue
            reads_it = any(isinstance(known, BeforeValidator) for known in fields[key].metadata)
            if fields[key].annotation is not bool and not reads_it:
                said = str(value).lower()
                raise ValueError(f"{key}: {said} is no number, and as text it needs quotes")
        return data
