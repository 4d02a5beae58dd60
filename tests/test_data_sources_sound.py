"""Sounds: every width of integers, channels, classes, splits, and malformed WAV files."""

import io
import pickle
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import ConfigError
from models.features import TARGET, AudioFeature, ClassTarget
from models.preparing.sounds import decode_wav, resample
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.options import SourceOptions

SHARED = Path(__file__).parents[2] / "shared" / "data"
random = np.random.default_rng(0)


def wav(frames: bytes, *, width: int = 2, channels: int = 1, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((channels, width, rate, 0, "NONE", ""))
        out.writeframes(frames)
    return file.getvalue()


def noise(samples: int) -> bytes:
    return random.integers(-(2**15), 2**15, samples).astype("<i2").tobytes()


def of_format(data: bytes, tag: int) -> bytes:
    """The same file with another format tag: 3 is float, 2 is ADPCM."""
    return data.replace(b"fmt \x10\0\0\0\x01\0", b"fmt \x10\0\0\0" + tag.to_bytes(2, "little"))


def written(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def some(classes: str, count: int, pattern: str = "{c}/{i}.wav") -> dict[str, bytes]:
    return {pattern.format(c=c, i=i): wav(noise(20 + i)) for c in classes for i in range(count)}


def read(source: str, **options):
    return prepare(source, options=SourceOptions(**options))


@pytest.mark.store
def test_sounds_are_read_from_a_bucket_by_a_piece_without_keys(store):
    for name, data in some("ab", 6).items():
        store.write(f"sounds/{name}", data)
    prepared = prepare(f"{store.settings.url}/sounds")
    assert {name: part.rows for name, part in prepared.splits.items()} == {"train": 10, "test": 2}
    piece = prepared.splits["train"].pieces[0]
    assert piece.files.is_everywhere
    assert len(pickle.loads(pickle.dumps(piece)).read()["audio"]) == 10


def test_folders_are_classes_and_every_sound_comes_out_as_it_went_in(tmp_path):
    files = some(["yes", "no"], 25)
    prepared = read(written(tmp_path, files))
    assert prepared.target == ClassTarget(classes=("no", "yes"))
    assert prepared.features == {"audio": AudioFeature(sample_rate=8000, max_samples=44)}
    assert {name: part.rows for name, part in prepared.splits.items()} == {"train": 40, "test": 10}
    expected = {(name.startswith("yes"), decode_wav(data)[0].tobytes()) for name, data in files.items()}
    found = {
        (bool(part.columns[TARGET][row]), part.columns["audio"][row].tobytes())
        for part in prepared.splits.values()
        for row in range(part.rows)
    }
    assert found == expected
    assert prepared.splits["test"].columns[TARGET].sum() == 5


def test_pieces_are_read_alone_after_a_trip_to_another_machine(tmp_path):
    prepared = read(written(tmp_path, some("ab", 200, "{c}_{i}.wav")))
    pieces = prepared.splits["train"].pieces
    assert [piece.rows for piece in pieces] == [256, 64]
    assert sum(piece.source_bytes for piece in pieces) > 320 * 44
    for piece in pieces:
        sent = pickle.dumps(piece)
        assert len(sent) < 50 * piece.rows
        there = pickle.loads(sent).read()
        assert np.array_equal(there["audio"].values, piece.read()["audio"].values)
        assert set(there[TARGET].tolist()) == {0, 1}  # the classes are mixed


def test_names_are_classes_and_a_pattern_is_the_test_split(tmp_path):
    source = written(tmp_path, some("01", 12, "takes/{c}_ann_{i}.wav"))
    prepared = read(source, test="*_[0-4].wav")
    assert prepared.target == ClassTarget(classes=("0", "1"))
    assert {name: part.rows for name, part in prepared.splits.items()} == {"train": 14, "test": 10}
    with pytest.raises(ConfigError, match=r"test must match some files .*, got 'x.wav', which matches 0 of 24"):
        read(source, test="x.wav")
    with pytest.raises(ConfigError, match=r"seed must be left out for .* with option test, which says itself"):
        read(source, test="*_1.wav", seed=3)


def test_folders_called_train_and_test_are_the_split(tmp_path):
    files = {
        f"{split}/{name}": data for split, n in (("train", 4), ("test", 2)) for name, data in some("ab", n).items()
    }
    prepared = read(written(tmp_path, files))
    assert {name: part.rows for name, part in prepared.splits.items()} == {"train": 8, "test": 4}
    assert prepared.target == ClassTarget(classes=("a", "b"))


def test_copies_of_a_sound_stay_on_one_side(tmp_path):
    sounds = [wav(noise(30)) for _ in range(10)]
    files = {f"{c}/{i}.wav": sounds[i % 5 + 5 * (c == "b")] for c in "ab" for i in range(20)}
    for seed in range(3):
        prepared = read(written(tmp_path, files), seed=seed)
        sides = [{part.columns["audio"][i].tobytes() for i in range(part.rows)} for part in prepared.splits.values()]
        assert not sides[0] & sides[1]


FINE = wav(noise(20))


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (
            {"a/1.wav": b""},
            {},
            r"a/1\.wav must be a whole WAV file of integers .*, got 0 bytes that end too early\. .*damaged=skip",
        ),
        ({"a/1.wav": FINE[:30]}, {}, r"a/1\.wav must be a whole WAV file .*, got 30 bytes that end too early"),
        (
            {"a/1.wav": FINE[:-10]},
            {},
            r"a/1\.wav must be a whole WAV file .*, got 30 of 40 bytes of samples: the file is cut off",
        ),
        (
            {"a/1.wav": b"ID3 this is an MP3 file, renamed by somebody"},
            {},
            r"a/1\.wav must be a whole WAV file .*, got bytes that do not begin with RIFF and WAVE but with b.ID3 ",
        ),
        ({"a/1.wav": wav(b"")}, {}, r"a/1\.wav must hold a sound, got no samples"),
        ({"a/1.wav": of_format(FINE, 2)}, {}, r"a/1\.wav must be a whole WAV file .*, got samples of encoding 0x0002"),
        (
            {"a/1.wav": wav(noise(20), rate=16000)},
            {},
            r"got 16000 \(1, such as a/1\.wav\), 8000 \(1, such as b/1\.wav\)\. .* --option rate=16000",
        ),
        ({"a/1.txt": b""}, {}, "must hold two classes|of a test split|CLASS_"),
        ({"a/2.mp3": b"ID3"}, {}, r"must hold sounds as \.wav files, got a/2\.mp3\. Convert others: `ffmpeg"),
        ({"a/1.wav": FINE}, {}, "must hold enough different rows for a test split of 20%, got 2 rows"),
        (
            {"1.wav": FINE},
            {"label": "folder"},
            r"must hold sounds in folders named after their classes, got 1\.wav in none",
        ),
        ({"a/1.wav": FINE}, {"label": "name"}, r"must hold sounds named CLASS_….wav, .* got a/1\.wav"),
        ({"a/_1.wav": FINE}, {"label": "name"}, r"must hold sounds named CLASS_….wav, .* got a/_1\.wav"),
        ({"a\x07/1.wav": FINE}, {}, r"must hold files with plain names, got 'a\\x07/1\.wav'"),
        ({"a/1.wav": FINE}, {"side": 32}, "side must be left out for wav"),
        ({"train/a/1.wav": FINE, "test/c/1.wav": FINE}, {}, "must hold"),
    ],
)
def test_malformed_sounds_are_named(tmp_path, files, options, message):
    source = written(tmp_path, {"b/1.wav": FINE, **files})
    with pytest.raises(ConfigError, match=message):
        prepare(source, format="wav", options=SourceOptions(**options))


def test_a_folder_without_sounds_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"must hold sounds as \.wav files, got a/1\.mp3"):
        prepare(written(tmp_path, {"a/1.mp3": b"x"}), format="wav")


def test_a_class_that_training_lacks_is_refused(tmp_path):
    files = {"train/a/1.wav": FINE, "train/b/1.wav": FINE, "test/c/1.wav": FINE}
    with pytest.raises(ConfigError, match=r"the training split of .* must hold every class, got no row of 'c'"):
        read(written(tmp_path, files))


def test_one_class_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must hold two classes or more, got a only"):
        read(written(tmp_path, some("a", 9, "{c}_{i}.wav")))


def test_sounds_of_several_rates_are_resampled_where_the_person_says_so(tmp_path):
    files = some("ab", 10) | {f"{c}/high{i}.wav": wav(noise(441 + i), rate=44_100) for c in "ab" for i in range(3)}
    prepared = read(written(tmp_path, files), rate=8000)
    assert prepared.features == {"audio": AudioFeature(sample_rate=8000, max_samples=81, resampled=True)}
    (change,) = prepared.source.changes
    assert change.text == "6 of 26 sounds were resampled to 8,000 samples a second: 6 of 44,100."
    assert (change.option, change.numbers) == ("rate=8000", {"resampled": 6, "sounds": 26})
    stored = {row.tobytes() for part in prepared.splits.values() for row in rows_of(part.columns["audio"])}
    for data in files.values():
        samples, rate = decode_wav(data)
        assert resample(samples, rate, 8000).tobytes() in stored


def rows_of(column):
    return [column[row] for row in range(len(column))]


def test_a_rate_that_all_have_changes_nothing_but_what_serving_takes(tmp_path):
    prepared = read(written(tmp_path, some("ab", 10)), rate=8000)
    assert prepared.features["audio"].resampled
    (change,) = prepared.source.changes
    assert change.text == "0 of 20 sounds were resampled to 8,000 samples a second."


def test_all_damaged_sounds_are_named_at_once_and_left_out_on_request(tmp_path):
    files = some("ab", 10) | {"a/cut.wav": FINE[:-10], "b/empty.wav": b""}
    source = written(tmp_path, files)
    with pytest.raises(
        ConfigError, match=r"2 files must be readable, .*damaged=skip, .*:\n.*a/cut\.wav[^\n]*\n.*b/empty\.wav"
    ):
        read(source)
    prepared = read(source, damaged="skip")
    assert sum(part.rows for part in prepared.splits.values()) == 20
    (change,) = prepared.source.changes
    assert change.text == "2 of 22 sounds could not be read and were left out."
    assert (change.names, change.numbers) == (("a/cut.wav", "b/empty.wav"), {"skipped": 2})
    only_damaged = written(tmp_path / "none", {"a/1.wav": b"", "b/1.wav": b""})
    with pytest.raises(ConfigError, match=r"must hold sounds that can be read, .* got 2 damaged of 2"):
        read(only_damaged, damaged="skip")


def test_an_option_of_another_format_is_answered_with_those_of_this_one(tmp_path):
    with pytest.raises(ConfigError, match=r"side must be left out for wav, .* Its options are damaged, label,"):
        read(written(tmp_path, some("ab", 10)), side=32)


@pytest.mark.skipif(not (SHARED / "fsdd.tar.gz").exists(), reason="shared/data/fsdd.tar.gz is not here")
def test_spoken_digits_are_split_as_published(tmp_path):
    with tarfile.open(SHARED / "fsdd.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    prepared = read(str(tmp_path / "fsdd" / "recordings"), test="*_[0-4].wav")
    assert {name: part.rows for name, part in prepared.splits.items()} == {"train": 2700, "test": 300}
    assert prepared.features == {"audio": AudioFeature(sample_rate=8000, max_samples=18262)}
    assert prepared.target == ClassTarget(classes=tuple("0123456789"))
    assert np.bincount(prepared.splits["test"].columns[TARGET]).tolist() == [30] * 10
