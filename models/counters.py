"""Turns counters into keys for random numbers, so that a result depends on what it is for and never on when."""

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio


def counter_key(*counters: int) -> int:
    """Hash counters into a 64-bit key with splitmix64 (Steele et al. 2014), so that near counters give far keys."""
    state = 0
    for counter in counters:
        state = _mix(((state ^ (counter & _MASK)) + _GOLDEN) & _MASK)
    return state


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
