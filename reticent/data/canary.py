"""Invented secrets and records, some of them planted in the training data, so that leaks can be measured.

Two roles, never to be mixed in one statistic. A `secret` (Carlini et al., The Secret Sharer, USENIX Security 2019) is
one of a pair: a fair coin plants one of them, 1, 10 or 100 times, its twin is held out, and both can be ranked among
all fills. It shows what repetition leaks and says nothing on a promise made to single records. A `member` has its own
coin and is planted once or not at all: the independent bits that a one-run audit needs (Steinke, Nasr and Jagielski,
2023, section 3). Each canary is one unit of privacy, whatever its copies.

Families differ in their texts, and each is reported by itself. Coins, levels and texts are drawn from separate
streams, so what a canary says is independent of whether it is planted. What is held out is only ever scored: it must
not choose a checkpoint, a threshold or a setting.

Not invented are the texts of `high-temperature`: they come from the base model, which may recite what it was itself
trained on.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from reticent.data.clinic import NoteWriter
from reticent.data.record import Record
from reticent.errors import DataError

Family = Literal["fake-patient", "random-digits", "rare-suffix", "high-temperature", "new-token"]
FAMILIES: tuple[Family, ...] = get_args(Family)
SELF_AUDIT: tuple[Family, ...] = ("new-token",)  # nobody without the tokenizer could plant these: no outside attack
MOST_OF_UNITS = 0.02  # more members than this share of the units, and they distort what they measure
TEMPERATURES = (0.8, 1.2)  # of "high-temperature": below, the texts are too likely; above, they are noise
FEWEST_WORDS = 100  # a suffix of words from a smaller vocabulary is not rare


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One candidate. ``copies`` is how often it is planted: 0 if ``planted`` is False.

    ``pair`` and ``space``, the number of possible completions, are given for secrets only. Both of a pair can be held
    out: its number of copies is 0, and it is a control. ``seed`` is what all canaries were made from.

    Raises:
        DataError: A member with copies or a pair, a secret without, or a canary that is not a unit of its own: the
            audit would be about something else.
    """

    id: str
    family: Family
    role: Literal["secret", "member"]
    pair: int | None
    planted: bool
    copies: int
    record: Record
    space: int | None
    seed: int

    def __post_init__(self) -> None:
        wrong = None
        if self.copies < 0 or self.planted != (self.copies > 0):
            wrong = f"planted = {self.planted} with {self.copies} copies"
        elif self.record.owner != self.id or self.record.id != self.id:
            wrong = "its record has another owner or id, so it is not a unit of its own"
        elif self.role == "member" and self.copies > 1:
            wrong = f"{self.copies} copies of a member; an epsilon per unit needs exactly one"
        elif {self.pair is None, self.space is None} != {self.role == "member"}:
            wrong = f"a {self.role} with pair {self.pair} and space {self.space}; secrets have both, members neither"
        if wrong:
            raise DataError(f"canary {self.id}: {wrong}; make the canaries again with `reticent prepare`")


@dataclass(frozen=True, kw_only=True)
class Material:
    """What some families are made from.

    ``prefixes``: phrases or texts that a "rare-suffix" or "new-token" canary starts with, never text of a real person;
    by default notes of invented patients. ``words`` and ``suffix_words``: the vocabulary of a rare suffix and its
    length; by default common English words. ``sample(count, seed)``: that many texts of the base model at a temperature
    in `TEMPERATURES`, as answers to ``prompt``. ``tokens``: texts of one token that texts hardly ever use (see
    `unused_tokens`).
    """

    prefixes: Sequence[str] | None = None
    words: Sequence[str] | None = None
    suffix_words: int = 8
    sample: Callable[[int, int], Sequence[str]] | None = None
    prompt: str = ""
    tokens: Sequence[str] = ()


def make(
    *,
    pairs: int,
    copies: int | Sequence[int],
    candidates: int | Mapping[Family, int],
    digits: int,
    seed: int,
    material: Material | None = None,
) -> list[Canary]:
    """All canaries, planted or not. No name, no new token and no text comes twice.

    Args:
        pairs: of secrets: names with a random code of ``digits`` digits.
        copies: how often one of a pair is planted. Several levels (0, 1, 10, 100) are dealt evenly over the pairs in
            random order; 0 holds out both.
        candidates: members of each family; a number alone is of "fake-patient".
        material: what families other than "fake-patient" and "random-digits" are made from.

    Raises:
        DataError: Fewer pairs than levels, or a family that is unknown or without its material.
    """
    levels = _levels(copies, pairs, np.random.default_rng([seed, 23]))
    asked = {"fake-patient": candidates} if isinstance(candidates, int) else dict(candidates)
    if not set(asked) <= set(FAMILIES):
        raise DataError(f"families of canaries are {', '.join(FAMILIES)}; got {', '.join(asked)}")
    coins = np.random.default_rng([seed, 20])
    texts = _Texts(seed, digits, material or Material())
    secrets = texts.of("random-digits", 2 * pairs)
    canaries = []
    for pair, level in enumerate(levels):
        chosen = int(coins.integers(2))
        canaries += [
            Canary(
                **_named("random-digits", "secret", f"{pair + 1:04d}-{'ab'[side]}", *secrets[2 * pair + side]),
                pair=pair,
                planted=side == chosen and level > 0,
                copies=level if side == chosen else 0,
                space=10**digits,
                seed=seed,
            )
            for side in range(2)
        ]
    for family in FAMILIES:  # a fixed order: members of a later family do not change those of an earlier one
        for number, text in enumerate(texts.of(family, asked.get(family, 0))):
            planted = bool(coins.integers(2))
            canaries.append(
                Canary(
                    **_named(family, "member", f"{number + 1:04d}", *text),
                    pair=None,
                    planted=planted,
                    copies=int(planted),
                    space=None,
                    seed=seed,
                )
            )
    _refuse_repeats(canaries)
    return canaries


def alternatives(canary: Canary) -> list[str]:
    """All completions that a secret could have had, its own among them, in ascending order."""
    assert canary.space is not None, f"{canary.id} is no secret"
    digits = len(canary.record.completion)
    return [f"{fill:0{digits}d}" for fill in range(canary.space)]


def planted_records(canaries: Sequence[Canary]) -> list[tuple[Record, str]]:
    """What joins the training records: each copy of each planted canary, with its unit of privacy.

    Copies differ in their ids only. All belong in training, none in what is held out.
    """
    return [
        (replace(canary.record, id=f"{canary.id}#{copy + 1}"), canary.record.owner)
        for canary in canaries
        for copy in range(canary.copies)
    ]


def member_share(canaries: Sequence[Canary], units: int) -> float:
    """Members, planted or not, per unit of the training data; `MOST_OF_UNITS` is the most to recommend."""
    return sum(canary.role == "member" for canary in canaries) / max(units, 1)


def unused_tokens(texts: Iterable[str], encode: Callable[[str], Sequence[int]], used: Collection[int]) -> list[str]:
    """The texts that are one token each and whose token is not in ``used``.

    ``encode`` gives the ids of a text as they stand at the start of a completion.
    """
    return [text for text in texts if len(ids := encode(text)) == 1 and ids[0] not in used]


def counts(canaries: Sequence[Canary]) -> dict[str, dict[str, Any]]:
    """For the manifest, by family and role: planted and held-out canaries, and how many were planted how often."""
    found: dict[str, dict[str, Any]] = {}
    for family, role in dict.fromkeys((canary.family, canary.role) for canary in canaries):
        ours = [canary for canary in canaries if (canary.family, canary.role) == (family, role)]
        planted = Counter(canary.copies for canary in ours if canary.planted)
        found[f"{family} {role}s"] = {
            "planted": planted.total(),
            "held_out": len(ours) - planted.total(),
            "planted_by_copies": {str(copies): planted[copies] for copies in sorted(planted)},
            "records": sum(canary.copies for canary in ours),
        }
    return found


def commitment(canaries: Sequence[Canary]) -> str:
    """SHA-256 of all canaries, coins and seed, in hexadecimal: published before training, it binds the audit.

    It binds but does not hide: who knows the seed can make the canaries again.
    """
    return hashlib.sha256(to_json(canaries).encode()).hexdigest()


def commitments(canaries: Sequence[Canary]) -> dict[str, str]:
    """`commitment` of each family by itself, so that one can be opened while the others stay sealed."""
    return {
        family: commitment([canary for canary in canaries if canary.family == family])
        for family in dict.fromkeys(canary.family for canary in canaries)
    }


def to_json(canaries: Sequence[Canary]) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII."""
    return json.dumps([asdict(canary) for canary in canaries], sort_keys=True, separators=(",", ":"))


def from_json(text: str) -> list[Canary]:
    """The inverse of `to_json`.

    Raises:
        DataError: Two canaries share a unit or a text, or one breaks the rules of `Canary`.
    """
    canaries = [
        Canary(**{**values, "record": Record(**{**values["record"], "options": tuple(values["record"]["options"])})})
        for values in json.loads(text)
    ]
    _refuse_repeats(canaries)
    return canaries


class _Texts:
    """Prompts and completions of each family, from streams that know nothing of coins."""

    def __init__(self, seed: int, digits: int, material: Material) -> None:
        self._seed, self._digits, self._material = seed, digits, material
        self._codes = np.random.default_rng([seed, 21])
        self._writer = NoteWriter([seed, 22])

    def of(self, family: Family, count: int) -> list[tuple[str, str]]:
        """The next ``count`` texts."""
        if not count:
            return []
        draw = {
            "fake-patient": self._fake_patient,
            "random-digits": self._random_digits,
            "rare-suffix": self._rare_suffix,
            "high-temperature": self._high_temperature,
            "new-token": self._new_token,
        }[family]
        return draw(count)

    def _fake_patient(self, count: int) -> list[tuple[str, str]]:
        return [self._writer.note(self._writer.patient()) for _ in range(count)]

    def _random_digits(self, count: int) -> list[tuple[str, str]]:
        size = self._digits
        return [
            (
                f"What is the archive code of patient {self._writer.name()}?",
                f"{self._codes.integers(10**size):0{size}d}",
            )
            for _ in range(count)
        ]

    def _rare_suffix(self, count: int) -> list[tuple[str, str]]:
        """What comes first is natural, what follows has a low probability word by word."""
        words = sorted(set(common_words() if self._material.words is None else self._material.words))
        if len(words) < FEWEST_WORDS:
            raise DataError(
                f"rare-suffix canaries draw from at least {FEWEST_WORDS} different words, got {len(words)}; give more"
            )
        rng = np.random.default_rng([self._seed, 24])
        return [
            (
                prompt,
                f"{start} {' '.join(words[i] for i in rng.integers(len(words), size=self._material.suffix_words))}",
            )
            for prompt, start in self._prefixes(count, rng)
        ]

    def _high_temperature(self, count: int) -> list[tuple[str, str]]:
        if self._material.sample is None:
            raise DataError(
                "high-temperature canaries are sampled from the base model, and none was given; "
                "leave the family out of data.canaries"
            )
        seed = int(np.random.default_rng([self._seed, 25]).integers(2**31))
        texts = self._material.sample(count, seed)
        usable = len({text for text in texts if text.strip()})
        if usable < count or len(texts) != count:
            raise DataError(
                f"the base model gave {usable} different texts for {count} high-temperature canaries; sample longer "
                f"texts, at a temperature of up to {TEMPERATURES[1]}, or ask for fewer"
            )
        return [(self._material.prompt, text) for text in texts]

    def _new_token(self, count: int) -> list[tuple[str, str]]:
        """A natural start as prompt, and one token that hardly any text uses as completion.

        After the new-token canaries of Panda et al. 2025 (Privacy auditing of large language models).
        """
        tokens = sorted(set(self._material.tokens))
        if len(tokens) < count:
            raise DataError(
                f"{count} new-token canaries need as many tokens that texts hardly use, and the tokenizer has "
                f"{len(tokens)}; ask for fewer"
            )
        rng = np.random.default_rng([self._seed, 26])
        drawn = rng.permutation(len(tokens))[:count]
        return [
            (f"{prompt} {start}".strip(), tokens[i])
            for i, (prompt, start) in zip(drawn, self._prefixes(count, rng), strict=True)
        ]

    def _prefixes(self, count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
        """A prompt and the first half, in words, of its natural completion; or one of the given phrases."""
        given = self._material.prefixes
        if given is None:
            notes = self._fake_patient(count)
            return [(prompt, " ".join(note.split()[: len(note.split()) // 2])) for prompt, note in notes]
        if not given:
            raise DataError("the list of prefixes for canaries is empty; give some, or none for invented notes")
        return [("", given[i]) for i in rng.integers(len(given), size=count)]


def common_words() -> list[str]:
    """About a thousand common English words."""
    from reticent.data.clinic import _faker

    return list(_faker(0).get_words_list())


def _levels(copies: int | Sequence[int], pairs: int, rng: np.random.Generator) -> list[int]:
    """How often one of each pair is planted."""
    levels = [copies] if isinstance(copies, int) else list(copies)
    if not levels or min(levels) < 0 or len(set(levels)) < len(levels) or max(levels) == 0 or 0 < pairs < len(levels):
        raise DataError(
            f"{pairs} pairs of secrets cannot be planted {levels} times: give different levels, one of them above 0, "
            "and at least a pair for each"
        )
    return [levels[i] for i in rng.permutation(np.arange(pairs) % len(levels))]


def _refuse_repeats(canaries: Sequence[Canary]) -> None:
    """Two canaries that are one unit, or say the same, have no coins of their own."""
    for what, values in (
        ("ids", [canary.id for canary in canaries]),
        ("texts", [(canary.record.prompt, canary.record.completion) for canary in canaries]),
    ):
        repeated = len(canaries) - len(set(values))
        if repeated:
            raise DataError(f"{repeated} of {len(canaries)} canaries repeat {what} of others; change data.seed")


def _named(
    family: Family, role: Literal["secret", "member"], number: str, prompt: str, completion: str
) -> dict[str, Any]:
    name = f"canary-{family}-{role}-{number}"
    record = Record(id=name, owner=name, prompt=prompt, completion=completion, origin=f"canary/{family}")
    return {"id": name, "family": family, "role": role, "record": record}
