"""What clients may send, in JSON, as a picture and in the Open Inference Protocol, and what they get back."""

import base64
import io
import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from example_runs import EXAMPLES, GREY, PICTURES, RATINGS, SERIES, TABLE
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.config import FMConfig, ModelConfig, RNNConfig, Techniques, resolve_techniques
from models.describe import describe_feature
from models.features import AudioFeature, ClassTarget, NumberTarget, Signature, SparseFeature, TextFeature
from models.network import Network, build, example_batch
from models.pictures import decode_picture
from models.preparing.sounds import decode_wav, resample
from models.text import words
from serving.requests.inputs import join_batches, parse_file, parse_picture, parse_samples, read_json
from serving.requests.outputs import describe_answers
from serving.requests.protocol import describe_output, describe_tensors, output_tensor, parse_request, request_of
from serving.requests.values import MAX_PIXELS, InputError

CLASSES = ClassTarget(classes=("bad", "good", "neither"))
TEXTS = Signature(
    features={"text": TextFeature(vocabulary=("a", "film", "fine", ",", "unknown"), max_tokens=5)}, target=CLASSES
)
SOUNDS = Signature(features={"sound": AudioFeature(sample_rate=8000, max_samples=1000)}, target=CLASSES)
ROWS = Signature(
    features={"row": SparseFeature(columns=30)}, target=NumberTarget(mean=0.0, std=1.0, minimum=-9.0, maximum=9.0)
)
RAGGED: dict[str, tuple[ModelConfig, Signature]] = {
    "texts": (RNNConfig(type="rnn", hidden_size=8), TEXTS),
    "sounds": (RNNConfig(type="rnn", hidden_size=8), SOUNDS),
    "rows": (FMConfig(type="fm", factors=4), ROWS),
    "rows-and-ratings": (FMConfig(type="fm"), Signature(features=ROWS.features | RATINGS.features, target=CLASSES)),
}
SIGNATURES = {name: signature for name, (_, signature) in (EXAMPLES | RAGGED).items()}


def network(kind: str) -> Network:
    config, signature = RAGGED[kind]
    return build(config, resolve_techniques(Techniques(), config, gpu_available=False), signature, seed=0).eval()


def wav(samples: object, *, width: int = 2, rate: int = 8000, channels: int = 1) -> bytes:
    """A WAV file of integer samples, interleaved if there are several channels."""
    dtype = {1: "u1", 2: "<i2", 4: "<i4"}[width]
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(np.asarray(samples).astype(dtype).tobytes())
    return file.getvalue()


def picture(
    mode: str = "RGB", size: tuple[int, int] = (8, 8), kind: str = "PNG", fill: object = None, **options
) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, fill).save(file, kind, **options)
    return file.getvalue()


# ---- JSON text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "must be JSON"),
        (b"{", "must be JSON"),
        (b"{'a': 1}", "must be JSON"),
        (b'{"a": 1,}', "must be JSON"),
        (b'{"a": 1} x', "must be JSON"),
        (b'{"a": NaN}', "must not hold NaN"),
        (b'{"a": Infinity}', "must not hold Infinity"),
        (b'{"a": [-Infinity]}', "must not hold -Infinity"),
        (b'{"a": 1, "a": 2}', "must not hold a key twice"),
        (b'[{"b": {"a": 1, "a": 1}}]', "must not hold a key twice"),
        (b'"\xff"', "must be UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "must be"),
        (b'\xef\xbb\xbf{"a": 1}', "must be JSON"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b"[" * 100_000, "must not be nested that deep"),
        (b'{"a":' * 100_000, "must not be nested that deep"),
        (b"1" * 5000, "integers of thousands of digits"),
        (b'"a\x00b"', "must be JSON"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_400(body, message):
    with pytest.raises(InputError, match=message) as refused:
        read_json(body)
    assert (refused.value.status, refused.value.code) == (400, "bad_json")


def test_strict_json_is_read():
    text = '{"a": [1, -2.5e3, true, null], "ü": "\\ud83d\\ude00"}'
    assert read_json(text.encode()) == {"a": [1, -2500.0, True, None], "ü": "😀"}


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(body):
    try:
        json.dumps(read_json(body)).encode()
    except InputError as error:
        assert error.status == 400


# ---- samples


def test_a_sample_becomes_a_batch_of_one():
    batch = parse_samples({"size": [5, 3.5], "colour": "blue"}, TABLE)
    assert torch.equal(batch["size"], torch.tensor([[5.0, 3.5]]))
    assert torch.equal(batch["colour"], torch.tensor([2]))


def test_numbers_may_be_named_and_categories_may_be_whole_numbers():
    batch = parse_samples([{"size": {"width": 3, "length": 5}, "colour": "red"}], TABLE)
    assert torch.equal(batch["size"], torch.tensor([[5.0, 3.0]]))
    assert parse_samples({"user": 196, "item": "242"}, RATINGS)["user"].tolist() == [1]


def test_a_category_that_training_never_saw_is_index_0_and_reported():
    batch = parse_samples([{"user": "196", "item": "999"}, {"user": "x", "item": 302}], RATINGS)
    assert (batch["user"].tolist(), batch["item"].tolist()) == ([1, 0], [0, 2])
    assert describe_answers(torch.tensor([3.5, 4.0]), batch, RATINGS) == [
        {"value": 3.5, "unseen": ["item"]},
        {"value": 4.0, "unseen": ["user"]},
    ]


def test_a_series_may_be_rows_or_objects():
    rows = [[float(t), -float(t)] for t in range(6)]
    objects = [{"heat": b, "load": a} for a, b in rows]
    assert torch.equal(parse_samples({"series": rows}, SERIES)["series"], torch.tensor([rows]))
    assert torch.equal(parse_samples({"series": objects}, SERIES)["series"], torch.tensor([rows]))


def test_a_picture_may_be_pixels_or_base64():
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    for value in (pixels.tolist(), text, "data:image/png;base64," + text):
        assert torch.equal(parse_samples({"image": value}, PICTURES)["image"][0], pixels)
    assert torch.equal(parse_picture(file.getvalue(), PICTURES)["image"][0], pixels)


def test_a_text_becomes_the_tokens_of_its_words_padded_to_the_longest():
    batch = parse_samples([{"text": "A FINE film"}, {"text": ""}, {"text": "dull, dull, dull, dull"}], TEXTS)
    assert batch["text"].tolist() == [[2, 4, 3, 0, 0], [0, 0, 0, 0, 0], [1, 5, 1, 5, 1]]
    assert batch["text.length"].tolist() == [3, 0, 5] and batch["text"].dtype == torch.int64


def test_a_sparse_row_is_an_object_of_columns_from_0():
    batch = parse_samples([{"row": {"29": -2, "0": 1.5}}, {"row": {}}], ROWS)
    assert batch["row"].tolist() == [[1, 30], [0, 0]] and batch["row.length"].tolist() == [2, 0]
    assert batch["row.value"].tolist() == [[1.5, -2.0], [0.0, 0.0]]


def test_a_sound_may_be_samples_or_a_wav_file_or_its_base64():
    values = [0, 8192, -32768, 32767]
    samples = torch.tensor(values) / 32768
    text = base64.b64encode(wav(values)).decode()
    for value in (samples.tolist(), text, "data:audio/wav;base64," + text):
        batch = parse_samples({"sound": value}, SOUNDS)
        assert torch.equal(batch["sound"], samples[None]) and batch["sound.length"].tolist() == [4]
    assert torch.equal(parse_file(wav(values), SOUNDS)["sound"], samples[None])
    long = parse_samples([{"sound": [0.5] * 3000}, {"sound": wav_text([9] * 3000)}], SOUNDS)
    assert long["sound"].shape == (2, 1000) and long["sound.length"].tolist() == [1000, 1000]


def wav_text(samples: object, **options: int) -> str:
    return base64.b64encode(wav(samples, **options)).decode()


LONG = "x" * 1025
BAD_RAGGED = [
    (TEXTS, {"text": None}, "wrong_type", "text"),
    (TEXTS, {"text": ["a", "film"]}, "wrong_type", "text"),
    (TEXTS, {"text": "a " * 50_001}, "too_long", "text"),
    (TEXTS, [{"text": "a"}, {"text": 3}], "wrong_type", "[1].text"),
    (ROWS, {"row": [1, 2]}, "wrong_type", "row"),
    (ROWS, {"row": None}, "wrong_type", "row"),
    (ROWS, {"row": {"30": 1}}, "unknown_field", "row.30"),
    (ROWS, {"row": {"-1": 1}}, "unknown_field", "row.-1"),
    (ROWS, {"row": {"01": 1}}, "unknown_field", "row.01"),
    (ROWS, {"row": {"1.0": 1}}, "unknown_field", "row.1.0"),
    (ROWS, {"row": {"": 1}}, "unknown_field", "row."),
    (ROWS, {"row": {"²": 1}}, "unknown_field", "row.²"),
    (ROWS, {"row": {"9" * 5000: 1}}, "unknown_field", "row." + "9" * 60),
    (ROWS, {"row": {"3": "1"}}, "wrong_type", "row.3"),
    (ROWS, {"row": {"3": 1e39}}, "out_of_range", "row.3"),
    (SOUNDS, {"sound": None}, "wrong_type", "sound"),
    (SOUNDS, {"sound": 0.5}, "wrong_type", "sound"),
    (SOUNDS, {"sound": [0.5, "0.5"]}, "wrong_type", "sound[1]"),
    (SOUNDS, {"sound": [0.5, 1.01]}, "out_of_range", "sound"),
    (SOUNDS, {"sound": [0.5, -3000]}, "out_of_range", "sound"),
    (SOUNDS, {"sound": "no base64!"}, "bad_base64", "sound"),
    (SOUNDS, {"sound": "AAAA"}, "bad_sound", "sound"),
    (SOUNDS, {"sound": "data:image/png;base64,AAAA"}, "bad_base64", "sound"),
    (SOUNDS, {"sound": wav_text([])}, "bad_sound", "sound"),
    (SOUNDS, {"sound": wav_text([1, 2], rate=16_000)}, "wrong_sample_rate", "sound"),
]
BAD_SAMPLES = [
    *BAD_RAGGED,
    (TABLE, None, "wrong_type", None),
    (TABLE, 3, "wrong_type", None),
    (TABLE, "text", "wrong_type", None),
    (TABLE, [], "wrong_size", None),
    (TABLE, [{}] * 1025, "wrong_size", None),
    (TABLE, [[]], "wrong_type", "[0]"),
    (TABLE, {}, "missing_field", "colour"),
    (TABLE, {"colour": "red"}, "missing_field", "size"),
    (TABLE, {"size": [1, 2], "colour": "red", "x": 1}, "unknown_field", "x"),
    (TABLE, [{"size": [1, 2], "colour": "red"}, {"size": [1, 2]}], "missing_field", "[1].colour"),
    (TABLE, {"size": [1], "colour": "red"}, "wrong_shape", "size"),
    (TABLE, {"size": [1, 2, 3], "colour": "red"}, "wrong_shape", "size"),
    (TABLE, {"size": [], "colour": "red"}, "wrong_shape", "size"),
    (TABLE, {"size": 1, "colour": "red"}, "wrong_type", "size"),
    (TABLE, {"size": "1,2", "colour": "red"}, "wrong_type", "size"),
    (TABLE, {"size": [1, "2"], "colour": "red"}, "wrong_type", "size[1]"),
    (TABLE, {"size": [1, True], "colour": "red"}, "wrong_type", "size[1]"),
    (TABLE, {"size": [1, None], "colour": "red"}, "wrong_type", "size[1]"),
    (TABLE, {"size": [1, [2]], "colour": "red"}, "wrong_type", "size[1]"),
    (TABLE, {"size": [1, float("inf")], "colour": "red"}, "out_of_range", "size[1]"),
    (TABLE, {"size": [1, float("nan")], "colour": "red"}, "out_of_range", "size[1]"),
    (TABLE, {"size": [1, 1e39], "colour": "red"}, "out_of_range", "size[1]"),
    (TABLE, {"size": [1, 10**400], "colour": "red"}, "out_of_range", "size[1]"),
    (TABLE, {"size": {"length": 1}, "colour": "red"}, "missing_field", "size.width"),
    (TABLE, {"size": {"length": 1, "width": 2, "x": 3}, "colour": "red"}, "unknown_field", "size.x"),
    (TABLE, {"size": [1, 2], "colour": None}, "wrong_type", "colour"),
    (TABLE, {"size": [1, 2], "colour": 1.5}, "wrong_type", "colour"),
    (TABLE, {"size": [1, 2], "colour": True}, "wrong_type", "colour"),
    (TABLE, {"size": [1, 2], "colour": ["red"]}, "wrong_type", "colour"),
    (TABLE, {"size": [1, 2], "colour": LONG}, "too_long", "colour"),
    (RATINGS, {"user": 2**63, "item": 1}, "out_of_range", "user"),
    (RATINGS, {"user": -(10**400), "item": 1}, "out_of_range", "user"),
    (SERIES, {"series": []}, "wrong_shape", "series"),
    (SERIES, {"series": [[1, 2]] * 5}, "wrong_shape", "series"),
    (SERIES, {"series": [[1, 2]] * 7}, "wrong_shape", "series"),
    (SERIES, {"series": [[1, 2]] * 5 + [[1]]}, "wrong_shape", "series[5]"),
    (SERIES, {"series": [1] * 6}, "wrong_type", "series[0]"),
    (SERIES, {"series": [{"load": 1}] * 6}, "missing_field", "series[0].heat"),
    (SERIES, {"series": [[[1, 2]]] * 6}, "wrong_shape", "series[0]"),
    (PICTURES, {"image": "no base64!"}, "bad_base64", "image"),
    (PICTURES, {"image": ""}, "bad_picture", "image"),
    (PICTURES, {"image": "AAAA"}, "bad_picture", "image"),
    (PICTURES, {"image": "data:text/html;base64,AAAA"}, "bad_base64", "image"),
    (PICTURES, {"image": [[[0] * 8] * 8] * 2}, "wrong_shape", "image"),
    (PICTURES, {"image": [[[0] * 8] * 8, [[0] * 8] * 8, [[0] * 8] * 7]}, "wrong_shape", "image[2]"),
    (PICTURES, {"image": [[[256] * 8] * 8] * 3}, "out_of_range", "image"),
    (PICTURES, {"image": [[[-1] * 8] * 8] * 3}, "out_of_range", "image"),
    (PICTURES, {"image": [[[0.5] * 8] * 8] * 3}, "out_of_range", "image"),
]


@pytest.mark.parametrize(("signature", "value", "code", "field"), BAD_SAMPLES)
def test_a_bad_sample_is_refused_by_field(signature, value, code, field):
    with pytest.raises(InputError) as refused:
        parse_samples(value, signature)
    assert (refused.value.code, refused.value.field, refused.value.status) == (code, field, 422)
    assert len(str(refused.value)) < 300


# ---- pictures


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (30, 20), (500, 2)])
def test_a_picture_of_any_size_is_scaled(kind, size):
    image = parse_picture(picture(size=size, kind=kind, fill=(200, 100, 50)), PICTURES)["image"]
    assert image.shape == (1, 3, 8, 8) and image.dtype == torch.uint8
    assert (image[0].float().mean((1, 2)) - torch.tensor([200.0, 100.0, 50.0])).abs().max() < 4


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (picture("L", fill=77), (77, 77, 77)),
        (picture("1", fill=1), (255, 255, 255)),
        (picture("P", fill=0), (0, 0, 0)),
        (picture("RGBA", fill=(10, 20, 30, 255)), (10, 20, 30)),
        (picture("RGBA", fill=(10, 20, 30, 0)), (255, 255, 255)),
        (picture("LA", fill=(100, 0)), (255, 255, 255)),
        (picture("I;16", fill=40_000), (156, 156, 156)),
        (picture("CMYK", kind="JPEG", fill=(0, 0, 0, 0)), (255, 255, 255)),
    ],
)
def test_every_kind_of_pixel_is_converted(content, expected):
    image = parse_picture(content, PICTURES)["image"][0].float().mean((1, 2))
    assert (image - torch.tensor(expected).float()).abs().max() < 3
    assert parse_picture(content, GREY)["image"].shape == (1, 1, 8, 8)


def test_a_photo_is_turned_as_its_exif_says():
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    file = io.BytesIO()
    Image.fromarray(np.rot90(upright).copy()).save(file, "JPEG", exif=exif, quality=100)
    image = parse_picture(file.getvalue(), PICTURES)["image"][0].float()
    assert image[:, :3].mean() > 240 and image[:, 5:].mean() < 15


def test_a_bomb_is_refused_before_it_is_decoded():
    small = picture("L", size=(1, 1))
    for width in (MAX_PIXELS + 1, 12_000 * 12_000, 50_000 * 50_000 // 1000):
        header = small[:16] + width.to_bytes(4, "big") + (1000).to_bytes(4, "big") + small[24:29]
        import zlib

        bomb = header + zlib.crc32(header[12:29]).to_bytes(4, "big") + small[33:]
        with pytest.raises(InputError, match="must have 25,000,000 pixels or fewer"):
            parse_picture(bomb, PICTURES)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        picture()[:40],
        picture(size=(64, 64), kind="JPEG")[:300],
        picture(kind="GIF"),
        picture(kind="BMP"),
        picture(kind="TIFF"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        b"\xff\xd8\xff\xe0" + b"\0" * 100,
        b"%PDF-1.4",
    ],
)
def test_what_is_no_whole_png_or_jpeg_is_refused(content):
    with pytest.raises(InputError, match="must be a whole PNG or JPEG picture") as refused:
        parse_picture(content, PICTURES)
    assert (refused.value.code, refused.value.status) == ("bad_picture", 422)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_picture_is_read_or_refused(data):
    content = bytearray(picture(size=(16, 16), kind=data.draw(st.sampled_from(["PNG", "JPEG"])), fill=(9, 99, 200)))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert parse_picture(bytes(content), PICTURES)["image"].shape == (1, 3, 8, 8)
    except InputError as error:
        assert error.code in ("bad_picture", "too_many_pixels")


def test_a_picture_for_another_model_is_refused_with_415():
    with pytest.raises(InputError, match="must be sent JSON with colour, size, got a picture") as refused:
        parse_picture(picture(), TABLE)
    assert refused.value.status == 415


def test_an_upload_becomes_the_pixels_that_training_reads():
    content = picture(size=(640, 480), kind="JPEG", fill=(200, 100, 50))
    pixels = torch.from_numpy(decode_picture(content, (3, 8, 8)))
    assert torch.equal(parse_picture(content, PICTURES)["image"][0], pixels)


# ---- sounds


def test_a_sound_of_another_rate_is_resampled_where_training_did():
    feature = AudioFeature(sample_rate=8000, max_samples=1000, resampled=True)
    tone = np.rint(10_000 * np.sin(np.arange(4410) * (2 * np.pi * 440 / 44_100))).astype(np.int16)
    content = wav(tone, rate=44_100)
    signature = SOUNDS.model_copy(update={"features": {"sound": feature}})
    found = parse_file(content, signature)["sound"][0]
    samples, rate = decode_wav(content)
    stored = resample(samples, rate, 8000)
    assert len(stored) == 800
    assert torch.equal(found, torch.from_numpy(stored / np.float32(2**15)))
    expected = 10_000 * np.sin(np.arange(800) * (2 * np.pi * 440 / 8000))
    assert np.abs(stored - expected)[20:-20].max() < 30


def test_a_wrong_sample_rate_is_refused_with_the_cure():
    with pytest.raises(InputError, match=r"must have 8000 samples per second, got 44100\. Convert it: .*-ar 8000"):
        parse_file(wav([1, 2], rate=44_100), SOUNDS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        picture(),
        wav([1] * 100)[:30],
        wav([1] * 100)[:44],
        wav([1])[:20] + b"\x02" + wav([1])[21:],  # ADPCM
        b"RIFF\xff\xff\xff\xffWAVE",
        b"OggS" + b"\0" * 100,
    ],
)
def test_what_is_no_wav_file_is_refused(content):
    with pytest.raises(InputError, match=r"sound must (be a whole WAV file|hold a sound), got") as refused:
        parse_file(content, SOUNDS)
    assert (refused.value.code, refused.value.status) == ("bad_sound", 422)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_sound_is_read_or_refused(data):
    content = bytearray(wav(range(20), channels=data.draw(st.sampled_from([1, 2]))))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        sound = parse_file(bytes(content[: data.draw(st.integers(0, len(content)))]), SOUNDS)["sound"]
        assert sound.abs().max() <= 1
    except InputError as error:
        assert error.code in ("bad_sound", "wrong_sample_rate")


def test_a_file_is_read_as_what_the_model_reads():
    assert parse_file(picture(), PICTURES)["image"].shape == (1, 3, 8, 8)
    with pytest.raises(InputError, match="must be sent JSON with text, got a picture") as refused:
        parse_file(picture(), TEXTS)
    assert refused.value.status == 415


def test_a_recorded_digit_is_read_as_it_was_recorded():
    path = Path(__file__).parents[2] / "shared/data/fsdd.tar.gz"
    if not path.exists():
        pytest.skip(f"the recordings must be in {path}")
    import tarfile

    with tarfile.open(path) as archive:
        content = archive.extractfile("fsdd/recordings/7_jackson_0.wav").read()
    samples = parse_file(content, SOUNDS)["sound"][0]
    assert torch.equal(samples, torch.from_numpy(np.frombuffer(content[44:2044], "<i2") / np.float32(32768)))


# ---- ragged batches


@pytest.mark.parametrize("kind", RAGGED)
def test_requests_joined_are_answered_like_alone(kind):
    net, signature = network(kind), RAGGED[kind][1]
    batches = [example_batch(signature, size=size, seed=size) for size in (1, 3, 2)]
    together = net.predict(join_batches(batches))
    torch.testing.assert_close(together, torch.cat([net.predict(b) for b in batches]), rtol=1e-6, atol=1e-6)


def test_one_long_sample_among_many_is_refused_before_it_is_padded():
    with pytest.raises(
        InputError, match=r"sound must have 4194304 elements or fewer .* 1024 samples of up to 5000"
    ) as e:
        feature = AudioFeature(sample_rate=8000, max_samples=5000)
        parse_samples(
            [{"sound": [0] * 5000}] + [{"sound": []}] * 1023, Signature(features={"sound": feature}, target=CLASSES)
        )
    assert (e.value.code, e.value.status) == ("too_large", 413)


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_a_text_is_answered_like_its_words(texts):
    joined = parse_samples([{"text": " ".join(words(text))} for text in texts], TEXTS)
    assert torch.equal(parse_samples([{"text": text} for text in texts], TEXTS)["text"], joined["text"])


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        (TEXTS, "a text, of which the first 5 words are read; 5 words are known"),
        (SOUNDS, "a sound, 8,000 samples a second, of which the first 0.125 s are read"),
        (ROWS, "a row of 30 numbers, nearly all of them 0"),
    ],
)
def test_a_feature_is_told_in_words(signature, expected):
    assert [describe_feature(feature) for feature in signature.features.values()] == [expected]


# ---- answers


def test_a_class_comes_with_its_probability_and_the_top_five():
    probabilities = torch.tensor([[0.05, 0.4, 0.1, 0.25, 0.02, 0.18]])
    [answer] = describe_answers(probabilities, parse_samples({"size": [1, 2], "colour": "red"}, TABLE), TABLE)
    assert answer["class"] == "virginica" and answer["probability"] == pytest.approx(0.4)
    assert [entry["class"] for entry in answer["top"]] == ["virginica", "a", "c", "versicolor", "setosa"]
    assert "unseen" not in answer


def test_a_forecast_names_its_channels():
    answers = describe_answers(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]), {}, SERIES)
    assert answers == [{"forecast": [{"load": 1, "heat": 2}, {"load": 3, "heat": 4}, {"load": 5, "heat": 6}]}]


def test_an_answer_that_json_cannot_hold_is_refused():
    for output in (torch.tensor([float("nan")]), torch.tensor([float("inf")])):
        with pytest.raises(InputError, match="must lead to a finite answer"):
            describe_answers(output, {}, RATINGS)


# ---- Open Inference Protocol


@pytest.mark.parametrize("kind", SIGNATURES)
def test_a_request_made_of_a_batch_is_parsed_back_to_its_bits(kind):
    signature = SIGNATURES[kind]
    batch = example_batch(signature, size=5, seed=1)
    parsed = parse_request(json.loads(json.dumps(request_of(batch, signature))), signature)
    assert parsed.keys() == batch.keys()
    assert all(torch.equal(parsed[name], batch[name]) and parsed[name].dtype == batch[name].dtype for name in batch)


def test_data_may_be_nested_and_categories_may_be_columns():
    nested = {"name": "size", "shape": [2, 2], "datatype": "FP64", "data": [[1, 2], [3, 4]]}
    column = {"name": "colour", "shape": [2, 1], "datatype": "BYTES", "data": [["red"], ["blue"]]}
    batch = parse_request({"inputs": [nested, column]}, TABLE)
    assert batch["size"].tolist() == [[1, 2], [3, 4]] and batch["colour"].tolist() == [1, 2]


def test_tensors_are_described():
    assert describe_tensors(TABLE) == {
        "inputs": [
            {"name": "colour", "datatype": "BYTES", "shape": [-1]},
            {"name": "size", "datatype": "FP32", "shape": [-1, 2]},
        ],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 6]}],
    }
    assert describe_tensors(PICTURES)["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 3, 8, 8]}]
    assert describe_tensors(SERIES)["outputs"] == [{"name": "forecast", "datatype": "FP32", "shape": [-1, 3, 2]}]
    assert describe_tensors(RATINGS)["outputs"] == [{"name": "value", "datatype": "FP32", "shape": [-1]}]
    assert describe_tensors(TEXTS)["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert describe_tensors(SOUNDS)["inputs"] == [
        {"name": "sound", "datatype": "FP32", "shape": [-1, -1]},
        {"name": "sound.length", "datatype": "INT64", "shape": [-1]},
    ]
    assert describe_tensors(ROWS)["inputs"] == [
        {"name": "row", "datatype": "INT64", "shape": [-1, -1]},
        {"name": "row.value", "datatype": "FP32", "shape": [-1, -1]},
        {"name": "row.length", "datatype": "INT64", "shape": [-1]},
    ]


def test_outputs_are_read_back_to_their_bits():
    output = torch.randn(2, 3, 2)
    assert torch.equal(output_tensor(json.loads(json.dumps(describe_output(output, SERIES)))), output)


def size_tensor(**changes: object) -> dict[str, object]:
    return {"name": "size", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0], **changes}


def colour_tensor(**changes: object) -> dict[str, object]:
    return {"name": "colour", "shape": [1], "datatype": "BYTES", "data": ["red"], **changes}


def request(size: object = None, colour: object = None, **more: object) -> dict[str, object]:
    return {"inputs": [size or size_tensor(), colour or colour_tensor()], **more}


BAD_REQUESTS = [
    (None, "wrong_type"),
    ([], "wrong_type"),
    ({}, "missing_field"),
    ({"inputs": None}, "missing_field"),
    ({"inputs": {}}, "missing_field"),
    ({"inputs": []}, "missing_field"),
    ({"inputs": [3]}, "wrong_type"),
    ({"inputs": [size_tensor()]}, "missing_field"),
    (request(more=1), "unknown_field"),
    (request(id=3), "wrong_type"),
    (request(id="x" * 257), "wrong_type"),
    (request(parameters=[]), "wrong_type"),
    (request(outputs={}), "unknown_output"),
    (request(outputs=[{"name": "other"}]), "unknown_output"),
    (request(outputs=["probabilities"]), "unknown_output"),
    ({"inputs": [size_tensor(), size_tensor(), colour_tensor()]}, "duplicate_field"),
    (request(size_tensor(name="x")), "unknown_field"),
    (request(size_tensor(name=None)), "unknown_field"),
    (request(size_tensor(name=["size"])), "unknown_field"),
    (request(size_tensor(extra=1)), "unknown_field"),
    (request(size_tensor(shape=None)), "wrong_shape"),
    (request(size_tensor(shape=[])), "wrong_shape"),
    (request(size_tensor(shape=[2])), "wrong_shape"),
    (request(size_tensor(shape=[1, 3])), "wrong_shape"),
    (request(size_tensor(shape=[1, 2.0])), "wrong_shape"),
    (request(size_tensor(shape=["1", 2])), "wrong_shape"),
    (request(size_tensor(shape=[True, 2])), "wrong_shape"),
    (request(size_tensor(shape=[0, 2], data=[])), "wrong_size"),
    (request(size_tensor(shape=[-1, 2])), "wrong_size"),
    (request(size_tensor(shape=[10**9, 2])), "wrong_size"),
    (request(size_tensor(shape=[2, 2])), "wrong_shape"),
    (request(size_tensor(shape=[2, 2], data=[1, 2, 3, 4])), "wrong_shape"),
    (request(size_tensor(datatype=None)), "wrong_datatype"),
    (request(size_tensor(datatype="BYTES")), "wrong_datatype"),
    (request(size_tensor(datatype="float32")), "wrong_datatype"),
    (request(size_tensor(datatype=["FP32"])), "wrong_datatype"),
    (request({k: v for k, v in size_tensor().items() if k != "data"}), "missing_field"),
    (request(size_tensor(data=None)), "wrong_type"),
    (request(size_tensor(data="AAAA")), "wrong_type"),
    (request(size_tensor(data=[1])), "wrong_shape"),
    (request(size_tensor(data=[1, 2, 3])), "wrong_shape"),
    (request(size_tensor(data=[[1, 2], [3]])), "wrong_shape"),
    (request(size_tensor(data=[[1, [2]]])), "wrong_type"),
    (request(size_tensor(data=[1, "2"])), "wrong_type"),
    (request(size_tensor(data=[1, 1e300])), "out_of_range"),
    (request(None, colour_tensor(datatype="INT64", data=[1])), "wrong_datatype"),
    (request(None, colour_tensor(data=[1])), "wrong_type"),
    (request(None, colour_tensor(data=[None])), "wrong_type"),
    (request(None, colour_tensor(data="red")), "wrong_shape"),
    (request(None, colour_tensor(data=[])), "wrong_shape"),
    (request(None, colour_tensor(data=[LONG])), "too_long"),
    (request(None, colour_tensor(shape=[1, 2])), "wrong_shape"),
]


def tensor(name: str, shape: list[int], datatype: str, data: object) -> dict[str, object]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def test_lengths_may_be_left_out_and_what_is_after_them_is_ignored():
    columns = tensor("row", [2, 2], "INT32", [[3, 29], [7, 0]])
    values = tensor("row.value", [2, 2], "FP32", [1, 2, 3, 4])
    batch = parse_request({"inputs": [columns, values]}, ROWS)
    assert batch["row"].tolist() == [[4, 30], [8, 1]] and batch["row.length"].tolist() == [2, 2]
    batch = parse_request({"inputs": [values, columns, tensor("row.length", [2], "INT64", [2, 1])]}, ROWS)
    assert batch["row"].tolist() == [[4, 30], [8, 0]] and batch["row.value"].tolist() == [[1, 2], [3, 0]]
    sound = [tensor("sound", [2, 3], "FP32", [0.5] * 6), tensor("sound.length", [2], "INT64", [1, 0])]
    assert parse_request({"inputs": sound}, SOUNDS)["sound"].tolist() == [[0.5], [0.0]]


def rows_request(columns: object = (1, 2), *, size: int = 2, length: object = None) -> dict[str, object]:
    tensors = [tensor("row", [1, 2], "INT64", list(columns)), tensor("row.value", [1, size], "FP32", [1] * size)]
    return {"inputs": tensors + ([tensor("row.length", [1], "INT64", [length])] if length is not None else [])}


BAD_RAGGED_REQUESTS = [
    (TEXTS, {"inputs": [tensor("text", [1], "BYTES", [3])]}, "wrong_type"),
    (TEXTS, {"inputs": [tensor("text", [2], "BYTES", ["a"])]}, "wrong_shape"),
    (TEXTS, {"inputs": [tensor("text", [1, 3], "INT64", [2, 3, 4])]}, "wrong_shape"),
    (TEXTS, {"inputs": [tensor("text", [1], "BYTES", ["x" * 100_001])]}, "too_long"),
    (ROWS, rows_request((1, 30)), "out_of_range"),
    (ROWS, rows_request((-1, 2)), "out_of_range"),
    (ROWS, rows_request((1.5, 2)), "out_of_range"),
    (ROWS, rows_request((2, 2)), "duplicate_field"),
    (ROWS, rows_request((2, "2")), "wrong_type"),
    (ROWS, rows_request(size=3), "wrong_shape"),
    (ROWS, rows_request(length=3), "out_of_range"),
    (ROWS, rows_request(length=-1), "out_of_range"),
    (ROWS, rows_request(length=0.5), "out_of_range"),
    (ROWS, {"inputs": rows_request()["inputs"][:1]}, "missing_field"),
    (SOUNDS, {"inputs": [tensor("sound", [1, 2], "FP32", [0, 2])]}, "out_of_range"),
    (SOUNDS, {"inputs": [tensor("sound", [1, 10**9], "FP32", [0])]}, "wrong_shape"),
    (SOUNDS, {"inputs": [tensor("sound", [1, -1], "FP32", [0])]}, "wrong_shape"),
    (SOUNDS, {"inputs": [tensor("sound", [1], "FP32", [0])]}, "wrong_shape"),
    (
        SOUNDS,
        {"inputs": [tensor("sound", [1, 1], "FP32", [0]), tensor("sound.length", [2], "INT64", [1, 1])]},
        "wrong_shape",
    ),
]


@pytest.mark.parametrize(("signature", "body", "code"), BAD_RAGGED_REQUESTS)
def test_a_bad_request_for_texts_sounds_or_rows_is_refused(signature, body, code):
    with pytest.raises(InputError) as refused:
        parse_request(body, signature)
    assert (refused.value.code, refused.value.status) == (code, 422)


@pytest.mark.parametrize(("body", "code"), BAD_REQUESTS)
def test_a_bad_request_is_refused(body, code):
    with pytest.raises(InputError) as refused:
        parse_request(body, TABLE)
    assert (refused.value.code, refused.value.status) == (code, 422)


FIELDS = sorted({name for signature in SIGNATURES.values() for name in signature.features})
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["3", "inputs", "name", "shape", "datatype", "data", *FIELDS]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JSON_VALUES)
@settings(max_examples=300, deadline=None)
def test_any_json_is_parsed_or_refused(value):
    for signature in SIGNATURES.values():
        for parse in (parse_samples, parse_request):
            try:
                parse(value, signature)
            except InputError as error:
                json.dumps(error.body()).encode()
