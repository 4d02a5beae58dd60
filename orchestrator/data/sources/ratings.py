"""Ratings: a TSV of user, item, rating, timestamp (MovieLens `u.data`)."""

from pathlib import Path

import numpy as np

from cluster.errors import ConfigError
from models.counters import counter_key
from models.features import TARGET
from orchestrator.data.columns import number_target
from orchestrator.data.manifest import Source
from orchestrator.data.order import permutation
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.rows import as_name, categorical, indices, lines, number, require_rows
from orchestrator.data.sources.splitting import SPLIT_KEY


def read_ratings(source: str, options: SourceOptions) -> Prepared:
    """Read a TSV of ratings, and hold 10 % of them, drawn at random, back as the test split."""
    only(options, "ratings", "seed")
    path = Path(source)
    users, items, ratings = _parse_ratings(path)
    order = permutation(len(ratings), key=counter_key(SPLIT_KEY, options.seed or 0))
    cut = len(ratings) - max(1, len(ratings) // 10)
    rows = {"train": np.sort(order[:cut]), "test": np.sort(order[cut:])}
    features = {
        "user": categorical(np.array(users)[rows["train"]]),
        "item": categorical(np.array(items)[rows["train"]]),
    }
    columns = {
        "user": indices(users, features["user"]),
        "item": indices(items, features["item"]),
        TARGET: np.array(ratings, np.float32),
    }
    return Prepared(
        name=as_name(path.resolve().parent.name if path.name == "u.data" else path.stem),  # MovieLens
        features=features,
        target=number_target(columns[TARGET][rows["train"]]),
        splits={split: Part.of({k: v[chosen] for k, v in columns.items()}) for split, chosen in rows.items()},
        source=Source(format="ratings", uri=source),
    )


def _parse_ratings(path: Path) -> tuple[list[str], list[str], list[float]]:
    users, items, ratings = [], [], []
    rows: dict[tuple[str, str], int] = {}
    for row, fields in lines(path, delimiter="\t"):
        if row == 1 and "rating" in fields:
            continue
        if len(fields) not in (3, 4):
            raise ConfigError(
                f"{path} must have user, item, rating and timestamp, separated by tabs, got {len(fields)} fields "
                f"in row {row}."
            )
        user, item = fields[:2]
        if (user, item) in rows:
            raise ConfigError(
                f"{path} must rate each item once per user, got user {user} and item {item} in rows "
                f"{rows[user, item]} and {row}. Remove one: a copy in the test split would be known from training."
            )
        rows[user, item] = row
        users.append(user)
        items.append(item)
        ratings.append(number(fields[2], "rating", path, row))
    require_rows(len(ratings), path, least=2)
    return users, items, ratings
