"""Read-only records, such as every table and result is made of."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from qbench.errors import unknown

Scalar = str | float
"""A value of an axis."""


class Frozen(BaseModel):
    """A read-only record in which an unknown key is an error that names the near match."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        fields = cls.model_fields
        if isinstance(data, Mapping) and not data.keys() <= fields.keys():
            allowed = [field.alias or name for name, field in fields.items()]
            for key in data:
                if key not in allowed and key not in fields:
                    raise ValueError(str(unknown("key", str(key), allowed)))
        return data
