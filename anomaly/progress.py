"""How a long story says where it is, and is asked to end early.

It calls report(label, done, total, note), shown or not, and stop() where all it wrote is whole.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
Report = Callable[[str, int, int, str], None]     # label, done, total, note
Stop = Callable[[], bool]       # True: end here


class Stopped(Exception):
    """The story has ended early, as stop() asked; the same command goes on from there."""


def never() -> bool:
    """The stop that nobody asks for: the default. tools/cli.py has the one of SIGTERM."""
    return False


def silent(label: str, done: int, total: int, note: str) -> None:
    """A report that nobody sees: the default. tools/cli.py has the one with a bar."""


def each(items: Iterable[T], label: str, total: int, report: Report) -> Iterator[T]:
    """The items, each counted once it has been worked on."""
    report(label, 0, total, "")
    for done, item in enumerate(items, 1):
        yield item
        report(label, done, total, "")


def ending(report: Report, stop: Stop) -> Report:
    """The report, which raises Stopped once stop() says so: for where nothing is lost by it."""
    def reported(label: str, done: int, total: int, note: str) -> None:
        report(label, done, total, note)
        if stop():
            raise Stopped
    return reported
