"""The name of a list of prompts: which data set or file, which part of it, which rows and which column.

Pure text and numbers: reads nothing, imports nothing heavy, so that a console without torch or `datasets` can check
every source of a run before anything is rented (`check.py`). `prompts.py` reads what is named here.

    >>> Source.parse("owner/name::config=en,split=train[500:700],column=text,stream=true").bounds
    (500, 700)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bruno.errors import InputError

SUFFIXES = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""Files that prompts can be read from, and the reader of `datasets` for each."""

DEMO = "demo"
SHIPPED = "shipped:"
_SPLIT = re.compile(r"(?P<name>\w[\w.-]*)(?:\[(?P<first>-?\d+)?:(?P<last>-?\d+)?\])?")


class Source(BaseModel):
    """One list of prompts, as a behaviour file or a setting names it.

    In one string: `NAME::key=value,key=value`, where the keys are the fields below.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1)
    """`demo`, `shipped:BEHAVIOUR`, a hub id, a folder written by `save_to_disk`, or a .txt, .jsonl, .json, .csv or
    .parquet file."""
    config: str = ""
    """Configuration of a hub data set that has several."""
    split: str = "train"
    """Split, with a slice of row numbers if wanted: `train`, `train[:400]`, `test[500:700]`, `train[-50:]`."""
    column: str = ""
    """Column that holds the prompt ("" = text, prompt, instruction, question or goal, or the only text column)."""
    stream: bool = False
    """Read a hub data set row by row over the network, without downloading it: for sets far larger than the slice."""
    rows: int = Field(default=0, ge=0)
    """How many rows, from `offset` on: the same as a slice, in other words (0 = as `split` says)."""
    offset: int = Field(default=0, ge=0)
    """Rows that are passed over first."""
    kind: str = ""
    """Which kind of prompts, of the demo's (over_refused, ordinary) or of a shipped behaviour's (bad, good)."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return _fields(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_way_to_say_which_rows(self) -> Source:
        match = _SPLIT.fullmatch(self.split)
        if match is None:
            raise ValueError(f"split {self.split!r} is not of the form train, train[:400] or test[500:700]")
        if "[" in self.split and (self.rows or self.offset):
            raise ValueError("rows and offset say the same as a slice; give one of them")
        if self.stream:
            first, last = self.bounds
            if first < 0 or last is None or last < 0:
                raise ValueError("a streamed set needs to know its rows: split=train[500:700], or rows and offset")
        if self.bounds[1] is not None and self.bounds[0] >= 0 and 0 <= self.bounds[1] <= self.bounds[0]:
            raise ValueError(f"split {self.split!r} names no rows")
        return self

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read the one-string form, `owner/name::config=en,split=train[:200],column=text,stream=true`.

        Raises:
            InputError: an unknown key, a wrong value; the message has the text and the place.
        """
        try:
            return cls.model_validate(text)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            reason = problem["msg"].removeprefix("Value error, ")
            raise InputError(
                f"The prompt source {text!r} cannot be used ({where + ': ' if where else ''}{reason})",
                fix="Write it as NAME or NAME::config=...,split=train[:200],column=...,stream=true",
            ) from error

    def __str__(self) -> str:
        """The one-string form; `parse` gives the same source back."""
        given = self.model_dump(exclude_defaults=True, exclude={"source"})
        pairs = (f"{key}={str(value).lower() if value is True else value}" for key, value in given.items())
        return "::".join(part for part in (self.source, ",".join(pairs)) if part)

    @property
    def split_name(self) -> str:
        """The split without its slice."""
        return self.split.partition("[")[0]

    @property
    def bounds(self) -> tuple[int, int | None]:
        """First row and the row after the last; negative ones count from the end, None is the end."""
        if self.rows or self.offset:
            return self.offset, self.offset + self.rows if self.rows else None
        match = _SPLIT.fullmatch(self.split)
        first, last = match.group("first", "last") if match else (None, None)
        return int(first or 0), None if last is None else int(last)

    @property
    def path(self) -> Path | None:
        """The local file or folder that is meant, whether or not it exists; None for anything else.

        What exists is meant; so is what looks like a path or a file name rather than `owner/name`.
        """
        if self.source == DEMO or self.source.startswith(SHIPPED):
            return None
        path = Path(self.source).expanduser()
        looks_local = self.source.startswith((".", "~", "/")) or self.source.count("/") > 1 or path.suffix in SUFFIXES
        return path if looks_local or path.exists() else None

    def span(self, length: int) -> range:
        """The rows that are meant, of a list of `length` rows.

        Raises:
            InputError: some of them do not exist; the message has the numbers.
        """
        first, last = self.bounds
        begin = first + length if first < 0 else first
        end = length if last is None else last + length if last < 0 else last
        if begin < 0 or end > length or begin >= max(end, 1):
            raise InputError(
                f"{self.label} has {length} rows where {self._wanted()} were asked for",
                fix="Ask for rows that it has",
            )
        return range(begin, end)

    @property
    def label(self) -> str:
        """How messages name it."""
        config = f"{self.config}, " if self.config else ""
        return f"The prompt source {self.source} ({config}{self.split_name})"

    def _wanted(self) -> str:
        first, last = self.bounds
        return f"rows {first} to {'the end' if last is None else last}"


def _fields(text: str) -> dict[str, str]:
    """`NAME::key=value,...` as a table for validation.

    Raises:
        ValueError: a part is not key=value, or a key comes twice.
    """
    name, _, rest = text.strip().partition("::")
    fields = {"source": name}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key.strip() in fields:
            raise ValueError(f"{part!r} is not key=value" if not equals else f"{key.strip()} is given twice")
        fields[key.strip()] = value.strip()
    return fields
