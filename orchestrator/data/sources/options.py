"""What a person may say about a source: `--option KEY=VALUE`, each of which belongs to some formats only."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cluster.errors import ConfigError
from models.preparing.rows import DatePart

Missing = Literal["refuse", "drop", "mean", "median", "category", "keep", "interpolate"]


class SourceOptions(BaseModel):
    """What a person may say about a source; each option belongs to some formats only."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    classes: tuple[str, ...] | None = None
    """Pictures: name of class 0, 1, ...; `cifar10` alone stands for its ten."""
    split_sizes: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    """Series: rows of train, validation and test; what is left over is not used. Default: 70, 10 and 20 %."""
    date: tuple[str, ...] | None = None
    """Series: the column of dates, or several whose fields make one, `[date, time]` or `[year, month]`, or one that
    counts the rows, 0, 1, 2, … or in other equal steps. Default: the one called `date`, `datetime`, `timestamp`,
    `time` and so on, or that looks like dates."""
    date_order: Literal["day-first", "month-first"] | None = None
    """Series: what comes first in dates such as 1/2/2016."""
    item: str | None = None
    """Series: the column that says which of many series in one file a row belongs to. Default: the one called
    `item_id`, `unique_id`, `series_id` or `timeseries_id`, if there is one. Ratings: the column of what is rated.
    Default: the one called `item`, `movie_id`, `book_id` or the like."""
    gaps: Literal["refuse", "keep", "interpolate", "split"] | None = None
    """Series: what becomes of steps that are missing: refuse them (the default), keep the rows as if nothing lacked
    (trading days), put a straight line there, or let no window cross them."""
    side: Annotated[int, Field(ge=16, le=512)] | None = None
    """Pictures kept as files: pixels of the square that a model reads, default 224. Photo: default `PHOTO_SIDE`."""
    encoding: Literal["raw", "file"] | None = None
    """Pictures: stored as raw bytes, or as JPEG and PNG files. Default: raw if all are small and of one size."""
    target: str | None = None
    """Tables, and text in a CSV: the column to predict. Default: the one called `label`, `target` or `class`."""
    task: Literal["class", "number"] | None = None
    """Tables, text in a CSV, svmlight: what the target is. Default: a class if it is text, or whole numbers of which
    there are at most 20 different ones."""
    text: str | None = None
    """Text in a CSV: its column. Default: the one called `text`, `sentence` or `review`."""
    ignore: tuple[str | int, ...] | None = None
    """Tables, series: columns to leave out, such as an identifier, by name or by place counted from 1. Text in folders:
    classes to leave out."""
    missing: Missing | dict[str, Missing] | None = None
    """Tables: what to do with missing values, of all columns or of each by its name, `*` being the others: `refuse`
    them (the default), `drop` their rows, fill numbers with the `mean` or `median` of training, or make them a
    `category` of their own: of numbers the mean, and another number that says so. `keep` reads `NA` and the like as
    categories. Series: `refuse`, `drop`, or put a straight line there (`interpolate`)."""
    missing_words: tuple[str, ...] | None = None
    """Tables: words for a missing value beside nothing, `NA`, `?`, `-`, `null`, `None` and `NaN`."""
    indicators: bool | None = None
    """Tables: whether a filled column of numbers has another beside it that says where it was filled."""
    decimal: Literal[".", ","] | None = None
    """Tables, series: what separates the decimals of a number; `comma` stands for a comma. Default: a point."""
    thousands: Literal[",", ".", " ", "'"] | None = None
    """Tables, series: what separates the thousands of a number; `space` stands for a blank. Default: nothing does."""
    dates: tuple[DatePart, ...] | None = None
    """Tables: the numbers that a date becomes: year, month, day, weekday, hour, seconds (since 1970)."""
    date_format: str | None = None
    """Tables: how dates are written, such as `%d/%m/%Y`. Default: ISO 8601, or found out."""
    categories: tuple[str, ...] | None = None
    """Tables: columns that are categories though they hold numbers, or many different texts."""
    numbers: tuple[str, ...] | None = None
    """Tables: columns called `…_id` that are numbers all the same."""
    user: str | None = None
    """Ratings: the column of users. Default: the one called `user`, `user_id`, `reviewerID` or the like."""
    rating: str | None = None
    """Ratings: the column of the ratings. Default: the one called `rating`, `stars`, `score`, `overall` or the like."""
    copies: Literal["refuse", "last", "mean"] | None = None
    """Ratings: what to do where a user has rated an item more than once: refuse it (the default), or take the `last`
    row or the `mean`."""
    negatives: Annotated[int, Field(ge=1, le=100)] | None = None
    """Ratings without a rating: how many items that a user has not are drawn for each row. Those are 0, the rows 1."""
    vocabulary: Annotated[int, Field(ge=10, le=1_000_000)] | None = None
    """Text: the most words that have a token of their own. Default: 20,000."""
    tokens: Literal["words", "characters"] | None = None
    """Text: what a text is split into. Default: characters where most letters are of a script without blanks (Chinese,
    Japanese, Thai, …), else words."""
    label: Literal["folder", "name"] | None = None
    """Sounds: the class is the name of the folder, or what comes before the first `_` of the file's name.
    Default: the folder if there are several, else the name."""
    rate: Annotated[int, Field(ge=1000, le=2**20)] | None = None
    """Sounds: samples per second to which those of other rates are resampled. Default: they must have one rate."""
    damaged: Literal["refuse", "skip"] | None = None
    """Pictures in folders, in Parquet, of CIFAR or with boxes, sounds: whether files and rows that cannot be read are
    refused (the default), or left out and listed in the manifest."""
    test: Annotated[str, Field(min_length=1)] | None = None
    """Sounds: files whose name matches this pattern (`*_[0-4].wav`) are the test split."""
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Where a split is drawn at random: share of the test split. Default: 0.2; ratings 0.1."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Where a split is drawn at random. Default: 0."""
    delimiter: Literal[",", ";", "|", "\t", "::"] | None = None
    """Delimited text: what separates its fields; `tab` stands for a tab. Default: found from the first rows."""
    quotes: Literal["fields", "letters"] | None = None
    """Delimited text: whether `"` encloses fields or is a letter. Default: encloses, unless tabs separate the fields
    and some field that begins with one does not end with one."""
    order: Literal["random", "keep"] | None = None
    """All but series: whether the rows are written in a random order (the default), or kept in that of the source."""
    leakage: Literal["refuse", "drop", "keep"] | None = None
    """All: what to do with rows of the test or validation split that are in the training split too: refuse them (the
    default), drop the copies in training, or keep them."""

    unknown: tuple[str, ...] | None = None
    """Names that no format knows; whatever reads the source answers them with those of its format."""

    @field_validator("delimiter", mode="before")
    @classmethod
    def _a_tab_has_a_name(cls, value: object) -> object:
        return "\t" if value == "tab" else value

    @field_validator("decimal", "thousands", mode="before")
    @classmethod
    def _a_mark_has_a_name(cls, value: object) -> object:
        return {"point": ".", "comma": ",", "space": " "}.get(value, value) if isinstance(value, str) else value

    @field_validator("classes", "ignore", "date", "missing_words", "dates", "categories", "numbers", mode="before")
    @classmethod
    def _one_word_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str | int) else value


DELIMITED = ("delimiter", "quotes")
"""Options of all files of rows with a delimiter."""

_OF_PUSHING = ("leakage", "order")  # pushing looks for these, whatever the format


def parse_options(values: Mapping[str, object], *, is_source_known: bool = False) -> SourceOptions:
    """Return the options that a person typed.

    Args:
        values: by name.
        is_source_known: whether the source is at hand: then `only` answers an unknown name with those of its format.

    Raises:
        ConfigError: if there is no such option, or its value does not fit.
    """
    unknown = tuple(name for name in values if name not in SourceOptions.model_fields)
    if is_source_known and unknown:
        known = {name: value for name, value in values.items() if name not in unknown}
        return parse_options({**known, "unknown": unknown})
    try:
        return SourceOptions.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0] if first["loc"] else "options"
        if first["type"] == "extra_forbidden":
            names = [field for field in SourceOptions.model_fields if field != "unknown"]
            raise ConfigError(f"option must be one of {', '.join(names)}, got {_meant(name, names)}") from error
        raise ConfigError(f"option {name} must fit: {first['msg']}, got {first['input']!r}.") from error


def _meant(name: object, known: Sequence[str]) -> str:
    near = get_close_matches(str(name), known, n=1)
    return f"{name!r}." + (f" Did you mean {near[0]}?" if near else "")


def only(options: SourceOptions, format: str, *allowed: str) -> None:
    """Refuse an option that was given and that the format has not."""
    if options.unknown:
        names = (*allowed, *_OF_PUSHING)
        raise ConfigError(
            f"option must be one of those of {format}, {', '.join(names)}, got {_meant(options.unknown[0], names)}"
        )
    for name, value in options.model_dump(exclude_none=True).items():
        if name not in (*allowed, *_OF_PUSHING):
            raise ConfigError(
                f"{name} must be left out for {format}, which has no such option, got {value}. Its "
                f"options are {', '.join(sorted({*allowed, *_OF_PUSHING}))}."
            )
