"""How many bytes travel, what that costs in time, and what sending only adapters saves."""

from collections.abc import Iterable
from typing import NamedTuple

_MEGABYTE = 2**20


class Transfer(NamedTuple):
    """Bytes of one site in one round: ``up`` from it to the coordinator, ``down`` to it."""

    round: int
    site: str
    up: int
    down: int


class RoundTraffic(NamedTuple):
    """Bytes of all sites in one round, and how many sites that were."""

    round: int
    sites: int
    up: int
    down: int


class Bytes(NamedTuple):
    """Bytes to the coordinator and from it."""

    up: int
    down: int


class Traffic:
    """Counts the bytes of messages. A resumed run begins with the ``transfers`` it had."""

    def __init__(self, transfers: Iterable[Transfer] = ()) -> None:
        self._bytes: dict[tuple[int, str], Bytes] = {}
        for transfer in transfers:
            self.add(*transfer)

    def add(self, round: int, site: str, up: int, down: int) -> None:
        """Counts messages of ``site`` in ``round``; several of one round add up."""
        assert up >= 0 and down >= 0, (up, down)
        before = self._bytes.get((round, site), Bytes(0, 0))
        self._bytes[round, site] = Bytes(before.up + up, before.down + down)

    def transfers(self) -> list[Transfer]:
        """Every site in every round, sorted by round and site."""
        return [Transfer(*key, *count) for key, count in sorted(self._bytes.items())]

    def per_round(self) -> list[RoundTraffic]:
        """Sums over the sites, sorted by round."""
        sums: dict[int, RoundTraffic] = {}
        for number, _, up, down in self.transfers():
            before = sums.get(number, RoundTraffic(number, 0, 0, 0))
            sums[number] = RoundTraffic(number, before.sites + 1, before.up + up, before.down + down)
        return list(sums.values())

    def total(self) -> Bytes:
        """Sums over all rounds and sites."""
        counts = self._bytes.values()
        return Bytes(sum(count.up for count in counts), sum(count.down for count in counts))


def projected_seconds(size: int, mbps: float) -> float:
    """Seconds that ``size`` bytes take on a line of ``mbps`` 10^6 bits a second, without delays and overheads."""
    assert mbps > 0, mbps
    return 8 * size / (mbps * 1e6)


def ratio_to_full(sent: int, parameters: int, *, transfers: int = 1, width: int = 4) -> float:
    """How many times ``sent`` bytes fit into ``transfers`` of a whole model of ``width`` bytes a parameter."""
    assert sent > 0, sent
    return transfers * parameters * width / sent


class CommunicationCosts(NamedTuple):
    """What a federated run sends, by arithmetic: of the whole model and of its trainable part.

    ``*_millions``: parameters; ``*_megabytes``: one upload, in 2^20 bytes; ``*_seconds``: one upload;
    ``*_total_megabytes``: all rounds, both ways; ``saving``: whole over trainable.
    """

    full_millions: float
    trainable_millions: float
    full_megabytes: float
    trainable_megabytes: float
    full_seconds: float
    trainable_seconds: float
    clients_per_round: int
    full_total_megabytes: float
    trainable_total_megabytes: float
    saving: float


def communication_costs(
    parameters: int, trainable: int, *, rounds: int, clients: int, fraction: float, mbps: float = 20
) -> CommunicationCosts:
    """Costs at 4 bytes a parameter; ``parameters`` has the trainable ones in it.

    This is the arithmetic of a known course on federated fine-tuning, kept as it is: a megabyte has 2^20 bytes, a
    megabit is an eighth of it, and a round takes the whole part of ``clients * fraction`` clients. `Traffic` counts the
    bytes that were sent; `projected_seconds` has megabits of 10^6.
    """
    assert 0 < trainable <= parameters and mbps > 0, (trainable, parameters, mbps)
    full, part = 4 * parameters / _MEGABYTE, 4 * trainable / _MEGABYTE
    chosen = int(clients * fraction)
    uploads = 2 * rounds * chosen
    return CommunicationCosts(
        full_millions=parameters / 1e6,
        trainable_millions=trainable / 1e6,
        full_megabytes=full,
        trainable_megabytes=part,
        full_seconds=full / (mbps / 8),
        trainable_seconds=part / (mbps / 8),
        clients_per_round=chosen,
        full_total_megabytes=uploads * full,
        trainable_total_megabytes=uploads * part,
        saving=parameters / trainable,
    )
