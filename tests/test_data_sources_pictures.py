"""Sources with pictures: what comes out of each format, and that every malformed one is named with its file and row."""

import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import ConfigError
from models.features import TARGET, BoxesTarget, ClassTarget
from models.pictures import MAX_PIXELS, PictureError, decode_picture, fit_for
from orchestrator.data.columns import Ragged
from orchestrator.data.push import push
from orchestrator.data.sources.cifar import read_cifar
from orchestrator.data.sources.files import Bucket
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.huggingface import CIFAR10_CLASSES, read_huggingface_images
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.picture_files import cut_into_pieces, mixed
from orchestrator.data.sources.pictures import DEFAULT_SIDE
from orchestrator.data.sources.prepared import Part
from orchestrator.data.sources.voc import parse_annotation
from tests.fake_store import MemoryStore

SHARED = Path(__file__).parents[2] / "shared" / "data"
random = np.random.default_rng(0)


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (SHARED / name).exists(), reason=f"shared/data/{name} is not here")


def encoded(pixels: np.ndarray, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **settings)
    return file.getvalue()


def noise(height: int = 5, width: int = 4, *channels: int) -> np.ndarray:
    return random.integers(0, 256, (height, width, *(channels or (3,))), np.uint8)


def grey(height: int = 5, width: int = 4) -> np.ndarray:
    return random.integers(0, 256, (height, width), np.uint8)


def write_all(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def refused(root: Path, message: str, *, format: str | None = None, **options) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        for part in prepare(str(root), format=format, options=SourceOptions(**options)).splits.values():
            assert part.rows == len(part.columns[TARGET])
    assert str(root) in str(raised.value)


# ---- pixels


def test_a_picture_fills_the_square_and_is_cropped_in_the_middle_or_stretched():
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 200  # the square in the middle
    cropped = decode_picture(encoded(pixels), (3, 16, 16))
    assert cropped.shape == (3, 16, 16)
    assert cropped[:, :, 1:-1].min() == 200
    stretched = decode_picture(encoded(pixels), (3, 16, 16), fit="stretch")
    assert (stretched[:, :, :3].max(), stretched[:, :, 5:11].min(), stretched[:, :, 13:].max()) == (0, 200, 0)
    assert [fit_for(kind) for kind in ("class", "number", "boxes")] == ["crop", "crop", "stretch"]


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5), (16, 16), (700, 33), (33, 700)])
def test_a_picture_of_any_size_becomes_the_shape(size, fit):
    for kind in ("PNG", "JPEG"):
        data = encoded(np.full((*size, 3), 120, np.uint8), kind)
        assert np.abs(decode_picture(data, (3, 16, 16), fit=fit).astype(int) - 120).max() <= 1
        assert decode_picture(data, (1, 8, 12), fit=fit).shape == (1, 8, 12)


def test_a_picture_of_the_right_size_is_not_changed():
    pixels = noise(9, 7)
    assert np.array_equal(decode_picture(encoded(pixels), (3, 9, 7)), pixels.transpose(2, 0, 1))


def test_a_large_jpeg_decoded_at_a_part_of_its_size_looks_as_if_it_were_not():
    rows, columns = np.mgrid[:600, :800]
    waves = 127 + 100 * np.sin(rows / 40) * np.cos(columns / 60)
    data = encoded(np.repeat(waves[:, :, None], 3, 2).astype(np.uint8), "JPEG", quality=95)
    whole = Image.open(io.BytesIO(data)).resize((64, 64), Image.Resampling.BILINEAR, box=(100, 0, 700, 600))
    difference = decode_picture(data, (3, 64, 64)).astype(int) - np.asarray(whole).transpose(2, 0, 1)
    assert np.abs(difference).mean() < 0.5


def test_a_lying_picture_is_put_upright():
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    for kind in ("PNG", "JPEG"):
        exif = Image.Exif()
        exif[0x0112] = 6  # turn clockwise
        upright = decode_picture(encoded(pixels, kind, exif=exif), (3, 16, 8)).astype(int)
        assert upright[:, :7].max() < 40
        assert upright[:, 9:].min() > 215


@pytest.mark.parametrize(
    ("mode", "fill", "colour"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("P", 0, (0, 0, 0)),
        ("LA", (100, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("I;16", 40_000, (156, 156, 156)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_eight_bits_of_colour_or_grey(mode, fill, colour):
    file = io.BytesIO()
    Image.new(mode, (6, 6), fill).save(file, "JPEG" if mode == "CMYK" else "PNG")
    picture = decode_picture(file.getvalue(), (3, 4, 4))
    assert picture.mean((1, 2)).tolist() == pytest.approx(colour, abs=1)
    assert decode_picture(file.getvalue(), (1, 4, 4)).shape == (1, 4, 4)


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG that claims more pixels than it has."""
    small = bytearray(encoded(noise()))
    small[16:24] = struct.pack(">II", width, height)
    small[29:33] = struct.pack(">I", zlib.crc32(bytes(small[12:29])))
    return bytes(small)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "nothing"),
        (b"text", "something else"),
        (encoded(noise(), "GIF"), "something else"),
        (encoded(noise(64, 64))[:500], "a damaged one"),
        (encoded(noise(64, 64), "JPEG")[:800], "a damaged one"),
        (bomb(), "far too many pixels"),
        (bomb(8_001, 8_000), f"8001 x 8000, more than {MAX_PIXELS:,} pixels"),
    ],
)
def test_what_is_no_picture_is_told(data, found):
    with pytest.raises(PictureError, match=found):
        decode_picture(data, (3, 8, 8))


# ---- Parquet


def parquet(rows: int = 6, *, column: str = "image", names: list[str] | None = None, **change) -> bytes:
    """A file as Hugging Face writes it; `change` replaces columns, or leaves them out with `None`."""
    table = {
        column: [{"bytes": encoded(noise()), "path": f"{i}.png"} for i in range(rows)],
        "label": [i % 3 for i in range(rows)],
    }
    table |= {name: value(rows) if callable(value) else value for name, value in change.items()}
    arrow = pa.table({name: values for name, values in table.items() if values is not None})
    if not rows:
        arrow = pq.read_table(io.BytesIO(parquet())).slice(0, 0)
    if names is not None:
        arrow = arrow.replace_schema_metadata(hub_metadata("label", names))
    file = io.BytesIO()
    pq.write_table(arrow, file)
    return file.getvalue()


def hub_metadata(column: str, names: object) -> dict[str, str]:
    return {"huggingface": json.dumps({"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}})}


def parquet_folder(root: Path, **change) -> Path:
    """Training and test files; `change` concerns training alone."""
    return write_all(root, {"train-0-of-1.parquet": parquet(**change), "test-0-of-1.parquet": parquet(3)})


def test_pictures_come_out_of_parquet_as_they_went_in(tmp_path):
    pixels = [noise() for _ in range(600)]
    rows = [{"bytes": encoded(image), "path": None} for image in pixels]
    content = pa.table({"img": rows, "label": [i % 3 for i in range(600)]})
    pq.write_table(content, tmp_path / "train.parquet", row_group_size=100)
    pq.write_table(content.slice(0, 7), tmp_path / "test.parquet")
    prepared = prepare(str(tmp_path))
    for split, count in (("train", 600), ("test", 7)):
        columns = prepared.splits[split].columns
        assert np.array_equal(columns["image"], np.stack(pixels[:count]).transpose(0, 3, 1, 2))
        assert columns[TARGET].tolist() == [i % 3 for i in range(count)]
    feature = prepared.features["image"]
    assert (feature.encoding, feature.shape, feature.mean, feature.std) == ("raw", (3, 5, 4), (), ())
    assert prepared.target == ClassTarget(classes=("0", "1", "2"))


def test_a_large_parquet_file_is_cut_at_its_row_groups_and_a_piece_knows_its_first_row(tmp_path, monkeypatch):
    rows = [{"bytes": encoded(noise()), "path": None} for _ in range(60)]
    rows[57] = {"bytes": b"no picture", "path": None}
    content = pa.table({"image": rows, "label": [i % 3 for i in range(60)]})
    pq.write_table(content, tmp_path / "train.parquet", row_group_size=10)
    write_all(tmp_path, {"test.parquet": parquet(3)})
    monkeypatch.setattr("orchestrator.data.sources.huggingface._LOOKS", 20)
    monkeypatch.setattr("orchestrator.data.sources.picture_files.PIECE_BYTES", 2 * 1200)
    pieces = prepare(str(tmp_path)).splits["train"].pieces
    assert len(pieces) > 2
    assert sum(piece.rows for piece in pieces) == 60
    again = pickle.loads(pickle.dumps(pieces[1]))
    assert again.read()[TARGET].tolist() == [(pieces[0].rows + i) % 3 for i in range(again.rows)]
    with pytest.raises(ConfigError, match=r"row 57 of .*train\.parquet must be a whole picture .* got something else"):
        pieces[-1].read()


def test_grey_pictures_have_one_channel(tmp_path):
    rows = [{"bytes": encoded(grey()), "path": None} for _ in range(6)]
    content = parquet(image=rows)
    prepared = prepare(str(write_all(tmp_path, {"train.parquet": content, "test.parquet": content})))
    assert prepared.features["image"].shape == (1, 5, 4)
    assert prepared.splits["train"].columns["image"].shape == (6, 1, 5, 4)


def test_large_or_mixed_pictures_are_kept_as_the_files_that_they_were(tmp_path):
    pictures = [encoded(noise(90, 80), "JPEG"), encoded(noise(70, 80)), encoded(noise(80, 70), "BMP")] * 2
    rows = [{"bytes": data, "path": None} for data in pictures]
    content = parquet(image=rows)
    prepared = prepare(str(write_all(tmp_path, {"train.parquet": content, "test.parquet": content})))
    assert prepared.features["image"].encoding == "file"
    assert prepared.features["image"].shape == (3, DEFAULT_SIDE, DEFAULT_SIDE)
    files = prepared.splits["train"].columns["image"]
    assert isinstance(files, Ragged)
    assert [files[0].tobytes(), files[1].tobytes()] == pictures[:2]
    converted = Image.open(io.BytesIO(files[2].tobytes()))
    assert converted.format == "PNG"
    assert np.array_equal(np.asarray(converted), np.asarray(Image.open(io.BytesIO(pictures[2]))))
    assert prepare(str(tmp_path), options=SourceOptions(side=32)).features["image"].shape == (3, 32, 32)


def test_small_pictures_may_be_kept_as_files_and_large_ones_stored_raw(tmp_path):
    small = parquet_folder(tmp_path / "small")
    feature = prepare(str(small), options=SourceOptions(encoding="file", side=16)).features["image"]
    assert (feature.encoding, feature.shape) == ("file", (3, 16, 16))
    rows = [{"bytes": encoded(noise(90, 80)), "path": None} for _ in range(6)]
    content = parquet(image=rows)
    large = write_all(tmp_path / "large", {"train.parquet": content, "test.parquet": content})
    assert prepare(str(large)).features["image"].encoding == "file"
    assert prepare(str(large), options=SourceOptions(encoding="raw")).features["image"].shape == (3, 90, 80)


def test_class_names_come_from_the_person_the_metadata_or_the_labels_themselves(tmp_path):
    folder = parquet_folder(tmp_path, names=["x", "y", "z"])
    assert prepare(str(folder)).target == ClassTarget(classes=("x", "y", "z"))
    named = prepare(str(folder), options=SourceOptions(classes=("a", "b", "c")))
    assert named.target == ClassTarget(classes=("a", "b", "c"))
    words = {"train.parquet": parquet(label=["b", "a", "c"] * 2), "test.parquet": parquet(2, label=["c", "a"])}
    prepared = prepare(str(write_all(tmp_path / "words", words)))
    assert prepared.target == ClassTarget(classes=("a", "b", "c"))
    assert prepared.splits["train"].columns[TARGET].tolist() == [1, 0, 2, 1, 0, 2]
    assert prepared.splits["test"].columns[TARGET].tolist() == [2, 0]


def test_of_several_labels_the_fine_one_is_taken_or_the_one_that_is_named(tmp_path):
    labels = {
        "label": None,
        "fine_label": lambda n: [i % 3 for i in range(n)],
        "coarse_label": lambda n: [i % 2 for i in range(n)],
    }
    root = write_all(tmp_path, {"train.parquet": parquet(**labels), "test.parquet": parquet(3, **labels)})
    assert len(prepare(str(root)).target.classes) == 3
    assert len(prepare(str(root), options=SourceOptions(target="coarse_label")).target.classes) == 2


def test_parquet_files_may_lie_in_one_folder_below_and_validation_alone_is_what_one_tests_on(tmp_path):
    root = write_all(tmp_path, {"plain_text/train-0.parquet": parquet(), "plain_text/valid-0.parquet": parquet(3)})
    assert {name: part.rows for name, part in prepare(str(root)).splits.items()} == {"train": 6, "test": 3}
    write_all(tmp_path, {"plain_text/test-0.parquet": parquet(4)})
    assert list(prepare(str(root)).splits) == ["train", "validation", "test"]


good = {"bytes": encoded(noise()), "path": "a"}
jpeg = encoded(noise(64, 64), "JPEG")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"image": [*[good] * 5, {"bytes": b"no picture", "path": "b"}]}, {}, "row 5 of .* got something else"),
        ({"image": [*[good] * 5, {"bytes": None, "path": "/etc/passwd"}]}, {}, "row 5 of .* got nothing. Replace"),
        ({"image": [*[good] * 5, None]}, {}, "row 5 of .* must be a whole picture .* got nothing"),
        (
            {"image": [*[good] * 5, {"bytes": jpeg[:900], "path": "b"}]},
            {"encoding": "file"},
            "row 5 of .* a damaged one",
        ),
        ({"image": [*[good] * 5, {"bytes": bomb(), "path": "b"}]}, {}, "row 5 of .* got far too many pixels"),
        (
            {"image": [*[good] * 5, {"bytes": encoded(noise(6, 4)), "path": "b"}]},
            {"encoding": "raw"},
            "must have one size to be stored raw, got 4 x 6 in row 5 of .* and 4 x 5 in row 0 of",
        ),
        ({}, {"encoding": "raw", "side": 16}, None),
        ({"image": ["text"] * 6}, {}, "must have a column 'img' or 'image' of .* got image: string"),
        (
            {"image": [{"path": "a"}] * 6},
            {},
            "must have a column 'img' or 'image' of .* got image: struct<path: string>",
        ),
        ({"label": None}, {}, "and a column 'label', got image: struct"),
        ({}, {"target": "nowhere"}, "and a column 'nowhere', got image: struct"),
        ({"label": [0.5] * 6}, {}, "must be a whole number or a text, got type double"),
        ({"label": [True, False] * 3}, {}, "must be a whole number or a text, got type bool"),
        ({"label": [0, 1, None, 1, 1, 1]}, {}, "must be given, got nothing in row 2"),
        ({"label": [0, 1, 1, -1, 1, 1]}, {}, r"row 3 of .*train.* must be in 0\.\.2, got -1"),
        ({"label": [0, 1, 2, 9, 1, 1]}, {"classes": ("a", "b", "c")}, r"row 3 of .* must be in 0\.\.2, got 9"),
        ({"label": [0, 1, 1, 9, 1, 1]}, {}, "must take every value from 0 to 9 .* got none of 3"),
        ({"label": [0, 1, 1, 0, 1, 1]}, {"classes": ("a", "b", "c")}, "must hold every class, got no row of 'c'"),
        ({"label": ["a", "b", "a"] * 2}, {}, "must have the same classes, got different ones"),
        ({"names": ["x", "y", "x"]}, {}, "must give every class a name of its own, got 'x' 2 times"),
        ({"names": ["x", "y", "z\n\x1b[31m"]}, {}, r"must give every class a plain name, got 'z\\n\\x1b\[31m'"),
        ({"names": [1, 2, 3]}, {}, r"the names of label in .* must be a list of texts, got \[1, 2, 3\]"),
        ({"rows": 0}, {}, "must hold at least 1 row, got 0"),
    ],
)
def test_a_malformed_parquet_file_is_named_with_its_row(tmp_path, change, options, message):
    parquet_folder(tmp_path, **change)
    if message is None:
        with pytest.raises(ConfigError, match="side must be left out for encoding raw"):
            prepare(str(tmp_path), options=SourceOptions(**options))
    else:
        refused(tmp_path, message, **options)


def test_a_text_label_that_training_never_saw_is_refused(tmp_path):
    files = {"train.parquet": parquet(label=["a", "b"] * 3), "test.parquet": parquet(2, label=["b", "new"])}
    refused(
        write_all(tmp_path, files),
        r"label in .*test\.parquet must be a class of the training split, got 'new' in row 1",
    )


def test_metadata_that_are_no_json_are_refused(tmp_path):
    table = pq.read_table(io.BytesIO(parquet())).replace_schema_metadata({"huggingface": "{oops"})
    pq.write_table(table, parquet_folder(tmp_path) / "train-0-of-1.parquet")
    refused(tmp_path, "the metadata 'huggingface' of .* must be JSON")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train-0.parquet"], "got train-0.parquet"),
        (["train-0.parquet", "test-0.parquet", "extra-0.parquet"], "got extra-0.parquet, test-0.parquet"),
    ],
)
def test_a_folder_without_the_expected_parquet_files_is_refused(tmp_path, files, message):
    for file in files:
        (tmp_path / file).write_bytes(b"")
    refused(tmp_path, rf"must hold files named train-\*\.parquet .* {message}")


def test_parquet_files_in_two_folders_are_refused(tmp_path):
    refused(write_all(tmp_path, {"a/train.parquet": b"", "b/train.parquet": b""}), "in one folder, got some in a and b")


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"PAR1 no PAR1",
        lambda data: data[:300],
        lambda data: data[:-1],
        lambda data: data.replace(b"label", b"lab\xb6l"),
    ],
)
def test_a_file_that_is_no_whole_parquet_is_refused(tmp_path, damage):
    file = parquet_folder(tmp_path) / "test-0-of-1.parquet"
    file.write_bytes(damage(file.read_bytes()))
    refused(tmp_path, r"test-0-of-1\.parquet must be a whole Parquet file")


def test_damage_within_a_parquet_file_is_found_when_its_piece_is_read(tmp_path):
    file = parquet_folder(tmp_path) / "train-0-of-1.parquet"
    pieces = prepare(str(tmp_path)).splits["train"].pieces
    data = bytearray(file.read_bytes())
    data[4:60] = os.urandom(56)
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=r"row group 0 of .*train-0-of-1\.parquet must be whole, got"):
        pieces[0].read()


def damaged_parquet(root: Path) -> list[str]:
    """Four files: one cut, one with cut pictures, one with a row group of noise, one whole; what is damaged in them."""

    def rows(start: int, count: int) -> pa.Table:
        pictures = [{"bytes": encoded(np.full((5, 4, 3), row, np.uint8)), "path": None} for row in range(start, count)]
        return pa.table({"image": pictures, "label": [i % 3 for i in range(start, count)]})

    pictures = rows(0, 30)
    spoilt = pictures.column("image").to_pylist()
    spoilt[7]["bytes"], spoilt[22]["bytes"] = spoilt[7]["bytes"][:-30], None
    pq.write_table(pictures.set_column(0, "image", pa.array(spoilt)), root / "train-0.parquet", row_group_size=10)
    pq.write_table(rows(30, 60), root / "train-1.parquet", row_group_size=10, use_dictionary=False)
    place = pq.read_metadata(root / "train-1.parquet").row_group(1).column(0).data_page_offset
    content = bytearray((root / "train-1.parquet").read_bytes())
    content[place : place + 20] = b"\xff" * 20
    (root / "train-1.parquet").write_bytes(content)
    pq.write_table(rows(60, 90), root / "train-2.parquet")
    (root / "train-2.parquet").write_bytes((root / "train-2.parquet").read_bytes()[:-200])
    pq.write_table(rows(90, 99), root / "test-0.parquet")
    return [
        "train-2.parquet",
        "row 7 of train-0.parquet",
        "row 22 of train-0.parquet",
        "row group 1 of train-1.parquet (rows 10 to 19)",
    ]


def test_all_that_is_damaged_in_parquet_is_named_in_one_run_and_left_out_on_request(tmp_path):
    damaged = damaged_parquet(tmp_path)
    store = MemoryStore()
    with pytest.raises(ConfigError, match=r"^4 files must be readable, .* damaged=skip, or mend them:") as raised:
        push(store, str(tmp_path))
    lines = str(raised.value).splitlines()[1:]
    assert len(lines) == 4
    for line, place in zip(lines, ("train-2", "row 7 of", "row 22 of", "row group 1 of"), strict=True):
        assert place in line
    manifest = push(store, str(tmp_path), options=SourceOptions(damaged="skip", order="keep")).manifest
    files, pictures = manifest.source.changes
    assert (files.text, files.names) == ("1 of 4 files could not be read and were left out.", (damaged[0],))
    assert pictures.text == "12 of 69 pictures could not be read and were left out."
    assert pictures.names == tuple(damaged[1:]) and pictures.numbers == {"skipped": 12.0}
    assert {split: found.rows for split, found in manifest.splits.items()} == {"train": 48, "test": 9}
    columns = prepare(str(tmp_path), options=SourceOptions(damaged="skip")).splits["train"].columns
    kept = [row for row in range(60) if row not in (7, 22) and not 40 <= row < 50]
    assert columns["image"][:, 0, 0, 0].tolist() == kept
    assert columns[TARGET].tolist() == [row % 3 for row in kept]


@pytest.mark.parametrize("looks", [5, 256])
def test_damage_that_shows_when_pictures_of_parquet_are_read_is_named_in_one_run(tmp_path, monkeypatch, looks):
    damaged_parquet(tmp_path)
    (tmp_path / "train-2.parquet").unlink()
    monkeypatch.setattr("orchestrator.data.sources.huggingface._LOOKS", looks)
    with pytest.raises(ConfigError, match=r"^3 files must be readable") as raised:
        push(MemoryStore(), str(tmp_path))
    assert all(place in str(raised.value) for place in ("row 7 of", "row 22 of", "row group 1 of"))


def test_parquet_of_which_a_split_is_damaged_as_a_whole_is_refused(tmp_path):
    root = parquet_folder(tmp_path)
    test = root / "test-0-of-1.parquet"
    test.write_bytes(test.read_bytes()[:-50])
    refused(root, "test-0-of-1.parquet must be a whole Parquet file, got .* Or leave it out with --option damaged=skip")
    refused(root, "split test of .* must hold a row that can be read, got none", damaged="skip")


def test_whole_parquet_is_the_same_with_and_without_leave_to_skip(tmp_path):
    parquet_folder(tmp_path)
    store = MemoryStore()
    plain = push(store, str(tmp_path)).manifest
    allowed = push(store, str(tmp_path), name="allowed", options=SourceOptions(damaged="skip")).manifest
    assert allowed.version == plain.version
    assert [change.text for change in allowed.source.changes] == [
        "0 of 2 files could not be read and were left out.",
        "0 of 9 pictures could not be read and were left out.",
    ]


def test_a_single_parquet_file_is_refused_with_the_cure(tmp_path):
    file = parquet_folder(tmp_path) / "test-0-of-1.parquet"
    with pytest.raises(ConfigError, match=r"must be a folder, got the file .* Give the folder that holds it"):
        prepare(str(file))


@pytest.mark.store
def test_pictures_in_a_bucket_are_read_as_those_in_a_folder(tmp_path, store):
    parquet_folder(tmp_path / "hub")
    write_all(tmp_path / "folder", {f"{c}/{i}.png": encoded(noise()) for c in ("cat", "dog") for i in range(10)})
    for file in sorted(tmp_path.rglob("*.*")):
        store.write(f"source/{file.relative_to(tmp_path).as_posix()}", file.read_bytes())
    for name in ("hub", "folder"):
        local = prepare(str(tmp_path / name))
        remote = prepare(f"{store.settings.url.rstrip('/')}/source/{name}")
        assert remote.name == local.name
        assert remote.target == local.target
        for split, part in local.splits.items():
            piece = pickle.loads(pickle.dumps(remote.splits[split].pieces[0]))
            assert isinstance(piece.files, Bucket)
            for column, values in part.columns.items():
                assert np.array_equal(piece.read()[column], values)


# ---- folders


def folder(root: Path, *names: str, kind: str = "PNG") -> Path:
    return write_all(root, {name: encoded(noise(), kind) for name in names})


def given() -> list[str]:
    return [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in ("cat", "dog") for i in range(3)]


def labels_by_content(part: Part) -> list[tuple[bytes, int]]:
    """Raw pictures and their labels, in an order of their own."""
    columns = part.columns
    return sorted((image.tobytes(), int(label)) for image, label in zip(columns["image"], columns[TARGET], strict=True))


def test_a_folder_with_splits_is_read_with_the_classes_of_its_folders(tmp_path):
    root = folder(tmp_path, *given(), "val/dog/0.png", "val/.DS_Store", "__MACOSX/cat/x.png")
    prepared = prepare(str(root))
    assert prepared.target == ClassTarget(classes=("cat", "dog"))
    assert {split: part.rows for split, part in prepared.splits.items()} == {"train": 6, "validation": 1, "test": 6}
    expected = sorted(
        (np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes(), int(path.parent.name == "dog"))
        for path in (root / "train").rglob("*.png")
    )
    assert labels_by_content(prepared.splits["train"]) == expected


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".jfif"])
def test_every_suffix_is_read(tmp_path, suffix):
    kind = {".jpg": "JPEG", ".jfif": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
    files = {name.replace(".png", suffix): encoded(grey(20, 20), kind) for name in given()}
    prepared = prepare(str(write_all(tmp_path, files)))
    assert prepared.features["image"].shape[1:] == (20, 20)
    assert (
        prepare(str(tmp_path), options=SourceOptions(encoding="file")).splits["test"].columns["image"].lengths.min() > 0
    )


def test_capitals_in_the_names_of_splits_do_not_matter(tmp_path):
    names = [name.replace("train", "Train").replace("test", "TEST") for name in given()]
    prepared = prepare(str(folder(tmp_path, *names, "Val/dog/0.png")))
    assert prepared.source.format == "image-folder"
    assert prepared.target == ClassTarget(classes=("cat", "dog"))
    assert {split: part.rows for split, part in prepared.splits.items()} == {"train": 6, "validation": 1, "test": 6}
    refused(
        folder(tmp_path, "train/cat/9.png"), "must hold one folder for split train, got Train and train. Merge them"
    )


def test_folders_below_a_class_belong_to_it(tmp_path):
    root = folder(tmp_path / "split", *given(), "train/cat/kitten/9.png", "test/dog/a/b/8.png")
    prepared = prepare(str(root))
    assert prepared.target == ClassTarget(classes=("cat", "dog"))
    assert {split: part.rows for split, part in prepared.splits.items()} == {"train": 7, "test": 7}
    kitten = np.asarray(Image.open(root / "train/cat/kitten/9.png")).transpose(2, 0, 1).tobytes()
    assert dict(labels_by_content(prepared.splits["train"]))[kitten] == 0
    names = [f"{name}/{place}{i}.png" for name in ("cat", "dog") for place in ("", "old/") for i in range(5)]
    prepared = prepare(str(folder(tmp_path / "drawn", *names)))
    assert prepared.target == ClassTarget(classes=("cat", "dog"))
    assert sum(part.rows for part in prepared.splits.values()) == 20


def test_all_damaged_pictures_are_named_in_one_run_and_left_out_on_request(tmp_path):
    jpeg = encoded(noise(40, 40, 3), "JPEG")
    files = {name: encoded(noise(40, 40, 3)) for name in given()}
    cut = {"train/cat/cut.jpg": jpeg[:700], "train/dog/cut.jpg": jpeg[:600], "test/dog/cut.jpg": jpeg[:650]}
    store = MemoryStore()
    for damaged in (cut, cut | {"test/cat/empty.png": b"", "train/dog/text.png": b"text"}):
        root = write_all(tmp_path / str(len(damaged)), files | damaged)
        message = rf"{len(damaged)} files must be readable, got damaged ones\. Leave them out with .* damaged=skip, or"
        for options in (None, SourceOptions(damaged="refuse")):
            with pytest.raises(ConfigError, match=message) as raised:
                push(store, str(root), options=options)
            assert all(name in str(raised.value) for name in damaged)
        manifest = push(store, str(root), options=SourceOptions(damaged="skip")).manifest
        assert {split: found.rows for split, found in manifest.splits.items()} == {"train": 6, "test": 6}
        (change,) = manifest.source.changes
        assert change.text == f"{len(damaged)} of {12 + len(damaged)} pictures could not be read and were left out."
        assert set(change.names) == set(damaged)


def test_one_damaged_picture_is_named_with_what_it_is(tmp_path):
    root = write_all(tmp_path, {name: encoded(noise()) for name in given()} | {"train/cat/9.png": b""})
    refused(root, r"train/cat/9\.png must be a whole picture .* got nothing\. Replace or .* --option damaged=skip\.")
    only_damaged = write_all(tmp_path / "none", dict.fromkeys(given(), b""))
    refused(only_damaged, r"must hold pictures that can be read, .* got 12 damaged of 12", damaged="skip")


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    write_all(tmp_path, {name: encoded(noise(8, 8)) for name in given()})
    frames[0].save(tmp_path / "train/cat/0.gif", save_all=True, append_images=frames[1:])
    images = prepare(str(tmp_path)).splits["train"].columns["image"]
    assert sum(image[0].min() == 255 and image[2].max() == 0 for image in images) == 1


def test_without_a_test_split_one_is_drawn_with_the_same_share_of_every_class(tmp_path):
    names = [f"cat/{i}.png" for i in range(50)] + [f"dog/{i}.png" for i in range(20)]
    root = folder(tmp_path, *names)
    drawn = prepare(str(root)).splits
    assert Counter(drawn["test"].columns[TARGET].tolist()) == {0: 10, 1: 4}
    assert Counter(drawn["train"].columns[TARGET].tolist()) == {0: 40, 1: 16}
    half = prepare(str(root), options=SourceOptions(test_share=0.5, seed=1)).splits
    assert (half["train"].rows, half["test"].rows) == (35, 35)
    again, other = (prepare(str(root), options=SourceOptions(seed=seed)).splits["test"] for seed in (0, 1))
    assert labels_by_content(again) == labels_by_content(drawn["test"])
    assert labels_by_content(other) != labels_by_content(again)


def test_files_with_the_same_content_are_never_on_both_sides(tmp_path):
    pictures = [encoded(grey()) for _ in range(10)]
    files = {f"{name}/{i}.png": pictures[(i + len(name)) % 10] for name in ("cat", "horse") for i in range(40)}
    write_all(tmp_path, files)
    for seed in range(5):
        splits = prepare(str(tmp_path), options=SourceOptions(seed=seed, test_share=0.3)).splits
        train, test = ({content for content, _ in labels_by_content(part)} for part in splits.values())
        assert not train & test
        assert len(train) + len(test) == 10


def test_a_pattern_may_say_which_files_test(tmp_path):
    root = folder(tmp_path, *(f"{name}/{i}_{kind}.png" for name in ("cat", "dog") for i in range(4) for kind in "ab"))
    splits = prepare(str(root), options=SourceOptions(test="0_*")).splits
    assert (splits["train"].rows, splits["test"].rows) == (12, 4)


def test_neighbours_are_of_different_classes_though_the_folders_are_sorted(tmp_path):
    root = folder(
        tmp_path, *(f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in range(40))
    )
    labels = prepare(str(root)).splits["train"].columns[TARGET]
    assert 20 < np.count_nonzero(np.diff(labels)) < 60
    assert sorted(mixed(1000, SourceOptions()).tolist()) == list(range(1000))
    kept = prepare(str(root), options=SourceOptions(order="keep")).splits["train"].columns[TARGET]
    assert kept.tolist() == [0] * 40 + [1] * 40


def test_pieces_have_so_many_files_and_bytes_at_most(monkeypatch):
    monkeypatch.setattr("orchestrator.data.sources.picture_files.PIECE_FILES", 3)
    monkeypatch.setattr("orchestrator.data.sources.picture_files.PIECE_BYTES", 100)
    sizes = [10, 10, 10, 10, 90, 10, 1, 500, 5]
    pieces = [sizes[piece] for piece in cut_into_pieces(sizes)]
    assert pieces == [[10, 10, 10], [10, 90], [10, 1], [500], [5]]
    assert list(cut_into_pieces([])) == []


def test_a_piece_reads_the_same_again_after_a_way_through_a_pickle(tmp_path):
    (piece,) = prepare(str(folder(tmp_path, *given()))).splits["train"].pieces
    again = pickle.loads(pickle.dumps(piece))
    assert again.rows == piece.rows == 6
    assert np.array_equal(again.read()["image"], piece.read()["image"])


def linked(root: Path, name: str, target: Path) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(target)


FolderChange = Callable[[Path], object]

FOLDER_ERRORS: list[tuple[FolderChange, dict, str]] = [
    (lambda root: shutil.rmtree(root / "train"), {}, "must hold train, and test or validation, got test"),
    (lambda root: shutil.rmtree(root / "test"), {}, "must hold train, and test or validation, got train"),
    (lambda root: folder(root, "val/cat/0.png", "valid/cat/1.png"), {}, "one folder for split validation, got val and"),
    (lambda root: shutil.rmtree(root / "train/dog"), {}, r"test/dog/0\.png must be in the training split too"),
    (lambda root: folder(root, "test/bird/1.png"), {}, r"test/bird/1\.png must be in the training split too"),
    (
        lambda root: (root / "train/bird").mkdir(),
        {},
        "must hold pictures in every folder, got the empty folder train/bird",
    ),
    (lambda root: write_all(root, {"train/bird/.keep": b""}), {}, "got the empty folder train/bird"),
    (lambda root: folder(root, "0.png"), {}, r"must hold files as SPLIT/CLASS/PICTURE, got 0\.png"),
    (lambda root: folder(root, "train/0.png"), {}, r"must hold files as SPLIT/CLASS/PICTURE, got train/0\.png"),
    (
        lambda root: folder(root, "extra/cat/0.png"),
        {},
        "must hold folders named train, .* val, .* got extra beside them",
    ),
    (
        lambda root: write_all(root, {"train/cat/list.db": b"x"}),
        {},
        r"must hold pictures .* got train/cat/list\.db",
    ),
    (
        lambda root: write_all(root, {"train/cat/0.png": b""}),
        {},
        r"train/cat/0\.png must be a whole picture .* got nothing",
    ),
    (lambda root: write_all(root, {"train/cat/0.png": b"text"}), {}, r"train/cat/0\.png must .* got something else"),
    (
        lambda root: write_all(root, {"train/cat/0.png": bomb()}),
        {},
        r"train/cat/0\.png must .* got far too many pixels",
    ),
    (lambda root: write_all(root, {"train/cat/0.jpg": jpeg[:900]}), {}, r"train/cat/0\.jpg must .* got a damaged one"),
    (
        lambda root: write_all(root, {"test/cat/0.png": encoded(noise(6, 4))}),
        {"encoding": "raw"},
        r"4 x 6 in .*test/cat/0",
    ),
    (lambda root: write_all(root, {"test/cat/0.tif": encoded(np.zeros((5, 4), np.float32), "TIFF")}), {}, "32 bits"),
    (
        lambda root: folder(root, "train/ca\nt/0.png"),
        {},
        r"must hold files with plain names, got 'train/ca\\nt/0\.png'",
    ),
    (lambda root: folder(root, "train/\x1b[31m/0.png"), {}, r"plain names, got 'train/\\x1b"),
    (lambda root: folder(root, os.fsdecode(b"train/caf\xe9/0.png")), {}, r"plain names, got 'train/caf\\udce9/0\.png'"),
    (lambda root: folder(root, "train/a\\b/0.png"), {}, "must hold files with plain names, got"),
    (
        lambda root: linked(root, "train/cat/9.png", Path("/etc/hostname")),
        {},
        "inside of it, got the link 'train/cat/9.png'",
    ),
    (lambda root: linked(root, "train/cat/9.png", root / "gone.png"), {}, "got the link 'train/cat/9.png'"),
    (lambda root: linked(root, "train/bird", root / "train/cat"), {}, "got the link 'train/bird' to"),
    (lambda root: None, {"test": "*"}, "test must be left out for"),
    (lambda root: None, {"test_share": 0.5}, "test_share must be left out for"),
]


@pytest.mark.parametrize(("change", "options", "message"), FOLDER_ERRORS)
def test_a_malformed_folder_is_refused_by_name(tmp_path, change, options, message):
    change(folder(tmp_path, *given()))
    refused(tmp_path, message, format="image-folder", **options)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "must hold folders of pictures, got no file"),
        (["train/0.png", "test/0.png"], {}, r"a folder for each class in test, got the file test/0\.png there"),
        (["train/0.png", "train/1.png"], {"test_share": 0.5}, "folders of at least 2 classes, got train"),
        (["a/0.png", "b/0.png"], {}, "must hold enough different rows for a test split of 20%, got 2 rows"),
        (["a/0.png", "b/0.png", "0.png"], {}, r"must hold files as CLASS/PICTURE, got 0\.png"),
        (["a/0.png", "b/0.png"], {"test": "x*"}, "option test must match .* which matches 0 of 2"),
        (["a/0.png", "b/0.png"], {"test": "*"}, "option test must match .* which matches 2 of 2"),
        (["a/0.png", "a/1.png", "b/0.png", "b/1.png"], {"test": "0*", "seed": 1}, None),
        (
            ["a/0.png", "b/1.png", "b/2.png"],
            {"test": "0*"},
            r"a/0\.png must be in the training split too|at least 2 classes",
        ),
    ],
)
def test_a_folder_of_which_no_split_can_be_drawn_is_refused(tmp_path, names, options, message):
    folder(tmp_path, *names)
    if message is None:
        with pytest.raises(ConfigError, match="seed must be left out if option test says which files test, got both"):
            prepare(str(tmp_path), options=SourceOptions(**options))
    else:
        refused(tmp_path, message, format="image-folder", **options)


def test_colours_among_grey_pictures_that_were_not_looked_at_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.data.sources.pictures.LOOKS", 2)  # the first and the last
    files = {name: encoded(grey()) for name in given()} | {"train/cat/1.png": encoded(noise())}
    refused(write_all(tmp_path, files), r"train/cat/1\.png must .* got one with colours, while others are grey")


# ---- CIFAR


def cifar_rows(count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    return noise(count, 3072, 1)[:, :, 0], (np.arange(count) % classes).astype(np.uint8)


def python2(value: object) -> bytes:
    """What Python 2's pickle, protocol 2, writes for a value: its texts are bytes."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: object) -> bytes:
    match value:
        case dict():
            return b"}(" + b"".join(_python2(k) + _python2(v) for k, v in value.items()) + b"u"
        case list():
            return b"](" + b"".join(map(_python2, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(_python2, value)) + b"t"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"T" + struct.pack("<I", len(value)) + value.encode("latin-1")
        case None:
            return b"N"
        case np.ndarray():
            dtype = b"cnumpy\ndtype\n" + _python2((value.dtype.str[1:], 0, 1)) + b"R"
            dtype += _python2((3, "|", None, None, None, -1, -1, 0)) + b"b"
            raw = _python2(value.tobytes().decode("latin-1"))
            state = b"(" + _python2(1) + _python2(value.shape) + dtype + _python2(False) + raw + b"t"
            return (
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
                + _python2((0,))
                + _python2("b")
                + b"tR"
                + state
                + b"b"
            )
    raise AssertionError(value)


def cifar10(root: Path, *, pickled: bool = False, batches: int = 2) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rows = {f"data_batch_{i}": cifar_rows(6, 3) for i in range(1, batches + 1)} | {"test_batch": cifar_rows(4, 3)}
    for name, (images, labels) in rows.items():
        if pickled:
            content = {"batch_label": name, "labels": labels.tolist(), "data": images, "filenames": ["a"] * len(labels)}
            write_all(root, {name: python2(content)})
        else:
            write_all(root, {f"{name}.bin": np.hstack([labels[:, None], images]).tobytes()})
    meta = {"num_cases_per_batch": 6, "label_names": ["cat", "dog", "owl"], "num_vis": 3072}
    write_all(root, {"batches.meta": python2(meta)} if pickled else {"batches.meta.txt": b"cat\ndog\nowl\n\n"})
    return rows


@pytest.mark.parametrize("pickled", [False, True])
def test_cifar10_comes_out_of_its_batches_as_it_went_in(tmp_path, pickled):
    rows = cifar10(tmp_path / "cifar-10-batches", pickled=pickled)
    write_all(tmp_path / "cifar-10-batches", {"readme.html": b"<html>"})
    prepared = prepare(str(tmp_path))
    assert prepared.target == ClassTarget(classes=("cat", "dog", "owl"))
    for split, batches in (("train", ["data_batch_1", "data_batch_2"]), ("test", ["test_batch"])):
        columns = prepared.splits[split].columns
        assert np.array_equal(columns["image"], np.concatenate([rows[b][0] for b in batches]).reshape(-1, 3, 32, 32))
        assert np.array_equal(columns[TARGET], np.concatenate([rows[b][1] for b in batches]))
        assert columns[TARGET].dtype == np.int64


@pytest.mark.parametrize("pickled", [False, True])
def test_of_cifar100_the_fine_labels_are_taken_or_those_that_are_named(tmp_path, pickled):
    names = {"coarse": ["animal", "thing"], "fine": ["cat", "dog", "owl", "car"]}
    for split, count in (("train", 8), ("test", 4)):
        images, fine = cifar_rows(count, 4)
        coarse = fine // 3
        if pickled:
            content = {"data": images, "fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
            write_all(tmp_path, {split: python2(content)})
        else:
            write_all(tmp_path, {f"{split}.bin": np.hstack([coarse[:, None], fine[:, None], images]).tobytes()})
    if pickled:
        write_all(tmp_path, {"meta": python2({f"{kind}_label_names": found for kind, found in names.items()})})
    else:
        write_all(tmp_path, {f"{kind}_label_names.txt": "\n".join(found).encode() for kind, found in names.items()})
    prepared = prepare(str(tmp_path))
    assert prepared.target == ClassTarget(classes=tuple(names["fine"]))
    assert prepared.splits["train"].columns[TARGET].tolist() == [0, 1, 2, 3] * 2
    coarse = prepare(str(tmp_path), options=SourceOptions(target="coarse_label"))
    assert coarse.target == ClassTarget(classes=("animal", "thing"))
    assert coarse.splits["test"].columns[TARGET].tolist() == [0, 0, 0, 1]


def test_a_pickle_that_python_3_wrote_is_read_too(tmp_path):
    rows = cifar10(tmp_path, pickled=True)
    images, labels = rows["test_batch"]
    content = {"labels": labels.tolist(), "data": np.asfortranarray(images)}
    write_all(tmp_path, {"test_batch": pickle.dumps(content, protocol=4)})
    assert np.array_equal(prepare(str(tmp_path)).splits["test"].columns["image"].reshape(4, -1), images)


class Hostile:
    """Pickles as a call."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_runs_nothing(tmp_path, protocol):
    canary = tmp_path / "canary"
    attacks = [
        Hostile(os.system, f"touch {canary}"),
        Hostile(open, str(canary), "w"),
        Hostile(exec, f"open({str(canary)!r}, 'w')"),
        Hostile(eval, f"open({str(canary)!r}, 'w')"),
        Hostile(getattr, "text", "upper"),
        Hostile(Path.touch, canary),
        Hostile(np.load, str(canary)),
    ]
    for attack in attacks:
        data = pickle.dumps({"labels": attack, "data": 1}, protocol=protocol)
        cifar10(tmp_path / "source", pickled=True)
        write_all(tmp_path / "source", {"data_batch_1": data})
        refused(
            tmp_path / "source",
            r"data_batch_1 must be a pickle of numbers, .* got one with the name \S+\.\S+, which could",
        )
        assert not canary.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cposix\nsystem\n(X\x04\x00\x00\x00truetR.",
        b"(S'true'\nios\nsystem\n.",  # INST
        b"\x80\x02cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x10testing.__init__\x93.",
        b"\x80\x02\x82\x01.",  # of copyreg's registry of extensions
    ],
)
def test_names_in_a_pickle_are_refused_however_they_are_written(tmp_path, data):
    cifar10(tmp_path, pickled=True)
    write_all(tmp_path, {"test_batch": data})
    refused(tmp_path, "test_batch must be a pickle of numbers, .* got one with the (name|instruction)")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02]r\xff\xff\xff\x0f.",  # LONG_BINPUT: 4 GB for a table
        b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.",  # BYTEARRAY8: 64 GB
        b"\x80\x02]p4000000000\n.",
    ],
)
def test_a_pickle_that_would_take_all_memory_is_refused(tmp_path, data):
    cifar10(tmp_path, pickled=True)
    write_all(tmp_path, {"test_batch": data})
    refused(tmp_path, "test_batch must be a (pickle of numbers, .* got one with place|whole pickle)")


def test_what_a_pickle_is_given_cannot_be_changed_for_the_next(tmp_path):
    cifar10(tmp_path, pickled=True)
    good = (tmp_path / "test_batch").read_bytes()
    # BUILD with a pair sets attributes of what is below it: of the stand-in itself
    poison = b"\x80\x02cnumpy\ndtype\n(N}(X\x08\x00\x00\x00__call__K\x01X\x08\x00\x00\x00__code__K\x01utb."
    write_all(tmp_path, {"test_batch": poison})
    refused(tmp_path, "test_batch must be a")
    write_all(tmp_path, {"test_batch": good})
    assert prepare(str(tmp_path)).splits["test"].rows == 4


def pickled_batch(**change) -> bytes:
    images, labels = cifar_rows(4, 3)
    return python2({"labels": labels.tolist(), "data": images} | change)


CIFAR_ERRORS = [
    ("test_batch", b"", "test_batch must be a whole pickle, got a damaged one"),
    ("test_batch", pickled_batch()[:-500], "test_batch must be a whole pickle, got a damaged one"),
    ("test_batch", b"no pickle", "test_batch must be a whole pickle, got a damaged one"),
    ("test_batch", python2(["a"]), "test_batch must be a pickled dict, got list"),
    ("test_batch", python2({"labels": [1]}), "data in .*test_batch must be rows of 3072 bytes, got none"),
    ("test_batch", pickled_batch(data=noise(4, 3000, 1)[:, :, 0]), "data in .*test_batch must be rows of 3072 bytes"),
    ("test_batch", pickled_batch(data=np.zeros((4, 3072))), "test_batch must hold arrays of bytes"),
    ("test_batch", pickled_batch(labels=[0, 1, 2]), "a label for each picture, got 3 labels and 4 pictures"),
    ("test_batch", pickled_batch(labels=[0, 1, 2, 0.5]), "labels in .*test_batch must be a list of whole numbers"),
    ("test_batch", pickled_batch(labels=[0, 1, 2, 9]), r"row 3 of .*test_batch must be in 0\.\.2, got 9"),
    ("test_batch", pickled_batch(labels=[0, 1, -1, 1]), r"row 2 of .*test_batch must be in 0\.\.2, got -1"),
    ("data_batch_4", pickled_batch(), "must hold data_batch_1 and so on without a gap, got numbers 1, 2, 4"),
    ("copy/test_batch", pickled_batch(), None),
    ("batches.meta", python2({"names": []}), "label_names in .*batches.meta must be a list of texts"),
    ("batches.meta", python2({"label_names": ["a", "b", "c", "d"]}), "must hold every class, got no row of 'd'"),
    ("batches.meta", python2({"label_names": ["a", "b", "a"]}), "batches.meta must give every class a name of its own"),
    ("batches.meta", python2({"label_names": []}), "batches.meta must name the classes, got none"),
]


@pytest.mark.parametrize(("name", "content", "message"), CIFAR_ERRORS)
def test_malformed_pickled_batches_are_refused(tmp_path, name, content, message):
    cifar10(tmp_path, pickled=True)
    write_all(tmp_path, {name: content})
    if message is None:  # a copy without training files is no data set of its own
        assert prepare(str(tmp_path)).splits["test"].rows == 4
    else:
        refused(tmp_path, message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_batch.bin", b"", r"test_batch\.bin must hold rows of 3073 bytes, got 0 bytes"),
        (
            "test_batch.bin",
            bytes(3073 * 2 + 5),
            "must hold rows of 3073 bytes, got 6151 bytes, which is 2 rows and 5 bytes",
        ),
        ("test_batch.bin", b"\x07" + bytes(3072), r"row 0 of .*test_batch\.bin must be in 0\.\.2, got 7"),
        ("batches.meta.txt", b"cat\ndog\n", r"row 2 of .*data_batch_1\.bin must be in 0\.\.1, got 2"),
        ("more/test_batch.bin", b"", None),
    ],
)
def test_malformed_binary_batches_are_refused(tmp_path, name, content, message):
    cifar10(tmp_path)
    write_all(tmp_path, {name: content})
    if message is None:
        write_all(tmp_path, {"more/data_batch_1.bin": content})
        refused(tmp_path, r"must hold CIFAR's files once: .* got test_batch\.bin in more and test_batch\.bin in \.")
    else:
        refused(tmp_path, message)


@pytest.mark.parametrize("pickled", [False, True])
def test_all_damaged_batches_and_labels_of_cifar_are_named_in_one_run_and_left_out_on_request(tmp_path, pickled):
    rows = cifar10(tmp_path, pickled=pickled, batches=4)
    end = "" if pickled else ".bin"
    cut = tmp_path / f"data_batch_2{end}"
    cut.write_bytes(cut.read_bytes()[:-1000])
    for name, row in (("data_batch_1", 4), ("data_batch_3", 0), ("test_batch", 3)):
        images, labels = rows[name]
        labels[row] = 77
        content = {"labels": labels.tolist(), "data": images}
        data = python2(content) if pickled else np.hstack([labels[:, None], images]).tobytes()
        write_all(tmp_path, {f"{name}{end}": data})
    store = MemoryStore()
    with pytest.raises(ConfigError, match=r"^4 files must be readable, .* damaged=skip, or mend them:") as raised:
        push(store, str(tmp_path), options=SourceOptions())
    named = [f"data_batch_2{end} must", f"row 4 of {tmp_path}/data_batch_1", f"row 0 of {tmp_path}/data_batch_3"]
    lines = str(raised.value).splitlines()[1:]
    for line, place in zip(lines, [*named, f"row 3 of {tmp_path}/test_batch"], strict=True):
        assert place in line
    manifest = push(store, str(tmp_path), options=SourceOptions(damaged="skip")).manifest
    files, pictures = manifest.source.changes
    assert (files.text, files.names) == ("1 of 5 files could not be read and were left out.", (f"data_batch_2{end}",))
    assert pictures.text == "3 of 22 pictures could not be read and were left out."
    assert pictures.names[0] == f"row 4 of data_batch_1{end}"
    assert {split: found.rows for split, found in manifest.splits.items()} == {"train": 16, "test": 3}
    columns = prepare(str(tmp_path), options=SourceOptions(damaged="skip")).splits["train"].columns
    kept = [(name, row) for name in ("data_batch_1", "data_batch_3", "data_batch_4") for row in range(6)]
    kept = [place for place in kept if place not in (("data_batch_1", 4), ("data_batch_3", 0))]
    assert np.array_equal(columns["image"].reshape(16, -1), np.stack([rows[name][0][row] for name, row in kept]))
    assert columns[TARGET].tolist() == [int(rows[name][1][row]) for name, row in kept]


def test_cifar_of_which_a_split_is_damaged_as_a_whole_is_refused(tmp_path):
    cifar10(tmp_path)
    write_all(tmp_path, {"test_batch.bin": bytes(99)})
    refused(
        tmp_path, "test_batch.bin must hold rows of 3073 bytes, got 99 .* Or leave it out with --option damaged=skip"
    )
    refused(tmp_path, "split test of .* must hold a row that can be read, got none", damaged="skip")


def test_a_pickle_that_could_do_anything_is_no_damage_to_pass_over(tmp_path):
    cifar10(tmp_path, pickled=True)
    write_all(tmp_path, {"data_batch_1": pickle.dumps(os.getcwd)})
    refused(tmp_path, "data_batch_1 must be a pickle of numbers, .* which could do anything", damaged="skip")


def test_cifar_without_names_of_its_classes_has_numbers_or_those_that_a_person_gives(tmp_path):
    cifar10(tmp_path)
    (tmp_path / "batches.meta.txt").unlink()
    assert prepare(str(tmp_path)).target.classes == ("0", "1", "2")
    assert read_cifar(str(tmp_path), SourceOptions(classes=("x", "y", "z"))).target.classes == ("x", "y", "z")
    (tmp_path / "test_batch.bin").unlink()
    refused(tmp_path, "must hold CIFAR's files once: .* got none of them", format="cifar")


# ---- IDX


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def idx_files(
    root: Path, *, prefix: str = "", dash: str = "-", packed: bool = False, first: int = 0
) -> dict[str, np.ndarray]:
    arrays = {}
    for split, count in (("train", 9), ("t10k", 6)):
        arrays[f"{split}-images{dash}idx3-ubyte"] = random.integers(0, 256, (count, 5, 4), np.uint8)
        arrays[f"{split}-labels{dash}idx1-ubyte"] = np.arange(count) % 3 + first
    for name, array in arrays.items():
        content = gzip.compress(idx(array)) if packed else idx(array)
        write_all(root, {f"{prefix}{name}{'.gz' if packed else ''}": content})
    return arrays


@pytest.mark.parametrize(("dash", "packed"), [("-", False), (".", False), ("-", True)])
def test_idx_comes_out_as_it_went_in(tmp_path, dash, packed):
    arrays = idx_files(tmp_path, dash=dash, packed=packed)
    prepared = prepare(str(tmp_path))
    for split, name in (("train", "train"), ("test", "t10k")):
        columns = prepared.splits[split].columns
        assert np.array_equal(columns["image"][:, 0], arrays[f"{name}-images{dash}idx3-ubyte"])
        assert np.array_equal(columns[TARGET], arrays[f"{name}-labels{dash}idx1-ubyte"])
    assert prepared.features["image"].shape == (1, 5, 4)
    assert prepared.target == ClassTarget(classes=("0", "1", "2"))
    named = prepare(str(tmp_path), options=SourceOptions(classes=("a", "b", "c")))
    assert named.target == ClassTarget(classes=("a", "b", "c"))


def test_the_letters_of_emnist_are_counted_from_1_and_named_by_its_mapping(tmp_path):
    idx_files(tmp_path, prefix="emnist-letters-", first=1)
    write_all(tmp_path, {"emnist-letters-mapping.txt": b"1 65 97\n2 66 98\n3 67 99\n"})
    prepared = prepare(str(tmp_path))
    assert prepared.target == ClassTarget(classes=("A", "B", "C"))
    assert prepared.splits["test"].columns[TARGET].tolist() == [0, 1, 2] * 2
    write_all(tmp_path, {"emnist-letters-mapping.txt": b"1 65\n2 66\n"})
    refused(tmp_path, "t10k-labels.* must hold labels of the mapping, got 3 in row 2|train-labels.* got 3 in row 2")
    write_all(tmp_path, {"emnist-letters-mapping.txt": b"1 A\n"})
    refused(tmp_path, r"mapping\.txt must hold lines of a label and the code of its character")


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
pictures, numbers = idx(np.zeros((6, 5, 4))), idx(np.arange(6) % 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, b"", "t10k-images.* must begin with 00 00 08 03 and 3 sizes, got nothing"),
        (IMAGES, pictures[:10], "t10k-images.* must begin with 00 00 08 03 and 3 sizes, got 00 00 08 03"),
        (IMAGES, numbers, "t10k-images.* must begin with 00 00 08 03 and 3 sizes, got 00 00 08 01"),
        (LABELS, b"\0\0\x0d\1" + numbers[4:], "t10k-labels.* must begin with 00 00 08 01 and 1 size, got 00 00 0d 01"),
        (IMAGES, pictures[:-1], "must hold 120 values after its header, which says 6 x 5 x 4, got 119"),
        (IMAGES, pictures + b"x", "must hold 120 values after its header, .* got more"),
        (IMAGES, idx(np.zeros((0, 5, 4))), "must hold 1 to .* values, got 0 x 5 x 4"),
        (IMAGES, b"\0\0\x08\3" + b"\xff" * 12, "must hold 1 to .* values, got 4294967295 x"),
        (IMAGES, gzip.compress(pictures, mtime=0)[:-12], "must be a whole gzipped file"),
        (IMAGES, gzip.compress(pictures, mtime=0)[:-8] + bytes(8), "must be a whole gzipped file"),
        (IMAGES, gzip.compress(pictures, mtime=0) + b"junk", "must be a whole gzipped file|got more"),
        (IMAGES, gzip.compress(pictures + bytes(10**7), mtime=0), "must hold 120 values after its header, .* got more"),
        (IMAGES, idx(np.zeros((6, 6, 4))), r"must have one size, got \(5, 4\) in train and \(6, 4\) in test"),
        (
            LABELS,
            idx(np.arange(5) % 3),
            "t10k-labels.* must hold a label for each picture of t10k-images.* got 5 for 6",
        ),
        (LABELS, idx(np.array([0, 1, 2, 0, 1, 4])), "must take every value from 0 to 4 .* got none of 3"),
        (LABELS, idx(np.array([0, 1, 2, 0, 1, 3])), "must hold every class, got no row of '3'"),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(pictures, mtime=0),
            "once, each gzipped or not, got .*train-images",
        ),
        (LABELS, None, "must hold train-images-idx3-ubyte, .* got t10k-images-idx3-ubyte, train-images"),
        ("kmnist-train-labels-idx1-ubyte", numbers, "give each data set a folder of its own"),
    ],
)
def test_malformed_idx_files_are_refused(tmp_path, name, content, message):
    idx_files(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        write_all(tmp_path, {name: content})
    refused(tmp_path, message)


def test_a_label_of_idx_that_has_no_name_is_refused(tmp_path):
    idx_files(tmp_path)
    refused(tmp_path, r"row 2 of .*train-labels.* must be in 0\.\.1, got 2", classes=("a", "b"))


# ---- Pascal VOC


def annotation(*boxes: tuple, size: tuple = (40, 30), more: str = "") -> bytes:
    """XML of boxes (class, xmin, ymin, xmax, ymax)."""
    objects = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(
            f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        )
        + f"</bndbox>{more}</object>"
        for name, *corners in boxes
    )
    width, height = size
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>".encode()


VOC: dict[str, bytes] = {
    "ImageSets/Main/train.txt": b"a\nb\n",
    "ImageSets/Main/val.txt": b"c\n",
    "ImageSets/Main/trainval.txt": b"a\nb\nc\n",
    "ImageSets/Main/test.txt": b"d\n\n",
    "ImageSets/Main/cat_train.txt": b"a 1\nb -1\n",
    "Annotations/a.xml": annotation(("dog", 1, 1, 40, 30), ("cat", 11, 16, 20, 30)),
    "Annotations/b.xml": annotation(),
    "Annotations/c.xml": annotation(("cat", 1.5, 2, 40, 3)),
    "Annotations/d.xml": annotation(("dog", 5, 5, 5, 5)),
} | {f"JPEGImages/{name}.jpg": encoded(noise(30, 40), "JPEG") for name in "abcde"}


def voc(root: Path, **change: bytes | None) -> Path:
    return write_all(root, {name: content for name, content in (VOC | change).items() if content is not None})


def test_damaged_pictures_with_boxes_are_named_and_left_out_on_request(tmp_path):
    broken = {name: VOC[name][:900] for name in ("JPEGImages/b.jpg", "JPEGImages/d.jpg")}
    root = voc(tmp_path, **{"JPEGImages/b.jpg": broken["JPEGImages/b.jpg"]})
    refused(root, r"JPEGImages/b\.jpg must be a whole picture .* Or leave it out with --option damaged=skip")
    prepared = prepare(str(root), options=SourceOptions(damaged="skip"))
    assert {split: part.rows for split, part in prepared.splits.items()} == {"train": 1, "validation": 1, "test": 1}
    (change,) = prepared.source.changes
    assert (change.names, change.numbers) == (("JPEGImages/b.jpg",), {"skipped": 1})
    refused(voc(tmp_path, **broken), "split test of .* must hold a picture that can be read", damaged="skip")


def test_boxes_of_voc_become_shares_of_the_sides(tmp_path):
    prepared = prepare(str(voc(tmp_path / "VOCdevkit" / "VOC2007").parent))
    assert prepared.target == BoxesTarget(classes=("cat", "dog"))
    assert {split: part.rows for split, part in prepared.splits.items()} == {"train": 2, "validation": 1, "test": 1}
    feature = prepared.features["image"]
    assert (feature.encoding, feature.shape) == ("file", (3, DEFAULT_SIDE, DEFAULT_SIDE))
    columns = prepared.splits["train"].columns
    (row,) = (row for row in range(2) if columns["image"][row].tobytes() == VOC["JPEGImages/a.jpg"])
    assert columns[TARGET][row].tolist() == [[1, 0, 0, 1, 1], [0, 0.25, 0.5, 0.5, 1]]
    assert columns[TARGET][1 - row].shape == (0, 5)
    validation = prepared.splits["validation"].columns[TARGET][0]
    np.testing.assert_allclose(validation, [[0, 0.5 / 40, 1 / 30, 1, 3 / 30]], rtol=1e-6)
    assert prepare(str(tmp_path), options=SourceOptions(side=64)).features["image"].shape == (3, 64, 64)


def test_difficult_objects_are_left_out():
    data = annotation(("cat", 1, 1, 2, 2), more="<difficult>1</difficult>")
    assert parse_annotation(data, "x").boxes == ()


def test_parts_of_an_object_are_no_objects():
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    boxes = parse_annotation(annotation(("cat", 11, 16, 20, 30), more=part), "x").boxes
    assert [(box.name, box.corners) for box in boxes] == [("cat", (0.25, 0.5, 0.5, 1))]


def test_without_lists_of_training_or_test_the_others_are_taken(tmp_path):
    root = voc(tmp_path, **{"ImageSets/Main/test.txt": None})
    assert {split: part.rows for split, part in prepare(str(root)).splits.items()} == {"train": 2, "test": 1}
    (root / "ImageSets/Main/train.txt").unlink()
    assert {split: part.rows for split, part in prepare(str(root)).splits.items()} == {"train": 2, "test": 1}


ENTITY = b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>"
turned = Image.Exif()
turned[0x0112] = 3

VOC_ERRORS: list[tuple[dict[str, bytes | None], str]] = [
    ({"Annotations/a.xml": None}, r"must hold all that its lists name, got no Annotations/a\.xml"),
    ({"JPEGImages/a.jpg": None}, r"must hold all that its lists name, got no JPEGImages/a\.\*"),
    ({"JPEGImages/a.png": encoded(noise())}, r"one picture of each name, got JPEGImages/a\.jpg and JPEGImages/a\.png"),
    ({"Annotations/a.xml": b""}, r"Annotations/a\.xml must be XML in UTF-8, got no element found"),
    ({"Annotations/a.xml": VOC["Annotations/a.xml"][:-9]}, r"Annotations/a\.xml must be XML in UTF-8, got"),
    ({"Annotations/a.xml": ENTITY + annotation(("&a;", 1, 1, 2, 2))}, r"a\.xml must be XML without a DOCTYPE"),
    ({"Annotations/a.xml": (ENTITY + annotation()).decode().encode("utf-16")}, r"a\.xml must be XML in UTF-8, got"),
    ({"Annotations/a.xml": annotation(size=(0, 30))}, r"size in .*a\.xml must be whole numbers from 1 on, got 0 x 30"),
    ({"Annotations/a.xml": annotation(size=("wide", 30))}, r"size/width of .*a\.xml must be a number, got 'wide'"),
    (
        {"Annotations/a.xml": annotation(("cat", 1, 1, 2, 2), ("cat", 0, 1, 2, 2))},
        r"object 2 of .*a\.xml .* got xmin=0, ymin=1",
    ),
    ({"Annotations/a.xml": annotation(("cat", 1, 1, 41, 2))}, "xmin <= xmax <= 40 and .* got .* xmax=41"),
    ({"Annotations/a.xml": annotation(("cat", 1, 1, 2, 31))}, "ymin <= ymax <= 30, got .* ymax=31"),
    ({"Annotations/a.xml": annotation(("cat", 9, 1, 8, 2))}, "xmin <= xmax .* got xmin=9, ymin=1, xmax=8"),
    (
        {"Annotations/a.xml": annotation(("cat", "nan", 1, 8, 2))},
        "bndbox/xmin of object 1 of .* must be a number, got 'nan'",
    ),
    ({"Annotations/a.xml": annotation(("cat", "", 1, 8, 2))}, "bndbox/xmin of object 1 of .* must be a number, got ''"),
    ({"Annotations/a.xml": annotation(("", 1, 1, 8, 2))}, "object 1 of .* must give every class a plain name, got ''"),
    (
        {"Annotations/d.xml": annotation(("bird", 1, 1, 8, 2))},
        r"every object of .*d\.xml must be .* cat, dog, got 'bird'",
    ),
    ({"Annotations/a.xml": annotation()}, "must name the classes, got none"),
    (
        {"Annotations/d.xml": annotation(("dog", 1, 1, 2, 2), size=(30, 40))},
        r"d\.xml must have the size of its picture, 40 x 30, got 30 x 40",
    ),
    ({"JPEGImages/d.jpg": b"no picture"}, r"JPEGImages/d\.jpg must be a whole picture .* got something else"),
    (
        {"JPEGImages/d.jpg": VOC["JPEGImages/d.jpg"][:900]},
        r"JPEGImages/d\.jpg must be a whole picture .* a damaged one",
    ),
    (
        {"JPEGImages/d.jpg": encoded(noise(30, 40), "JPEG", exif=turned)},
        r"d\.jpg must lie as its pixels do, got an orientation",
    ),
    ({"ImageSets/Main/test.txt": b"a\n"}, "must list every picture once, got a in train and test"),
    ({"ImageSets/Main/train.txt": b"a\na\n"}, "must list every picture once, got a in train and train"),
    ({"ImageSets/Main/test.txt": b"../../etc/passwd\n"}, r"test\.txt must hold files with plain names, got '\.\./"),
    ({"ImageSets/Main/test.txt": b"/etc/passwd\n"}, "must hold files with plain names, got '/etc/passwd'"),
    ({"ImageSets/Main/test.txt": b"caf\xe9\n"}, r"test\.txt must be text in UTF-8"),
    (
        {f"ImageSets/Main/{name}.txt": None for name in ("train", "val", "trainval")},
        "must list pictures in .* got test.txt",
    ),
    ({"copy/Annotations/a.xml": b""}, r"must hold one folder with Annotations/\*\.xml, got \. and copy"),
]


@pytest.mark.parametrize(("change", "message"), VOC_ERRORS)
def test_malformed_voc_is_refused_by_name(tmp_path, change, message):
    refused(voc(tmp_path, **change), message)


def test_a_named_class_without_an_object_is_refused(tmp_path):
    refused(voc(tmp_path), "must hold every class, got no object of 'bird'", classes=("bird", "cat", "dog"))


# ---- real data


@needs("cifar10/test-00000-of-00001.parquet")
def test_cifar10_of_hugging_face_decodes_to_raw_rows(tmp_path):
    table = pq.read_table(SHARED / "cifar10" / "test-00000-of-00001.parquet").slice(0, 500)
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    prepared = read_huggingface_images(str(tmp_path), SourceOptions(classes=("cifar10",)))
    assert prepared.target == ClassTarget(classes=CIFAR10_CLASSES)
    images = prepared.splits["test"].columns["image"]
    assert images.shape == (500, 3, 32, 32)
    expected = np.asarray(Image.open(io.BytesIO(table.column("img")[123].as_py()["bytes"])))
    assert np.array_equal(images[123].transpose(1, 2, 0), expected)


@needs("bccd.tar.gz")
def test_all_boxes_of_the_blood_cells_are_read(tmp_path):
    shutil.unpack_archive(SHARED / "bccd.tar.gz", tmp_path, filter="data")
    prepared = prepare(str(tmp_path / "bccd"))
    assert {split: part.rows for split, part in prepared.splits.items()} == {"train": 205, "validation": 87, "test": 72}
    texts = [path.read_text() for path in (tmp_path / "bccd" / "Annotations").iterdir()]
    expected = Counter(name for text in texts for name in re.findall(r"<object>\s*<name>(\w+)</name>", text))
    boxes = np.concatenate([part.columns[TARGET].values for part in prepared.splits.values()])
    assert Counter(prepared.target.classes[int(label)] for label in boxes[:, 0]) == expected
    assert len(boxes) == 4888
    assert (boxes[:, 1:3] < boxes[:, 3:]).all()
    assert (boxes[:, 1:].min(), boxes[:, 1:].max()) == (0, 1)
