"""Decodes and resamples WAV files, for data preparation and serving alike.

    RIFF size WAVE                 chunks follow, each: name, size, bytes, filled up to an even number
    "fmt " encoding channels rate bytes_per_second frame_bytes sample_bits [more]
    "data" the frames

Encodings: integers (1), IEEE floats (3), A-law (6), mu-law (7), and any of them behind WAVE_FORMAT_EXTENSIBLE (0xFFFE),
which has the encoding in its last field.
"""

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int16]

MOST_RATIO = 100_000  # of two sample rates: a filter for it has twenty times as many numbers
_INTEGERS, _FLOATS, _A_LAW, _MU_LAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_WIDTHS = {_INTEGERS: (1, 2, 3, 4), _FLOATS: (4, 8), _A_LAW: (1,), _MU_LAW: (1,)}
_UNKNOWN_LENGTH = 0x7FFFF000  # sox writes it, ffmpeg 0xFFFFFFFF, where they could not go back to the beginning
_HALF_FILTER = 10  # scipy's filter reaches over so many of the slower rate's samples, to both sides


class SoundError(ValueError):
    """The bytes are no sound that is read; the text says what they are instead."""


def decode_wav(data: bytes) -> tuple[Samples, int]:
    """Return the samples of a WAV file, [T] int16, the mean of its channels, and its sample rate.

    Of integers of more than 16 bits the highest 16 count; floats count from -1 to 1, what is beyond is cut. A length
    that the writer could not know, because it wrote into a pipe, means all that is there.

    Raises:
        SoundError: if it is no WAV file of a known encoding, or does not hold all of what it says it does.
    """
    form, frames = _chunks(data)
    encoding, channels, rate, width = _form(form)
    if len(frames) % (channels * width):
        raise SoundError(f"{len(frames)} bytes, no whole number of samples: the file is cut off")
    with np.errstate(invalid="ignore", over="ignore"):
        return _mono(_decoded(frames, encoding, width).reshape(-1, channels)), rate


def resample(samples: Samples, rate: int, to: int, *, most: int | None = None) -> Samples:
    """Return a sound at another sample rate, by scipy's polyphase filter, with ``most`` samples at most.

    The first samples are the same for every ``most``.

    Raises:
        SoundError: if the ratio of the rates is one of numbers that are too large.
    """
    if rate != to:
        up, down = to // math.gcd(rate, to), rate // math.gcd(rate, to)
        if max(up, down) > MOST_RATIO:
            raise SoundError(f"{rate} samples a second, which to {to} is {up} : {down}")
        from scipy.signal import resample_poly  # takes half a second, and most sounds need none

        if most is not None:  # a few bytes at a low rate must not become a gigabyte
            samples = samples[: -(-(most * down + _HALF_FILTER * max(up, down)) // up) + 1]
        samples = _rounded(resample_poly(samples.astype(np.float64), up, down))
    return samples if most is None else samples[:most]


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    """Return the bytes of the form and of the frames."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        if len(data) < 12:
            raise SoundError(f"{len(data)} bytes that end too early")
        raise SoundError(f"bytes that do not begin with RIFF and WAVE but with {data[:4]!r}")
    form = None
    for name, start, size in _walk(data):
        if name == b"fmt ":
            form = data[start : start + size]
        elif name == b"data":
            if form is None:
                raise SoundError("samples before the chunk that says what they are")
            if start + size > len(data) and size < _UNKNOWN_LENGTH:
                raise SoundError(f"{len(data) - start} of {size} bytes of samples: the file is cut off")
            return form, data[start : start + size]
    raise SoundError(f"{len(data)} bytes that end too early")


def _walk(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, first byte and size of each chunk."""
    start = 12
    while start + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, start)
        yield name, start + 8, size
        start += 8 + size + size % 2


def _form(form: bytes) -> tuple[int, int, int, int]:
    """Return encoding, channels, sample rate, and bytes of a sample."""
    if len(form) < 16:
        raise SoundError(f"{len(form)} bytes that say what the samples are, fewer than 16")
    encoding, channels, rate, _, frame_bytes, _ = struct.unpack_from("<HHIIHH", form)
    if encoding == _EXTENSIBLE and len(form) >= 26:
        (encoding,) = struct.unpack_from("<H", form, 24)
    if encoding not in _WIDTHS:
        raise SoundError(f"samples of encoding {encoding:#06x}")
    if not channels or not 0 < rate <= 2**20 or frame_bytes % channels:
        raise SoundError(f"{channels} channels of {rate} samples a second in {frame_bytes} bytes")
    width = frame_bytes // channels
    if width not in _WIDTHS[encoding]:
        raise SoundError(f"samples of {8 * width} bits")
    return encoding, channels, rate, width


def _decoded(frames: bytes, encoding: int, width: int) -> npt.NDArray[Any]:
    """Return every sample as int16, or of floats as float64 on the scale of int16."""
    if encoding == _FLOATS:
        floats = np.frombuffer(frames, f"<f{width}").astype(np.float64)
        if not np.isfinite(floats).all():
            raise SoundError("samples that are NaN or infinite")
        return floats * 2**15
    found = np.frombuffer(frames, np.uint8)
    if encoding == _A_LAW:
        return _a_law(found)
    if encoding == _MU_LAW:
        return _mu_law(found)
    if width == 1:  # and only they are unsigned
        return (found.astype(np.int16) - 128) * 256
    return np.ascontiguousarray(found.reshape(-1, width)[:, -2:]).view("<i2")[:, 0]


def _mono(samples_TC: npt.NDArray[Any]) -> Samples:
    if samples_TC.dtype == np.int16 and samples_TC.shape[1] == 1:
        return samples_TC[:, 0]
    return _rounded(samples_TC.mean(1))


def _rounded(samples: npt.NDArray[np.float64]) -> Samples:
    return np.rint(np.clip(samples, -(2**15), 2**15 - 1)).astype(np.int16)


def _mu_law(bytes_T: npt.NDArray[np.uint8]) -> Samples:
    """Expand samples of ITU-T G.711, mu-law."""
    code = ~bytes_T
    exponent, mantissa = (code >> 4) & 7, (code & 15).astype(np.int32)
    value = ((mantissa << 3) + 132 << exponent.astype(np.int32)) - 132
    return np.where(code & 128, -value, value).astype(np.int16)


def _a_law(bytes_T: npt.NDArray[np.uint8]) -> Samples:
    """Expand samples of ITU-T G.711, A-law."""
    code = bytes_T ^ 0x55
    exponent, mantissa = ((code >> 4) & 7).astype(np.int32), (code & 15).astype(np.int32)
    value = np.where(exponent > 0, (mantissa * 16 + 264) << np.maximum(exponent - 1, 0), mantissa * 16 + 8)
    return np.where(code & 128, value, -value).astype(np.int16)
