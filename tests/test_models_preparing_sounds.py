"""WAV files as programs write them, decoded to their values by training and serving alike."""

import io
import struct
import wave

import numpy as np
import pytest

from models.preparing.sounds import SoundError, decode_wav, resample

SAMPLES = np.array([-(2**15), -1, 0, 1, 256, 2**15 - 1])


def wav(frames: bytes, *, encoding: int = 1, bits: int = 16, channels: int = 1, rate: int = 8000) -> bytes:
    """A WAV file, byte by byte."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", encoding, channels, rate, rate * block, block, bits)
    return riff(form, frames)


def riff(form: bytes, frames: bytes, *, size: int | None = None, before: bytes = b"") -> bytes:
    size = len(frames) if size is None else size
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + before + b"data" + struct.pack("<I", size) + frames
    return b"RIFF" + struct.pack("<I", min(len(body), 2**32 - 1)) + body


@pytest.mark.parametrize(
    ("bits", "frames", "expected"),
    [
        (8, bytes([0, 127, 128, 129, 255]), [-(2**15), -256, 0, 256, 127 * 256]),
        (16, SAMPLES.astype("<i2").tobytes(), SAMPLES.tolist()),
        (24, b"".join(int(s * 256 + 7).to_bytes(3, "little", signed=True) for s in SAMPLES), SAMPLES.tolist()),
        (32, (SAMPLES.astype(np.int64) * 2**16 + 999).astype("<i4").tobytes(), SAMPLES.tolist()),
    ],
)
def test_integers_of_every_width_become_16_bits(bits: int, frames: bytes, expected: list[int]) -> None:
    samples, rate = decode_wav(wav(frames, bits=bits, rate=11025))
    assert (samples.tolist(), samples.dtype, rate) == (expected, np.int16, 11025)


@pytest.mark.parametrize("bits", [32, 64])
def test_floats_are_scaled_and_cut(bits: int) -> None:
    frames = np.array([0.0, 0.5, -1.0, 2.0, -7.0], f"<f{bits // 8}").tobytes()
    assert decode_wav(wav(frames, encoding=3, bits=bits))[0].tolist() == [0, 2**14, -(2**15), 2**15 - 1, -(2**15)]


@pytest.mark.parametrize(("encoding", "bits", "dtype", "half"), [(1, 16, "<i2", 2**14), (3, 32, "<f4", 0.5)])
def test_the_extensible_form_says_in_its_last_field_what_it_holds(
    encoding: int, bits: int, dtype: str, half: float
) -> None:
    width = bits // 8
    form = struct.pack("<HHIIHHHHI", 0xFFFE, 2, 48000, 96000 * width, 2 * width, bits, 22, bits, 3)
    form += struct.pack("<H", encoding) + b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
    samples, rate = decode_wav(riff(form, np.array([half, half, 0, half], dtype).tobytes()))
    assert (samples.tolist(), rate) == ([2**14, 2**13], 48000)


@pytest.mark.parametrize(("encoding", "codes", "expected"), [
    (7, [0x00, 0x7F, 0xFF, 0x80, 0x90], [-32124, 0, 0, 32124, 15996]),
    (6, [0x55, 0xD5, 0x2A, 0xAA, 0x80], [-8, 8, -32256, 32256, 5504]),
])  # fmt: skip
def test_telephone_sounds_are_expanded_as_g711_says(encoding: int, codes: list[int], expected: list[int]) -> None:
    assert decode_wav(wav(bytes(codes), encoding=encoding, bits=8))[0].tolist() == expected


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF])
def test_a_length_that_nobody_knew_means_to_the_end(size: int) -> None:
    form = wav(b"")[20:36]
    notes = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # an odd chunk is filled up
    assert (
        decode_wav(riff(form, SAMPLES.astype("<i2").tobytes(), size=size, before=notes))[0].tolist() == SAMPLES.tolist()
    )


def test_channels_are_mixed_down_to_their_mean() -> None:
    frames = np.array([[100, 300], [-32768, -32768], [32767, -32768]], "<i2").tobytes()
    assert decode_wav(wav(frames, channels=2))[0].tolist() == [200, -32768, 0]


def test_what_python_writes_is_read() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(SAMPLES.astype("<i2").tobytes())
    samples, rate = decode_wav(file.getvalue() + b"junk behind it")
    assert (samples.tolist(), rate) == (SAMPLES.tolist(), 16000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes that end too early"),
        (b"ID3 and more of it", "do not begin with RIFF and WAVE but with b'ID3 '"),
        (wav(b"\0" * 40)[:-10], "30 of 40 bytes of samples: the file is cut off"),
        (wav(b"\0" * 41), "41 bytes, no whole number of samples"),
        (wav(b"", encoding=2), "samples of encoding 0x0002"),
        (wav(b"", bits=40), "samples of 40 bits"),
        (wav(b"", encoding=3, bits=16), "samples of 16 bits"),
        (wav(b"", channels=0), "0 channels of 8000 samples a second"),
        (wav(b"", rate=0), "1 channels of 0 samples a second"),
        (riff(b"\1\0", b""), "2 bytes that say what the samples are, fewer than 16"),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "samples before the chunk that says what they are"),
        (wav(np.array([np.nan], "<f4").tobytes(), encoding=3, bits=32), "NaN or infinite"),
    ],
)
def test_what_is_no_sound_is_said_to_be_what_it_is(data: bytes, message: str) -> None:
    with pytest.raises(SoundError, match=message):
        decode_wav(data)


def test_a_tone_keeps_its_pitch_and_loudness_at_another_rate() -> None:
    for rate, to in ((44_100, 16_000), (8000, 16_000), (48_000, 8000)):
        tone = np.rint(8000 * np.sin(np.arange(rate // 2) * (2 * np.pi * 440 / rate))).astype(np.int16)
        found = resample(tone, rate, to)
        assert (len(found), found.dtype) == (to // 2, np.int16)
        expected = 8000 * np.sin(np.arange(to // 2) * (2 * np.pi * 440 / to))
        assert np.abs(found - expected)[50:-50].max() < 30


def test_the_first_samples_are_the_same_however_many_are_asked_for() -> None:
    noise = np.random.default_rng(0).integers(-20_000, 20_000, 5000).astype(np.int16)
    for rate, to in ((44_100, 16_000), (8000, 16_000), (22_050, 8000), (8000, 8000)):
        whole = resample(noise, rate, to)
        for most in (1, 7, 500):
            assert resample(noise, rate, to, most=most).tolist() == whole[:most].tolist()


def test_a_few_bytes_do_not_become_a_gigabyte() -> None:
    assert len(resample(np.ones(2**22, np.int16), 1, 16_000, most=1000)) == 1000
    with pytest.raises(SoundError, match="1000003 samples a second, which to 16000 is 16000 : 1000003"):
        resample(np.ones(3, np.int16), 1_000_003, 16_000)
