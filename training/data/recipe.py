"""What a recipe says about data: where rows come from, what is mended or removed, how they are parted."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cluster.settings import Columns, Seed, Strict

TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FORMATS = ("csv", "json", "jsonl", "parquet")


class Source(Strict):
    """One table of business data: a file (`read`), a database (`database` + `query`), a hub data set (`hub`) or the
    names of pictures or sounds (`files`)."""

    example: ClassVar[str] = "{read: data/tickets.jsonl}"

    read: str | None = Field(None, description="A file, a glob or an s3:// address, relative to the recipe.")
    format: Literal["csv", "json", "jsonl", "parquet"] | None = Field(
        None, description="The file format, where the ending does not tell."
    )
    encoding: str = Field("utf-8", description="The text encoding of CSV and JSON files, e.g. gb18030 or latin-1.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="What separates the columns of a CSV file.")
    missing: Columns = Field(
        default_factory=list,
        description="What stands for nothing in a CSV file beside an empty value, e.g. [NA, '-']. A finished model is "
        "asked with empty values instead.",
    )
    database: str | None = Field(None, description="An SQLAlchemy URL; put passwords in ${env:NAME}.")
    query: str | None = Field(None, description="The SQL that the database runs; its result is the table.")
    hub: str | None = Field(None, description="A Hugging Face data set: a hub id or a local folder.")
    subset: str | None = Field(None, description="The hub data set's configuration name.")
    split: str | None = Field(None, description="The hub data set's split, e.g. train.")
    files: Columns | None = Field(
        None,
        description="Pictures or sounds: a glob or several. Each is a row of the table, with its name in `file`.",
    )
    pattern: str = Field(
        "{name}",
        description="What a file's name tells, as in {digit}_{speaker}_{index}.wav or {label}/{name}.png: each part in "
        "braces is a column. It is laid against the end of the path.",
    )

    @field_validator("pattern")
    @classmethod
    def _parts_named(cls, pattern: str) -> str:
        names = re.findall(r"\{([^{}]*)\}", pattern)
        wrong = next((name for name in names if not TABLE_NAME.fullmatch(name) or names.count(name) > 1), None)
        if not names or wrong is not None or "file" in names:
            raise ValueError("a pattern names each part once, in letters, digits and _, and none of them file")
        return pattern

    @model_validator(mode="after")
    def _one_kind(self) -> "Source":
        kinds = [kind for kind in ("read", "database", "hub", "files") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none of them"
            raise ValueError(f"a source is one of read, database, hub or files; this one has {found}")
        if (self.database is None) != (self.query is None):
            raise ValueError("a database source needs both `database` and `query`")
        if self.hub is None and (self.split is not None or self.subset is not None):
            raise ValueError("`split` and `subset` belong to a hub source")
        if self.read is None and self.missing:
            raise ValueError("`missing` belongs to a `read` source of CSV files")
        if self.files is None and self.pattern != type(self).model_fields["pattern"].default:
            raise ValueError("`pattern` belongs to a `files` source")
        return self


class NearDuplicates(Strict):
    """Rows whose text differs only in a few characters."""

    example: ClassVar[str] = "{columns: [text]}"

    columns: Columns = Field(description="The text columns that are compared.")
    similarity: float = Field(
        0.9, gt=0.5, le=1, description="Jaccard similarity of character 5-grams from which two rows are near copies."
    )


class Clean(Strict):
    """What is mended or removed after the fusion, in this order."""

    unicode: Literal["NFC", "NFKC", "NFD", "NFKD", "none"] = Field(
        "NFC", description="The Unicode form that every text is brought to."
    )
    types: dict[str, Literal["integer", "float", "boolean", "string", "timestamp"]] = Field(
        default_factory=dict,
        description="Column: type. A value that does not fit is rejected with its row. A CSV column of that name that "
        "is called string is read as written: 007 and 1.10 stay what they are.",
    )
    allowed: dict[str, list[str | int | float | bool]] = Field(
        default_factory=dict, description="Column: the values it may have. A row with another one is rejected."
    )
    drop_empty: Columns = Field(default_factory=list, description="Rows with nothing in these columns are dropped.")
    drop_duplicates: Columns = Field(
        default_factory=list, description="Of rows equal in these columns the first is kept."
    )
    drop_near_duplicates: NearDuplicates | None = Field(None, description="Of near copies the first is kept.")


class HeldOut(Strict):
    """A split that is a source of its own."""

    example: ClassVar[str] = "{source: holdout}"

    source: str = Field(
        description="The name of a source. The fuse statement runs again with it in the place of the first table of "
        "its outermost FROM, wherever that table is named."
    )


def _fraction_or_source(value: Any) -> Any:
    if isinstance(value, dict | HeldOut):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"a fraction from 0 up to 1 or {{source: NAME}}, not {value!r}")
    return float(value)


Portion = Annotated[float | HeldOut, BeforeValidator(_fraction_or_source)]


class Split(Strict):
    """How rows are parted into train, validation and test. No row and no near copy of one stands in two of them."""

    validation: Portion = Field(0.1, description="The fraction used to choose the model, or {source: NAME}.")
    test: Portion = Field(0.1, description="The fraction used only to measure it, or {source: NAME}.")
    stratify: str | None = Field(None, description="Keep this column's shares equal in every split.")
    group: str | None = Field(None, description="Rows with one value here stay in one split.")
    time: str | None = Field(None, description="The oldest rows train, the newest test.")
    seed: Seed = Field(7, description="What the random choice is drawn from.")

    @model_validator(mode="after")
    def _consistent(self) -> "Split":
        ways = [way for way in ("stratify", "group", "time") if getattr(self, way)]
        if len(ways) > 1:
            raise ValueError(f"choose one of {' and '.join(ways)}")
        parts = [part for part in (self.validation, self.test) if isinstance(part, float)]
        if sum(parts) >= 1:
            raise ValueError(f"validation and test take {sum(parts):g} of the rows and leave none to train on")
        return self


class Data(Strict):
    """Where rows come from and what becomes of them before a model sees them."""

    sources: dict[str, Source] = Field(min_length=1, description="Name: source. Each name is a table in `fuse`.")
    fuse: str | None = Field(None, description="One SQL statement over the sources; left out for a single source.")
    corpus: str | None = Field(
        None,
        description="One SQL statement for all that there is to be found, also what no row of `fuse` is about; its "
        "columns are named like those of the inputs. Read by the tasks that search.",
    )
    clean: Clean = Field(default_factory=Clean, description="What is mended or removed.")
    split: Split = Field(default_factory=Split, description="How rows are parted.")
    max_rejected: float = Field(
        0.01,
        ge=0,
        le=1,
        description="The share of each source's rows, and of the fused rows, that may be rejected before a run stops.",
    )

    @field_validator("sources")
    @classmethod
    def _table_names(cls, sources: dict[str, Source]) -> dict[str, Source]:
        for name in sources:
            if not TABLE_NAME.fullmatch(name):
                raise ValueError(f"'{name}' cannot be a table name; use letters, digits and _")
        return sources

    @model_validator(mode="after")
    def _sources_named(self) -> "Data":
        held_out = [part.source for part in (self.split.validation, self.split.test) if isinstance(part, HeldOut)]
        for name in held_out:
            if name not in self.sources:
                raise ValueError(f"split names the source '{name}'; there is {', '.join(self.sources)}")
        fused = [name for name in self.sources if name not in held_out]
        if not fused:
            raise ValueError("every source is held out and none is left to train on")
        if self.fuse is None and len(fused) > 1:
            raise ValueError(f"several sources ({', '.join(fused)}) need a `fuse` statement that joins them")
        return self
