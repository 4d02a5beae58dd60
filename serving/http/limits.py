"""How much of a request the gateway takes, and how long a client may take to send it."""

from typing import NamedTuple

MAX_HEADERS = 100  # browsers send about 20, each proxy on the way adds a few
MAX_HEADER_BYTES = 32 * 2**10  # with the request line; the most that nginx takes too
HEADERS_TIMEOUT_S = 10.0
BODY_LIMIT_BYTES = 16 * 2**20  # a phone's photo has 3 to 8 MB
BODY_TIMEOUT_S = 30.0  # for 16 MiB, 4.5 Mbit/s


class Refusal(NamedTuple):
    """What is answered in place of a request's answer."""

    status: int
    code: str
    message: str


HEADERS_TOO_LARGE = Refusal(
    431,
    "headers_too_large",
    f"the headers must be {MAX_HEADERS} or fewer, and {MAX_HEADER_BYTES} bytes or fewer with the request line, got "
    "more. Send fewer.",
)
HEADERS_TOO_SLOW = Refusal(
    408, "too_slow", f"the headers must arrive within {HEADERS_TIMEOUT_S:g} s, got a part of them. Send them at once."
)
BODY_TOO_SLOW = Refusal(
    408,
    "too_slow",
    f"the body must arrive within {BODY_TIMEOUT_S:g} s, got a part of it. Send fewer samples at a time.",
)
