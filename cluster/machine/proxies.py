"""Keeps what is for this machine off the proxies that the environment names for the network beyond it."""

import os

LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")  # in brackets too: urllib compares the host as the URL has it
VARIABLES = ("no_proxy", "NO_PROXY")  # of two that differ some libraries read the one and some the other


def spare_loopback() -> None:
    """Let no library of this process, and no process that it starts, ask a proxy for an address of this machine.

    A proxy elsewhere cannot reach it, and must not see what is asked of it. Everything that is told of proxies by the
    environment (boto3, requests, urllib, gRPC, Ray) is told by it of their exceptions too. What the person has excepted
    stays so. Calling it again changes nothing.
    """
    named = [name.strip() for variable in VARIABLES for name in os.environ.get(variable, "").split(",")]
    value = ",".join(dict.fromkeys(name for name in (*named, *LOOPBACK) if name))
    for variable in VARIABLES:
        if os.environ.get(variable) != value:
            os.environ[variable] = value
