# ruff: noqa: E501 (a pattern is read as one line)
"""Names of people, from the text alone: what a title or a label announces, and what a document repeats."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from reticent.data.spans import Span

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BLOCKS = ((0x41, 0x5B), (0xC0, 0x250), (0x370, 0x590), (0x1E00, 0x2000))  # Latin, Greek, Cyrillic, Armenian
UPPER = "[" + "".join(chr(c) for low, high in _BLOCKS for c in range(low, high) if chr(c).isupper()) + "]"
JOINT = r"['’‘`‑‐-]"  # what stands inside a name: O'Brien, Abd‑el
INITIALS = rf"(?:{UPPER}[a-z]?\.[ ‑-]?){{1,4}}"
WORD = rf"{UPPER}(?:[^\W\d_]|[\u0300-\u036f]|{JOINT}(?!s\b)(?=\w)){{0,40}}"
PARTICLE = r"(?:(?:de|da|do|dos|das|di|del|della|van|von|der|den|ter|ten|la|le|du|des|bin|bint|ibn|al|el|zu|zur|af|av|y|e|oglu|ogly|qizi|kizi)\b|d['’]|al[-‑]|el[-‑])"
PART = rf"(?:{WORD}\.?|{INITIALS})"
NAME = rf"(?:(?:{PARTICLE}\s?){{0,3}}(?:{INITIALS}\s?)?{WORD}(?:[ \u00a0]+(?:{PARTICLE}[ \u00a0]?){{0,3}}(?:{INITIALS}|{WORD})){{0,4}}(?:[ \u00a0](?:oglu|ogly|qizi|kizi)\b)?|{INITIALS}(?!\w))"

TITLE = (
    r"(?:Drs?|Mr|Mrs|Ms|Miss|Mx|Messrs|Prof(?:essor)?|Sir|Dame|Lord|Lady|Rev(?:erend)?|Fr|Father|Sister|Brother|Rabbi"
    r"|Imam|Nurse|Judge|Justice|Capt(?:ain)?|Lt|Lieutenant|Sgt|Sergeant|Col(?:onel)?|Maj(?:or)?|Gen(?:eral)?|Officer"
    r"|Inspector|Detective|Constable|Commissioner|President|Senator|Madam|Mme|Mlle|Herr|Frau|Señor|Señora)"
)
LABEL = (
    r"(?:(?:patient(?:['’]s)?|full|first|last|family|given|maiden|middle)?\s*name|patient|pt|client|resident|surname"
    r"|doctor|physician|attending|provider|clinician|surgeon|consultant|nurse|referr(?:ed by|ing (?:physician|doctor))"
    r"|(?:electronically\s+|digitally\s+)?signed(?:\s+by)?|seen\s+by|dictated\s+by|transcribed\s+by|reviewed\s+by"
    r"|examined\s+by|written\s+by|prepared\s+by|admitted\s+by|operated\s+by|accompanied\s+by|pcp|cc|dear|yours|re|attn|attention|from|to|next of kin"
    r"|nok|emergency contact|guardian|mother|father|wife|husband|son|daughter|brother|sister|spouse|partner|carer"
    r"|caregiver|author|called|named|(?:sincerely|faithfully|truly|regards|wishes),?)"
)
STRICT = r"(?:from|to|re|cc|mother|father|wife|husband|son|daughter|brother|sister|spouse|partner|author|nurse|patient|client|resident|doctor|provider|pt)"
SUBJECT = r"(?:notes?|visit|letter|report|summary|chart|record|results?|referral|consult(?:ation)?|history|file|case)"
DEGREE = (
    r"(?:M\.?D|D\.?O|Ph\.?D|R\.?N|N\.?P|P\.?A(?:-C)?|D\.?D\.?S|M\.?B\.?B\.?S|FRCP|FRCS|MRCP|LPN|CRNA|LCSW|Esq|Jr|Sr)\b"
)
PEOPLE = (
    (
        re.compile(
            rf"\b{TITLE}\b\.?(?:\s*(?:and|&)\s*{TITLE}\b\.?)?\s+(?P<name>{NAME})(?:\s+and\s+(?!{TITLE}\b)(?P<other>{NAME}))?"
        ),
        0.9,
    ),
    (re.compile(rf"\b(?i:{LABEL})\s*[:=]\s*(?:{TITLE}\b\.?\s+)?(?P<name>{NAME})"), 0.8),
    (re.compile(rf"\b(?!(?i:{STRICT})\b)(?i:{LABEL})\s+(?:{TITLE}\b\.?\s+)?(?P<name>{NAME})"), 0.6),
    (
        re.compile(
            rf"\b(?i:{SUBJECT})\s+(?:for|on|of|about|by|from)\s+(?:{TITLE}\b\.?\s+)?(?P<name>{NAME})(?=\s*[:,(;])"
        ),
        0.7,
    ),
    (re.compile(rf"^[^\n:]{{0,40}}[,:]\s+(?P<name>{WORD}\s+(?:{INITIALS}\s?)?{WORD}):", re.MULTILINE), 0.6),
    (re.compile(rf"(?<![\w’\'-])(?P<name>{NAME}),?\s{{1,3}}{DEGREE}"), 0.8),
    (re.compile(rf"\b(?P<name>{UPPER}{{2,}}(?:-{UPPER}{{2,}})?,\s+{UPPER}{{2,}})(?!\w)"), 0.5),
)

# Capitalised words that a title or a label can stand before and that name nobody.
NOBODY = _words(
    "a an and are as at by for from he her his i if in is it its my no not of on or our she that the their they this to"
    " was we were will with you your name names patient mr mrs ms dr date dob mrn age sex male female unknown none yes"
    " today tomorrow yesterday monday tuesday wednesday thursday friday saturday sunday january february march april"
    " june july august september october november december sir madam all both who what when where why how"
)


def titled_names(text: str) -> list[Span]:
    """Names after a title (Dr., Mr and Mrs), a label (patient:, signed, dear) or before a degree (M.D.)."""
    spans = []
    for pattern, score in PEOPLE:
        for match in pattern.finditer(text):
            for group in match.groupdict():
                if match[group] and not _nobody(match[group]):
                    spans.append(Span(*match.span(group), "PERSON", score, "clinical"))
    return spans


MONTHS_TOO = frozenset({"april", "may", "june", "august"})  # given names that are months


def _nobody(name: str) -> bool:
    words = re.findall(r"[^\W\d_]+", name.lower())
    return words[0] in NOBODY and not (words[0] in MONTHS_TOO and len(words) > 1)


# What stands before a name and is none of it, where a model took it in: "Signed Roe", "Dr. Roe".
BEFORE = re.compile(
    r"(?:(?:Drs?|Mr|Mrs|Ms|Miss|Mx|Messrs|Prof|Mme|Madam|(?i:signed|seen|dear|patient|pt|name|known|record|refer|phone|start|note|visit|re|cc|yours))\b[.:]?\s*)+"
)


def bare(text: str, span: Span) -> Span | None:
    """A person's ``span`` without the titles and labels before the name; None if nothing is left."""
    before = BEFORE.match(text, span.start, span.end)
    start = before.end() if before else span.start
    return span._replace(start=start) if start < span.end else None


def no_name(text: str, start: int, end: int) -> bool:
    """Whether ``text[start:end]`` cannot be a name: nothing is capitalised, or it is a disease that starts a sentence."""
    found = text[start:end]
    if CAPITALISED.search(found) is None and UNCASED.search(found) is None:
        return True
    starts = re.search(r"(?:^|[.!?:;•*\n-])\s*$", text[max(0, start - 4) : start]) is not None
    return starts and all(word.lower() in GENERIC or DISEASE.search(word) for word in re.findall(r"[^\W\d_]+", found))


def repeated(text: str, spans: Sequence[Span]) -> Iterator[Span]:
    """The other places in ``text`` of the names found in it: the whole name, and each of its longer words alone.

    A word that the text also writes in lower case is taken for a common word and not looked for alone.
    """
    names = {text[s.start : s.end]: s for s in spans if s.entity in ("PERSON", "PER", "NAME") and s.end - s.start > 2}
    if not names:
        return
    words: dict[str, Span] = {}
    for name, span in names.items():
        for word in re.findall(r"[^\W\d_]{3,}", name):
            if word[0].isupper() and word.lower() not in NOBODY:
                words.setdefault(word, span)
    wanted = {**words, **names}
    alternatives = "|".join(re.escape(name) for name in sorted(wanted, key=len, reverse=True))
    common = {w for w in words if re.search(rf"(?<!\w){re.escape(w.lower())}(?!\w)", text)}
    for match in re.finditer(rf"(?<!\w)(?:{alternatives})(?!\w)", text):
        if match[0] not in common:
            yield Span(*match.span(), wanted[match[0]].entity, 0.5 * wanted[match[0]].score, "repeated")


# Heads of a post: with "of" or "for" and what follows, the post of one person.
POSTS = _words(
    "agent ambassador archbishop attorney bishop chairman chairperson chairwoman chancellor chief commander commissioner"
    " consul counsel deputy director governor head imam inspector judge justice king mayor minister officer ombudsman"
    " president prince princess principal procurator prosecutor queen rapporteur rector registrar representative"
    " secretary sheriff speaker superintendent surgeon undersecretary warden"
)
# Capitalised words that are no names by themselves: institutions, documents, parts of a text, units of a hospital.
GENERIC = _words(
    "act administration agency annex appeal appeals appendix applicant applicants application article articles assembly"
    " assessment association authority authorities bar board bureau cabinet case center central centre chamber chapter"
    " charter chart chief civil clinic clinical code college commission committee community company complaint congress"
    " constitution constitutional convention council county court courts criminal decree defence department diagnosis"
    " directive director directorate discharge district division doctor doctrine draft economy education enforcement"
    " exam examination executive exhibit external federal figure finance first follow follow-up foreign form foundation"
    " general government grand grounds group health high history home hospital house human impression inspectorate"
    " institute institution interior internal international investigation judge judgment judicial judiciary jury justice"
    " labour law laws legal list local lords magistrate medical medication medications member members military minister"
    " ministry municipal national no note notes number office officer official order parliament parties party penal"
    " plan police president prison procedure protocol prosecution prosecutor province public recommendation record"
    " referral regional register registry regulation regulations report republic resolution review rights rule rules"
    " school second secretary section security senate service services session social special staff state states statute"
    " supreme table third title town trade transport treasury treaty tribunal union unit university vice ward western"
    " world eastern northern southern north south east west clause item page paragraph para part point sub-section"
    " subsection volume vol art arts chapter act acts bill allergies vitals labs subjective objective disposition type"
    " stage grade start stop give plan refer known exam complains seen signed came had back record phone call"
)
DISEASE = re.compile(
    r"(?i)(?:itis|osis|oses|a?emia|omas?|pathy|pathies|algia|ectomy|ostomy|otomy|plasty|scopy|uria|rrho?ea|plegia|phobia"
    r"|philia|trophy|plasia|penia|megaly|ectasia|iasis|phrenia|thymia|oidism)s?$"
)
ABSTRACT = re.compile(
    r"(?i)(?:gram|graphy|lysis|genesis|therapy|ency|ance|tion|sion|ment|ness|ism|ity|ology|ical|ulous|gous|ic|ive|oid|al"
    r"|olol|pril|sartan|statin|azole|cillin|mycin|floxacin|cycline|prazole|tidine|dipine|azepam|oxetine|gliptin|mab|nib"
    r"|vir|caine|sone|lone|formin)s?$"
)
UNCASED = re.compile(r"[\u0590-\u10ff\u3040-\uabff\uac00-\ud7af]")  # scripts without capitals
LINKS = _words("de da do dos das di del della van von der den ter ten la le du des bin bint ibn al el zu zur of")
TAILS = _words("oglu oğlu ogly qizi qızı kizi")
INITIAL = re.compile(rf"(?:{UPPER}[a-z]?\.-?)+$|{UPPER}$")
ACRONYM = 5  # capitals at most, in what is taken for an abbreviation
CAPITALISED = re.compile(UPPER)


def proper_nouns(doc: "Doc") -> list[Span]:
    """Runs of proper nouns: what spaCy tags so, and other capitalised words that start no sentence.

    Initials, particles (van, bin, of) and patronymic endings join a run. A run of generic words only (the Court, Civil
    Code) is left out, unless it is a post (Minister of Justice); so is a word that the text also has in lower case, and
    one with a medical ending at the start of a sentence.
    """
    tokens = list(doc)
    lower = {token.text for token in tokens if token.is_lower}
    proper = [_is_proper(tokens, i, lower) for i in range(len(tokens))]
    spans, i = [], 0
    while i < len(tokens):
        if not proper[i]:
            i += 1
            continue
        end = _run(tokens, proper, i)
        first = i - 1 if i and INITIAL.match(tokens[i - 1].text) and tokens[i - 1].text != "I" else i
        spans += _marked(tokens[first:end])
        i = end
    return spans


def _is_proper(tokens: "list[Token]", i: int, lower: set[str]) -> bool:
    token, text = tokens[i], tokens[i].text
    if not CAPITALISED.search(text) or token.like_num or "@" in text or len(text) < 2:
        return False
    if text.lower() in MONTHS_TOO:
        if i + 1 < len(tokens) and tokens[i + 1].lower_ in MONTHS_TOO:
            return False
        name_goes_on = i + 1 < len(tokens) and (
            tokens[i + 1].text in ("von", "van") or _is_proper(tokens, i + 1, lower)
        )
        return token.tag_ == "NNP" and name_goes_on
    if text.lower() in NOBODY or (token.is_stop and token.tag_ not in ("NNP", "NNPS")):
        return False
    if text.lower() in lower and text.lower() not in POSTS and not (i > 1 and _is_post(tokens[i - 2 : i - 1])):
        return False
    if INITIAL.match(text):
        return len(text) > 2
    starts = i == 0 or tokens[i - 1].text in ".!?:;•*\n-" or "\n" in tokens[i - 1].text
    if token.tag_ in ("NNP", "NNPS"):
        return not (starts and (DISEASE.search(text) or ABSTRACT.search(text)))
    return not starts and bool(CAPITALISED.match(text)) and not text.isupper()


def _run(tokens: "list[Token]", proper: Sequence[bool], start: int) -> int:
    """One past the last token of the run that starts at ``start``."""
    end, i = start + 1, start + 1
    while i < len(tokens):
        text = tokens[i].text
        if proper[i] or (INITIAL.match(text) and text != "I") or text.lower() in TAILS:
            end = i = i + 1
        elif (
            text.lower() in LINKS
            or text in ("-", "’", "'", "‑", "the")
            or (text == "for" and _is_post(tokens[start:i]))
        ):
            i += 1
            if i - end > 2:
                break
        else:
            break
    return end


def _is_post(run: "Sequence[Token]") -> bool:
    return any(token.lower_ in POSTS for token in run)


def _marked(run: "list[Token]") -> list[Span]:
    words = [token.text for token in run if CAPITALISED.search(token.text)]
    linked = any(token.lower_ in ("of", "for") for token in run)
    if linked and _is_post(run):
        entity, score = "PROFESSION", 0.5
    elif all(
        word.lower() in GENERIC or (word.isupper() and len(word) <= ACRONYM and "." not in word) for word in words
    ):
        return []
    else:
        entity, score = "PERSON", 0.4
    span = Span(run[0].idx, run[-1].idx + len(run[-1]), entity, score, "proper-nouns")
    name = span if entity == "PROFESSION" else bare(run[0].doc.text, span)
    return [] if name is None else [name]
