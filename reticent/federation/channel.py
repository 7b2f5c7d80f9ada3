"""How the coordinator reaches the sites: all that its rounds know of transport."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

Answer = Callable[[bytes], bytes]


class Failure(NamedTuple):
    """Why there is no answer. Never the text of an exception: it could hold that of a record."""

    reason: str


class Channel(Protocol):
    """Sites by name, which answer bytes with bytes."""

    def sites(self) -> list[str]:
        """Names of the sites that can be reached now, sorted."""
        ...

    def ask(self, requests: Mapping[str, bytes], deadline: float) -> Iterator[tuple[str, bytes | Failure]]:
        """Each site's answer in the order of the requests, or its failure, at the latest after ``deadline`` seconds.

        An answer that comes later is thrown away.
        """
        ...


class Direct:
    """Sites in this process, asked one after another."""

    def __init__(self, sites: Mapping[str, Answer]) -> None:
        self._sites = dict(sites)

    def sites(self) -> list[str]:
        """All of them."""
        return sorted(self._sites)

    def ask(self, requests: Mapping[str, bytes], deadline: float) -> Iterator[tuple[str, bytes | Failure]]:
        """Answers one after another; one that raises fails alone. Nothing here can end a late answer."""
        for name, request in requests.items():
            try:
                yield name, self._sites[name](request)
            except Exception as error:  # of any kind, as at a site far away
                yield name, Failure(type(error).__name__)
