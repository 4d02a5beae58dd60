"""Files that nest, grow or never end: a line each, exit code 2, little memory and time."""

import gzip
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import ConfigError
from cluster.s3.store import Store
from models.features import ForecastTarget, ImageFeature, NumberTarget, SeriesFeature, Signature, VectorFeature
from serving.client import parse_inputs
from tests.hostile import Commands, commands, require_modest, require_refused

DEEP = 50_000
NUMBER = NumberTarget(mean=0, std=1, minimum=0, maximum=1)
PICTURE = Signature(features={"image": ImageFeature(shape=(1, 8, 8), mean=(0,), std=(1,))}, target=NUMBER)
NUMBERS = Signature(features={"x": VectorFeature(names=("a",), mean=(0,), std=(1,))}, target=NUMBER)
SERIES = Signature(
    features={"s": SeriesFeature(channels=("a",), mean=(0,), std=(1,))}, target=ForecastTarget(lookback=2, horizon=1)
)


@pytest.fixture(scope="module")
def command() -> Iterator[Commands]:
    with commands() as found:
        yield found


# ---- configurations


def written(text: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = folder / "x.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return make


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def zeros(folder: Path) -> Path:
    (folder / "zeros").symlink_to("/dev/zero")
    return folder / "zeros"


def hole(folder: Path, name: str = "hole.yaml", size: int = 2**40) -> Path:
    with (folder / name).open("wb") as file:
        file.truncate(size)
    return folder / name


MODEL = "data: {name: x}\ntrain: {epochs: 1, learning_rate: 0.1}\nmodel: "
CONFIGURATIONS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "brackets": (written("a: " + "[" * DEEP), "x.yaml:1: settings must be nested at most 20 deep, got more."),
    "braces": (written("{a: " * DEEP), "x.yaml:1: settings must be nested at most 20 deep, got more."),
    "dashes": (written("- " * DEEP), "x.yaml:1: settings must be nested at most 20 deep, got more."),
    "keys of keys": (written("? " * DEEP), "x.yaml:1: settings must be nested at most 20 deep, got more."),
    "indented groups": (
        written("".join(f"{' ' * i}a:\n" for i in range(1000))),
        "x.yaml:21: settings must be nested at most 20 deep, got more.",
    ),
    "aliases of aliases": (
        written("a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]\n"),
        "x.yaml:2: must be valid YAML: aliases (*name) are not allowed, write the value.",
    ),
    "many values": (
        written(f"a: [{'1,' * 490_000}]"),
        "x.yaml:1: an experiment must have at most 10,000 keys and values, got more.",
    ),
    "long key": (written("k" * 900_000 + ": 1"), "must be valid YAML: "),
    "quoted long key": (written('"' + "k" * 1000 + '": 1'), "x.yaml:1: a key must have at most 200 characters, got"),
    "large": (written(b"#" * 2_000_000), "x.yaml must have at most 1,000,000 bytes, got 2,000,000."),
    "hole": (hole, "hole.yaml must have at most 1,000,000 bytes, got 1,099,511,627,776."),
    "pipe": (pipe, "pipe must be a regular file, got a pipe."),
    "endless": (zeros, "zeros must be a regular file, got a device."),
    "blocks": (
        written(f"{MODEL}{{type: cnn, channels: [{'1, ' * 9000}]}}"),
        "x.yaml:3: model.channels must satisfy: Tuple should have at most 100 items after validation, not 9000",
    ),
    "units": (
        written(f"{MODEL}{{type: mlp, hidden: [64, 1000000]}}"),
        "x.yaml:3: model.hidden.1 must be less than or equal to 65536, got 1000000.",
    ),
    "escape sequences": (
        written(f'"\\e[2Jdata": 1\n{MODEL}{{type: mlp}}'),
        "x.yaml:1: \\x1b[2Jdata must be a known setting, got 1.",
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_hostile_configuration_is_refused_in_one_line(name: str, command: Commands, tmp_path: Path) -> None:
    make, message = CONFIGURATIONS[name]
    require_refused(command.run(["check", make(tmp_path)]), code=2, message=message)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.hidden=" + "[" * DEEP, "settings must be nested at most 20 deep, got more."),
        ("model.hidden=" + "{a: " * DEEP, "settings must be nested at most 20 deep, got more."),
        ("a" + ".a" * DEEP + "=1", "must be the name of a setting, with at most 200 characters and 20 parts."),
        ("a" + ".a" * 30 + "=1", "must be the name of a setting, with at most 200 characters and 20 parts."),
        ("x" * 100_000, "must have the form key=value, such as train.epochs=5."),
        ("train.epochs=" + "9" * 100_000, "must be a int, got '9999"),
    ],
)
def test_a_hostile_override_is_refused_in_one_line(word: str, message: str, command: Commands) -> None:
    require_refused(command.run(["check", "digits-cnn", word]), code=2, message=message)


def test_thousands_of_wrong_settings_are_named_up_to_twenty(command: Commands, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(MODEL + "{type: mlp}\n" + "".join(f"wrong{i}: 1\n" for i in range(4000)))
    require_refused(command.run(["check", file]), code=2, message="and 3980 more.", lines=21)


def test_the_state_of_the_local_cluster_is_refused_where_it_nests(command: Commands, tmp_path: Path) -> None:
    (tmp_path / "local.json").write_text('{"ray": ' + "[" * DEEP)
    message = "must be a state that `orchestrator up` wrote, got lists and objects nested more than 32 deep. Delete"
    require_refused(command.run(["data", "ls"], home=tmp_path), code=2, message=message)


# ---- sources


def table(folder: Path) -> Path:
    (folder / "x.csv").write_text(",".join(f"c{i}" for i in range(200_000)) + ",target\n" + "1," * 200_000 + "1\n")
    return folder / "x.csv"


def table_with_hole(folder: Path) -> Path:
    file = folder / "x.csv"
    file.write_text("a,target\n1,2\n")
    os.truncate(file, 2**32)
    return file


def folder_with(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def wrapped(folder: Path) -> Path:
        (folder / "source" / "cat").mkdir(parents=True)
        make(folder / "source" / "cat")
        (folder / "source" / "cat" / "a.png").write_bytes(png(1, 1))
        return folder / "source"

    return wrapped


def deep_folders(folder: Path) -> Path:
    before = Path.cwd()
    os.chdir(folder)
    try:
        for _ in range(30):
            Path("d" * 200).mkdir()
            os.chdir("d" * 200)
        Path("x.wav").write_bytes(b"")
    finally:
        os.chdir(before)
    return folder


def tar(kind: bytes, size: int) -> Callable[[Path], Path]:
    """An archive whose first member has a header of so many bytes."""

    def make(folder: Path) -> Path:
        header = tarfile.TarInfo("x")
        header.type, header.size = kind, size
        parts = gzip.compress(header.tobuf(tarfile.USTAR_FORMAT)), gzip.compress(bytes(2**20)) * (size // 2**20)
        (folder / "x.tar.gz").write_bytes(b"".join(parts))
        return folder / "x.tar.gz"

    return make


def tar_of_headers(folder: Path) -> Path:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
    with gzip.open(folder / "x.tar.gz", "wb") as file:
        file.write((header.tobuf(tarfile.USTAR_FORMAT) + b"a".ljust(512, b"\0")) * 5000)
    return folder / "x.tar.gz"


def tar_with_negative_size(folder: Path) -> Path:
    header = tarfile.TarInfo("x")
    header.size = 1
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 12  # -1, in base 256
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]  # type: ignore[attr-defined]
    (folder / "x.tar").write_bytes(bytes(block) + bytes(1024))
    return folder / "x.tar"


def zipped_zeros(folder: Path) -> Path:
    with (
        zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as file,
        file.open("x.csv", "w") as member,
    ):
        for _ in range(200):
            member.write(bytes(2**20))
    return folder / "x.zip"


def idx(folder: Path) -> Path:
    """Pictures that unpack to 3.9 GB, as far as they say."""
    header = struct.pack(">4B3I", 0, 0, 8, 3, 5_000_000, 28, 28)
    packed = gzip.compress(header) + gzip.compress(bytes(2**20)) * 300
    for split in ("train", "t10k"):
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(packed)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 1) + b"\0")
    return folder


def png(width: int, height: int) -> bytes:
    """A PNG that says this size; its pixels are black, and those of a large one end early."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(min(2**20, height * (1 + width))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def large_picture(folder: Path) -> Path:
    for name in ("train", "test"):
        (folder / name / "cat").mkdir(parents=True)
        (folder / name / "dog").mkdir(parents=True)
        (folder / name / "cat" / f"{name}.png").write_bytes(png(100_000, 100_000))
        (folder / name / "dog" / f"{name}.png").write_bytes(png(8, 8))
    return folder


def voc(xml: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        for name in ("a", "b"):
            (folder / "JPEGImages" / f"{name}.png").write_bytes(png(8, 8))
            (folder / "Annotations" / f"{name}.xml").write_bytes(xml)
        (folder / "ImageSets/Main/train.txt").write_text("a\n")
        (folder / "ImageSets/Main/test.txt").write_text("b\n")
        return folder

    return make


ENTITIES = b'<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation>&b;</annotation>'


def parquet(rows: int, metadata: bytes = b"{}") -> Callable[[Path], Path]:
    """Pictures of no bytes, and labels that are all the same."""

    def make(folder: Path) -> Path:
        part = min(rows, 1_000_000)
        no_bytes = pa.Array.from_buffers(
            pa.binary(), part, [None, pa.py_buffer(bytes(4 * part + 4)), pa.py_buffer(b"")]
        )
        pictures = pa.StructArray.from_arrays([no_bytes, pa.nulls(part, pa.string())], ["bytes", "path"])
        table = pa.table({"image": pictures, "label": pa.array(np.zeros(part, np.int64))})
        table = table.replace_schema_metadata({b"huggingface": metadata})
        for split in ("train", "test"):
            with pq.ParquetWriter(folder / f"{split}-0.parquet", table.schema, compression="zstd") as file:
                for _ in range(rows // part):
                    file.write_table(table)
        return folder

    return make


def pickled(folder: Path) -> Path:
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(b"\x80\x02" + b"]" * 5_000_000 + b".")
    return folder


def sound(folder: Path) -> Path:
    """A WAV file of 44 bytes that says it holds 4 GB."""
    for name in ("yes_1.wav", "no_1.wav"):
        form = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)
        data = struct.pack("<4sI4s4sI16s4sI", b"RIFF", 2**32 - 1, b"WAVE", b"fmt ", 16, form, b"data", 2**32 - 36)
        (folder / name).write_bytes(data)
    return folder


SOURCES: dict[str, tuple[Callable[[Path], Path], Sequence[str], str]] = {
    "table of 200,000 columns": (table, (), "x.csv must have at most 10,000 columns, got 144,961 or more. What has"),
    "table with a hole": (table_with_hole, (), "x.csv must be a text file in UTF-8, got a NUL byte in row 3. Convert"),
    "pipe": (pipe, (), "pipe must be a regular file, got a pipe."),
    "endless": (zeros, (), "zeros must be a regular file, got a device."),
    "endless table": (zeros, ("--format", "table"), "zeros must be a regular file, got a device."),
    "folder with a pipe": (folder_with(pipe), (), "source/cat/pipe must be a regular file, got a pipe."),
    "folder with a device": (folder_with(zeros), (), "got the link 'cat/zeros' to '/dev/zero'. Copy what it stands"),
    "folders in folders": (deep_folders, (), "must be a folder that can be read, got File name too long."),
    "tar, header of 300 MB": (tar(tarfile.XHDTYPE, 300 * 2**20), (), "got a header of 314,572,800 bytes, more than"),
    "tar, global header": (tar(tarfile.XGLTYPE, 300 * 2**20), (), "got a header of 314,572,800 bytes, more than 65,"),
    "tar, long name": (tar(tarfile.GNUTYPE_LONGNAME, 300 * 2**20), (), "got a header of 314,572,800 bytes, more than"),
    "tar, headers of headers": (tar_of_headers, (), "must be a whole archive, got headers of headers without end."),
    "tar, negative size": (tar_with_negative_size, (), "must be a whole archive, got"),
    "zip of zeros": (zipped_zeros, (), "must unpack to at most"),
    "idx, gzipped zeros": (idx, (), "train-images-idx3-ubyte.gz must hold 1 to"),
    "picture of 10 gigapixels": (large_picture, (), "must be a whole picture"),
    "XML entities": (voc(ENTITIES), (), "a.xml must be XML without a DOCTYPE, whose entities may grow or read files."),
    "XML, deep": (voc(b"<a>" * DEEP + b"</a>" * DEEP), (), "size/width of"),
    "XML, large": (voc(b"<a>" + b"<b/>" * 5_000_000 + b"</a>"), (), "a.xml must have at most 524,288 bytes, got 20,"),
    "Parquet of 20 million rows": (parquet(20_000_000), (), "must hold a byte or more of each row and unpack to at"),
    "Parquet, deep metadata": (
        parquet(1, b'{"info":' + b"[" * DEEP),
        (),
        "the metadata 'huggingface' of",
    ),
    "pickle of lists": (pickled, (), "got one with more than 1,000,000 instructions, which could do anything."),
    "sound of 4 GB": (sound, (), "must hold a sound, got no samples."),
    "option": (table, ("--option", "classes=" + "[" * DEEP), "settings must be nested at most 20 deep, got more."),
}


TOLD_OF_BOTH = ("picture of 10 gigapixels", "sound of 4 GB")  # two files of each, a line for each


@pytest.mark.store
@pytest.mark.parametrize("name", SOURCES)
def test_a_hostile_source_is_refused_in_few_lines(name: str, command: Commands, store: Store, tmp_path: Path) -> None:
    make, options, message = SOURCES[name]
    ended = command.run(["data", "push", make(tmp_path), *options], store=store, home=tmp_path / "home")
    require_refused(ended, code=2, message=message, lines=3 if name in TOLD_OF_BOTH else 1)


# ---- inputs of a model


@pytest.mark.parametrize(
    ("word", "signature", "message"),
    [
        ("[" * DEEP, NUMBERS, "inputs must be JSON .* got: lists and objects nested more than 32 deep"),
        ("/dev/zero", SERIES, "/dev/zero must be a regular file, got a device"),
        ("PIPE", SERIES, "pipe must be a regular file, got a pipe"),
        ("HOLE", SERIES, "x.csv must have at most 33,554,432 bytes, got 1,099,511,627,776"),
        ("a\n" + "9" * 2**18 + ",\n" + '"' + "x" * 2**18, SERIES, "the series must"),
    ],
)
def test_a_hostile_input_of_a_model_is_refused(word: str, signature: Signature, message: str, tmp_path: Path) -> None:
    makers = {"PIPE": pipe, "HOLE": lambda folder: hole(folder, "x.csv")}
    word = str(makers[word](tmp_path)) if word in makers else word
    with pytest.raises(ConfigError, match=message):
        parse_inputs([word], signature)


def test_a_good_command_still_works_within_the_same_bounds(command: Commands) -> None:
    ended = command.run(["check", "digits-cnn"])
    assert ended.code == 0 and "type: cnn" in ended.stdout
    require_modest(ended)
