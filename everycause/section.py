"""What every section of params.yaml has in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen, strict, closed set of parameters: an unknown key or a wrong type is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
