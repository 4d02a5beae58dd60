"""An iterator whose items are made ahead of time by a thread, so that the consumer waits as little as possible."""

import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class Ahead(Iterator[T], Generic[T]):
    """Runs a generator in a thread that stays at most `depth` items ahead.

    An error in the generator is raised by `next`, after the items made before it. The thread ends with the
    generator, on `close`, at the end of a `with` block, or when the iterator is garbage-collected.
    """

    def __init__(self, items: Generator[T], *, depth: int, on_wait: Callable[[float], None]) -> None:
        self._channel = _Channel(depth)
        self._on_wait = on_wait
        # The thread must not know this object, or it would never be collected.
        self._thread = threading.Thread(target=_produce, args=(items, self._channel), name="batches-ahead", daemon=True)
        weakref.finalize(self, self._channel.close)
        self._thread.start()

    def __next__(self) -> T:
        if self._channel.closed:
            raise StopIteration
        started = time.perf_counter()
        message = self._channel.messages.get()
        self._on_wait(time.perf_counter() - started)
        self._channel.slots.release()
        if isinstance(message, _End):
            self._channel.close()
            if message.error is not None:
                raise message.error
            raise StopIteration
        item: T = message
        return item

    def close(self) -> None:
        """Stop the thread and wait for its end; closing twice is fine."""
        self._channel.close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class _End:
    error: BaseException | None


class _Channel:
    """A bounded queue that either end can close without polling."""

    def __init__(self, depth: int) -> None:
        self.messages: SimpleQueue[Any] = SimpleQueue()
        self.slots = threading.Semaphore(depth)
        self.closed = False

    def send(self, item: Any) -> bool:
        """Wait for room, and return False instead of sending when the consumer has gone."""
        self.slots.acquire()
        if not self.closed:
            self.messages.put(item)
        return not self.closed

    def close(self) -> None:
        self.closed = True
        self.slots.release()


def _produce(items: Generator[Any], channel: _Channel) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            if not channel.send(item):
                break
    except BaseException as raised:  # handed to the consumer, who raises it
        error = raised
    items.close()
    channel.messages.put(_End(error))
