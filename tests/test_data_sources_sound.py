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
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.sound import decode_wav

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


SAMPLES = np.array([-(2**15), -1, 0, 1, 256, 2**15 - 1])


@pytest.mark.parametrize(
    ("width", "frames", "expected"),
    [
        (1, bytes([0, 127, 128, 129, 255]), [-(2**15), -256, 0, 256, 127 * 256]),
        (2, SAMPLES.astype("<i2").tobytes(), SAMPLES.tolist()),
        (3, b"".join(int(s * 256 + 7).to_bytes(3, "little", signed=True) for s in SAMPLES), SAMPLES.tolist()),
        (4, (SAMPLES.astype(np.int64) * 2**16 + 999).astype("<i4").tobytes(), SAMPLES.tolist()),
    ],
)
def test_integers_of_every_width_become_16_bits(width, frames, expected):
    samples, rate = decode_wav(wav(frames, width=width, rate=11025), "a.wav")
    assert (samples.tolist(), samples.dtype, rate) == (expected, np.int16, 11025)


@pytest.mark.store
def test_sounds_are_read_from_a_bucket_by_a_piece_without_keys(store):
    for name, data in some("ab", 6).items():
        store.write(f"sounds/{name}", data)
    prepared = prepare(f"{store.settings.url}/sounds")
    assert {name: part.rows for name, part in prepared.splits.items()} == {"train": 10, "test": 2}
    piece = prepared.splits["train"].pieces[0]
    assert piece.files.is_everywhere
    assert len(pickle.loads(pickle.dumps(piece)).read()["audio"]) == 10


def test_channels_are_mixed_down_to_their_mean():
    frames = np.array([[100, 300], [-32768, -32768], [32767, -32768]], "<i2").tobytes()
    samples, _ = decode_wav(wav(frames, channels=2), "a.wav")
    assert samples.tolist() == [200, -32768, 0]


def test_folders_are_classes_and_every_sound_comes_out_as_it_went_in(tmp_path):
    files = some(["yes", "no"], 25)
    prepared = read(written(tmp_path, files))
    assert prepared.target == ClassTarget(classes=("no", "yes"))
    assert prepared.features == {"audio": AudioFeature(sample_rate=8000, max_samples=44)}
    assert {name: part.rows for name, part in prepared.splits.items()} == {"train": 40, "test": 10}
    expected = {(name.startswith("yes"), decode_wav(data, name)[0].tobytes()) for name, data in files.items()}
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
        ({"a/1.wav": b""}, {}, r"a/1\.wav must be a WAV file, got 0 bytes that end too early"),
        ({"a/1.wav": FINE[:30]}, {}, r"a/1\.wav must be a WAV file, got 30 bytes that end too early"),
        ({"a/1.wav": FINE[:-10]}, {}, r"a/1\.wav must be a whole WAV file, got 30 of 40 bytes"),
        (
            {"a/1.wav": b"ID3 this is an MP3 file, renamed by somebody"},
            {},
            r"a/1\.wav must be a WAV file, got file does",
        ),
        ({"a/1.wav": wav(b"")}, {}, r"a/1\.wav must hold a sound, got no samples"),
        ({"a/1.wav": of_format(FINE, 3)}, {}, r"a/1\.wav must (hold integers of 8, 16, 24 or 32 bits|be a WAV file)"),
        (
            {"a/1.wav": wav(noise(20), rate=16000)},
            {},
            r"of one sample rate, got 8000 in b/1\.wav and 16000 in a/1\.wav",
        ),
        ({"a/1.txt": b""}, {}, "must hold two classes|of a test split|CLASS_"),
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
    with pytest.raises(ConfigError, match=r"must hold \.wav files, got none"):
        prepare(written(tmp_path, {"a/1.mp3": b"x"}), format="wav")


def test_a_class_that_training_lacks_is_refused(tmp_path):
    files = {"train/a/1.wav": FINE, "train/b/1.wav": FINE, "test/c/1.wav": FINE}
    with pytest.raises(ConfigError, match=r"the training split of .* must hold every class, got no row of 'c'"):
        read(written(tmp_path, files))


def test_one_class_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must hold two classes or more, got a only"):
        read(written(tmp_path, some("a", 9, "{c}_{i}.wav")))


def test_floats_need_an_extra_and_are_scaled(tmp_path):
    pytest.importorskip("soundfile")
    floats = np.array([0.0, 0.5, -1.0, 2.0], "<f4").tobytes()
    samples, rate = decode_wav(of_format(wav(floats, width=4), 3), "a.wav")
    assert (samples.tolist(), rate) == ([0, 2**14, -(2**15), 2**15 - 1], 8000)


@pytest.mark.skipif(not (SHARED / "fsdd.tar.gz").exists(), reason="shared/data/fsdd.tar.gz is not here")
def test_spoken_digits_are_split_as_published(tmp_path):
    with tarfile.open(SHARED / "fsdd.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    prepared = read(str(tmp_path / "fsdd" / "recordings"), test="*_[0-4].wav")
    assert {name: part.rows for name, part in prepared.splits.items()} == {"train": 2700, "test": 300}
    assert prepared.features == {"audio": AudioFeature(sample_rate=8000, max_samples=18262)}
    assert prepared.target == ClassTarget(classes=tuple("0123456789"))
    assert np.bincount(prepared.splits["test"].columns[TARGET]).tolist() == [30] * 10
