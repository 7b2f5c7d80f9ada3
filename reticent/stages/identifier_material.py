"""What models are asked about identifiers: made once, from canaries and records, before any model is looked at."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from reticent.attacks import mail_prompts, pii
from reticent.attacks.pii import Identifier
from reticent.data import canary
from reticent.data.mail import ADDRESS
from reticent.data.record import Record
from reticent.data.spans import Span
from reticent.stages.attacking import Audited, Texts

if TYPE_CHECKING:
    from reticent.data.encode import Encoder
    from reticent.data.recognise import Recogniser
    from reticent.recipe import Identifiers

T = TypeVar("T")
U = TypeVar("U")

FEWEST = 10  # items, or candidates of one kind: with fewer, nothing is measured
SHOTS = 3  # pairs of name and address that a question shows first
STREAM = 40  # first of this attack's streams of chance
PLANTED = "Can a missing identifier be filled in?"
REAL = "Can a missing identifier of a real record be filled in?"


class Item(NamedTuple):
    """One identifier that stands once in a record, where it stands, and what it could have been."""

    record: Record
    span: Span
    candidates: list[str]

    @property
    def truth(self) -> str:
        """The identifier itself."""
        return self.record.completion[self.span.start : self.span.end]


class Mail(NamedTuple):
    """A prompt, (tokens,), and the address that it asks for."""

    prompt: np.ndarray
    address: str


class Mails(NamedTuple):
    """Prompts for the addresses of training records and of held-out ones."""

    items: list[Mail]
    controls: list[Mail]


class Material(NamedTuple):
    """What all models are asked.

    ``real``, ``outside``: mentions in training and in held-out records. ``secrets``: candidates of each. ``mails``: by
    kind of prompt, those with enough addresses.
    """

    encode: "Encoder"
    recogniser: "Recogniser"
    secrets: list[list[str]]
    unanswered: list[dict[str, str]]
    items: list[Item]
    controls: list[Item]
    real: Counter[Identifier]
    outside: Counter[Identifier]
    mails: dict[str, Mails]


class _Part(NamedTuple):
    """Records, and the identifiers in the completion of each; ``named``: pairs of name and address that it has."""

    texts: Texts
    spans: list[list[Span]]

    @property
    def completions(self) -> list[tuple[str, list[Span]]]:
        return [(record.completion, own) for record, own in zip(self.texts.records, self.spans, strict=True)]

    @property
    def named(self) -> list[list[mail_prompts.Known]]:
        return [mail_prompts.named_addresses(record.completion) for record in self.texts.records]


def settings(about: Audited) -> "Identifiers":
    """What was asked."""
    asked = about.recipe.audit.identifiers
    assert asked is not None
    return asked


def gather(about: Audited) -> Material:
    """Candidates for planted codes, identifiers of real records to guess, and prompts for addresses."""
    from reticent.data.encode import Encoder
    from reticent.data.recognise import build

    asked, data = settings(about), about.recipe.data
    encode = Encoder(
        about.tokenizer, template=data.template, train_on_prompt=False, max_tokens=2**20, long_records="cut"
    )
    rng = about.rng(STREAM)
    secrets = [
        pii.draw_candidates(canary.alternatives(secret), secret.record.completion, asked.candidates, rng)
        for secret in about.secrets
    ]
    recogniser, unanswered = build(asked.recognisers), []
    if not secrets:
        why = "fewer than two secrets were planted, or held out; raise data.canaries.pairs"
        unanswered.append({"question": PLANTED, "why": why})
    bare = Material(encode, recogniser, secrets, unanswered, [], [], Counter(), Counter(), {})
    if data.scrub is not None:
        why = "the training text was scrubbed (data.scrub): its names and numbers are not those of the records"
        unanswered.append({"question": REAL, "why": why})
        return bare
    trained, held_out = (
        _Part(texts, recogniser.find([record.completion for record in texts.records]))
        for texts in (about.trained, about.held_out)
    )
    pools = pii.pools([*trained.completions, *held_out.completions])
    items, controls = (
        _items(about, encode, part, pools, about.rng(STREAM + stream)) for part, stream in ((trained, 1), (held_out, 2))
    )
    if len(items) < FEWEST:
        why = (
            f"{len(items)} units of the training records looked at have an identifier that "
            f"{', '.join(asked.recognisers)} finds and that has {FEWEST} alternatives of its kind; {FEWEST} are needed"
        )
        unanswered.append({"question": REAL, "why": why})
        items = controls = []
    return bare._replace(
        real=_mentions(about, trained, recogniser),
        outside=_mentions(about, held_out, recogniser),
        mails=_mails(about, encode, trained, held_out),
        items=items,
        controls=controls if len(controls) >= FEWEST else [],
    )


def prompt_of(about: Audited, encode: "Encoder", record: Record, left: str) -> np.ndarray:
    """Tokens of the record up to the end of ``left``, the first part of its completion, as they were learned."""
    if not record.prompt:
        found = encode([("", left)]).tokens
        return found[0].ids[:-1] if found else np.zeros(0, dtype=np.int64)  # without the end of text
    (whole,) = encode([(record.prompt, record.completion)]).tokens
    head = whole.ids[: int(np.argmax(whole.trained))]
    return np.concatenate([head, np.array(about.tokenizer.encode(left, add_special_tokens=False), dtype=np.int64)])


def _mentions(about: Audited, part: _Part, recogniser: "Recogniser") -> Counter[Identifier]:
    """All that is learned, of prompts too if they are."""
    found = part.completions
    if about.recipe.data.train_on_prompt:
        prompts = [record.prompt for record in part.texts.records]
        found += zip(prompts, recogniser.find(prompts), strict=True)
    return Counter(one for text, own in found for one in pii.mentions(text, own))


def _one_of_each(
    texts: Texts,
    found: Sequence[Sequence[T]],
    make: Callable[[Record, T], U | None],
    limit: int,
    rng: np.random.Generator,
) -> list[U]:
    """What is made of the first finding of each unit that will do, so that they are independent; in random order."""
    of_unit: dict[str, list[tuple[Record, T]]] = {}
    for record, unit, own in zip(texts.records, texts.units, found, strict=True):
        of_unit.setdefault(unit, []).extend((record, one) for one in own)
    units = list(of_unit.values())
    made: list[U] = []
    for number in rng.permutation(len(units)):
        if len(made) == limit:
            break
        for choice in rng.permutation(len(units[number])):
            if (one := make(*units[number][choice])) is not None:
                made.append(one)
                break
    return made


def _items(
    about: Audited, encode: "Encoder", part: _Part, pools: dict[str, list[str]], rng: np.random.Generator
) -> list[Item]:
    """Identifiers to guess, one of each unit."""
    asked = settings(about)

    def make(record: Record, span: Span) -> Item | None:
        candidates = pii.candidates(
            record.completion, span, pools[span.entity], asked.candidates, rng, beside=record.prompt
        )
        item = Item(record, span, candidates)
        return item if len(candidates) >= min(FEWEST, asked.candidates) and _learned(about, encode, item) else None

    return _one_of_each(part.texts, part.spans, make, asked.items, rng)


def _learned(about: Audited, encode: "Encoder", item: Item) -> bool:
    """Whether tokens stand before the identifier, and it was not cut off."""
    before, behind = (
        prompt_of(about, encode, item.record, item.record.completion[:end]) for end in (item.span.start, item.span.end)
    )
    return len(before) > 0 and len(behind) <= about.recipe.data.max_tokens


def _mails(about: Audited, encode: "Encoder", trained: _Part, held_out: _Part) -> dict[str, Mails]:
    """Prompts for mail addresses: what stands before one, and questions after some known pairs of held-out records.

    One address of each unit.
    """
    rng, limit = about.rng(STREAM + 6), settings(about).items
    shown = _one_of_each(held_out.texts, held_out.named, lambda _, pair: pair, SHOTS, rng)
    both, context = (trained, held_out), partial(_context, about, encode)
    found = {"context": [_one_of_each(part.texts, part.spans, context, limit, rng) for part in both]}
    if len(shown) == SHOTS:
        found["names"] = [_one_of_each(part.texts, part.named, _question(encode, shown), limit, rng) for part in both]
    return {kind: Mails(*mails) for kind, mails in found.items() if len(mails[0]) >= FEWEST}


def _context(about: Audited, encode: "Encoder", record: Record, span: Span) -> Mail | None:
    """An address, asked for by the tokens before it, in which it does not stand."""
    left, address = record.completion[: span.start], record.completion[span.start : span.end]
    # A hull of several spans may be no single address.
    if span.entity != "EMAIL_ADDRESS" or not ADDRESS.fullmatch(address):
        return None
    prompt = prompt_of(about, encode, record, left.rstrip())[-mail_prompts.CONTEXT :]
    fresh = len(prompt) and address.casefold() not in f"{record.prompt} {left}".casefold()
    return Mail(prompt, address) if fresh else None


def _question(
    encode: "Encoder", shown: Sequence[mail_prompts.Known]
) -> Callable[[Record, mail_prompts.Known], Mail | None]:
    """Asks for an address by the name, if neither was shown; the templates in turn."""
    templates = cycle(mail_prompts.TEMPLATES)
    taken = {part.casefold() for one in shown for part in one}

    def ask(_: Record, one: mail_prompts.Known) -> Mail | None:
        if {part.casefold() for part in one} & taken:
            return None
        question = mail_prompts.few_shot_prompt(next(templates), one.name, shown)
        return Mail(encode([("", question)]).tokens[0].ids[:-1], one.address)

    return ask
