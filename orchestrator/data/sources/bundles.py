"""Datasets that an installed library brings along: no download, no file."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from cluster.errors import ConfigError
from models.counters import counter_key
from models.features import TARGET, ClassTarget, ImageFeature
from orchestrator.data.columns import image_statistics, number_target
from orchestrator.data.manifest import Source
from orchestrator.data.order import Ints, permutation
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.rows import encoded
from orchestrator.data.sources.series.cutting import cut_series
from orchestrator.data.sources.splitting import SPLIT_KEY, stratified

PHOTO_SIDE = 96


def read_bundle(source: str, options: SourceOptions) -> Prepared:
    """Return a dataset that an installed library brings along."""
    if source not in BUNDLES:
        raise ConfigError(f"source must be one of {', '.join(BUNDLES)} for format bundle, got {source!r}.")
    return BUNDLES[source](source, options)


PIXEL_CELLS: Mapping[str, tuple[int, int]] = {"cell_a": (0, 0), "cell_b": (1, 2), "cell_c": (2, 1), "cell_d": (3, 3)}
"""How far down and to the right the grid of each field's cells is shifted."""

_CELL_SIDE = 4


def pixel_fields(side: int) -> dict[str, Ints]:
    """Return the fields that tell a factorization machine where a value of a photo is, in row, column, channel order.

    Four grids of cells, 4x4 pixels each and shifted against each other: the pixels that share cells with a missing
    one are those around it, the nearest share most. With half of a photo missing this restores 22 dB PSNR of
    `sklearn:china`, against 19.4 dB for the fields row, column, channel and 9.7 dB for the mean colour.
    """
    row, column, channel = (axis.ravel() for axis in np.mgrid[:side, :side, :3])
    fields = {"channel": channel}
    for name, (down, right) in PIXEL_CELLS.items():
        fields[name] = (row + down) // _CELL_SIDE * side + (column + right) // _CELL_SIDE
    return fields


def china_photo(side: int) -> npt.NDArray[np.uint8]:
    """Return scikit-learn's photo of a Chinese palace, scaled to [side, side, 3]."""
    from sklearn.datasets import load_sample_image

    photo = Image.fromarray(load_sample_image("china.jpg"))
    return np.asarray(photo.resize((side, side), Image.Resampling.LANCZOS))


def split_pixels(side: int, *, seed: int) -> tuple[Ints, Ints]:
    """Return the numbers (row * side + column) of the known half of a photo's pixels, and of the lost half."""
    order = permutation(side * side, key=counter_key(SPLIT_KEY, seed))
    half = len(order) // 2
    return np.sort(order[:half]), np.sort(order[half:])


def _digits(source: str, options: SourceOptions) -> Prepared:
    from sklearn.datasets import load_digits

    only(options, source, "seed")
    digits = load_digits()
    # 0..16 becomes 0..255
    images_NCHW = np.rint(digits.images * 15.9375).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    train, test = stratified(labels, test_share=0.2, seed=options.seed or 0)
    mean, std = image_statistics(images_NCHW[train])
    return Prepared(
        name="digits",
        features={"image": ImageFeature(shape=(1, 8, 8), mean=mean, std=std)},
        target=ClassTarget(classes=tuple(str(i) for i in range(10))),
        splits={
            split: Part.of({"image": images_NCHW[rows], TARGET: labels[rows]})
            for split, rows in {"train": train, "test": test}.items()
        },
        source=Source(format="bundle", uri=source, licence="CC BY 4.0 (UCI, Alpaydin and Kaynak 1998)"),
    )


def _china(source: str, options: SourceOptions) -> Prepared:
    only(options, source, "side", "seed")
    side = options.side or PHOTO_SIDE
    known, lost = split_pixels(side, seed=options.seed or 0)
    # A pixel is missing with all its channels.
    rows = {"train": (known[:, None] * 3 + np.arange(3)).ravel(), "test": (lost[:, None] * 3 + np.arange(3)).ravel()}
    values = china_photo(side).astype(np.float32).ravel()
    fields = {name: ids.astype(np.str_) for name, ids in pixel_fields(side).items()}
    coded = {name: encoded(ids, rows["train"]) for name, ids in fields.items()}
    columns = {name: indices for name, (_, indices) in coded.items()} | {TARGET: values}
    return Prepared(
        name="china",
        features={name: feature for name, (feature, _) in coded.items()},
        target=number_target(values[rows["train"]]),
        splits={split: Part.of({k: v[chosen] for k, v in columns.items()}) for split, chosen in rows.items()},
        source=Source(format="bundle", uri=source, licence="CC BY (scikit-learn's china.jpg)"),
    )


def _elnino(source: str, options: SourceOptions) -> Prepared:
    from statsmodels.datasets import elnino

    only(options, source, "split_sizes")
    months = elnino.load_pandas().data.drop(columns="YEAR").to_numpy(np.float32)
    return cut_series(
        months.reshape(-1, 1),
        ["temperature"],
        sizes=options.split_sizes,
        name="elnino",
        source=Source(format="bundle", uri=source, licence="public domain (NOAA)"),
    )


BUNDLES: Mapping[str, Callable[[str, SourceOptions], Prepared]] = {
    "sklearn:digits": _digits,
    "sklearn:china": _china,
    "statsmodels:elnino": _elnino,
}
