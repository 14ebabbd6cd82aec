"""A sentence of a paper as a comparison of numbers in a table: what a table file may claim."""

from __future__ import annotations

import itertools
import re
from typing import Any, Literal

from pydantic import Field, model_validator

from reprise.rollout.errors import BadInput
from reprise.rollout.run.settings import Settings


def filled(text: str, values: dict[str, Any]) -> str:
    """`text` with `{key}` replaced where `values` has the key."""
    return re.sub(r"\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), text)


class Side(Settings):
    """One side of a claim: a number of one row, or a constant."""

    row: str | None = Field(None, description="may hold {key} for each key of the claim's `each`")
    column: str | None = Field(None, description="may hold {key}")
    value: float | None = Field(None, description="a constant instead of a row and a column")
    times: float = Field(1.0, description="factor")

    @model_validator(mode="after")
    def _one(self) -> Side:
        named = self.row is not None and self.column is not None
        if named == (self.value is not None):
            raise BadInput("give either row and column, or value")
        return self

    def at(self, chosen: dict[str, Any]) -> Side:
        """With `{key}` replaced."""
        if self.row is None or self.column is None:
            return self
        row, column = filled(self.row, chosen), filled(self.column, chosen)
        return self.model_copy(update={"row": row, "column": column})


class Claim(Settings):
    """A sentence of the paper as a comparison of our numbers; with `each`, of a family of cells.

    A family holds where every cell's interval lies beyond the margin, and does not where some cell
    is significantly on the other side after Holm's correction over the family.
    """

    text: str = Field(description="the sentence")
    source: str = Field("", description="where the paper says it")
    left: Side
    relation: Literal[">", "<", "within"] = Field(
        description="left > right; or |difference| < margin"
    )
    right: Side
    margin: float = Field(
        0.0, ge=0, description="for > and <: the difference that counts; for within"
    )
    each: dict[str, list[int | float | str]] = Field(
        default_factory=dict,
        description="key -> values: the claim is about every combination, by {key} in the names of "
        "rows and columns. For cells that are no product, one key may stand for a whole name",
    )
    identity: bool = Field(
        False, description="exact arithmetic, not sampled: class *identity*, outside Holm's"
    )
    reason: str = Field("", description="why it does not hold here; printed only with `shown_by`")
    shown_by: str = Field("", description="the row of the table that shows the reason")

    @model_validator(mode="after")
    def _consistent(self) -> Claim:
        if self.relation == "within" and self.margin == 0:
            raise BadInput("relation 'within' needs a margin above 0")
        if self.shown_by and not self.reason:
            raise BadInput("shown_by needs the reason that it shows")
        empty = [key for key, values in self.each.items() if not values]
        if empty:
            raise BadInput(f"each.{empty[0]} needs at least one value")
        names = [name for side in (self.left, self.right) for name in (side.row, side.column)]
        unused = [key for key in self.each if not any(f"{{{key}}}" in (n or "") for n in names)]
        if unused:
            raise BadInput(f"each.{unused[0]}: no row or column holds {{{unused[0]}}}")
        return self

    def cells(self) -> list[Claim]:
        """The claim about each cell of the family; the claim itself where it is no family."""
        if not self.each:
            return [self]
        combinations = itertools.product(*self.each.values())
        made = [dict(zip(self.each, values, strict=True)) for values in combinations]
        return [
            self.model_copy(
                update={"left": self.left.at(one), "right": self.right.at(one), "each": {}}
            )
            for one in made
        ]
