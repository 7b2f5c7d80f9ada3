"""What a model that was asked a question answered: one of the options, or nothing that can be read.

The source system takes the first character ("cannot tell" is c) and knows no "maybe"; `as_source` does just that. Here
an answer must stand by itself: a letter before a full stop, a bracket or the end, an option's whole text, or yes, no or
maybe as a word. What cannot be read is no answer.
"""

import re
from collections import Counter
from collections.abc import Sequence

_CUE = re.compile(r"(?i)\b(?:answer\s+is\b|answer\s*:|(?:option|choice)\s+is\b)[\s:*]*")
_HEADING = re.compile(r"(?m)^\s*#{2,}[ \t]*(.*)")
_NEXT = re.compile(r"\n\s*Question:")  # it goes on with a question of its own
_LEAD = re.compile(r"(?i)^[\s\"'`*_([{<#>:.,-]*(?:(?:option|choice)\s+)?[\s\"'`*_([{<]*")
_AFTER = (
    r"(?:\s*$|\s*\n|[\"'`*_)\]}>.,;:!?]+(?!\w)|[)\]:](?=\w)|\s+[-\u2013\u2014]+\s"
    r"|\s+(?:because|since|is\s+(?:the\s+)?(?:correct|right|best|answer))\b)"
)
_ALSO = r"[\"'`*_)\]]*\s*(?:,|/|&|\band\b|\bor\b)[\s,]*(?:\b(?:and|or)\b\s*)?[\"'`*_(\[]*"


def parse(said: str, options: Sequence[str], labels: Sequence[str], *, reasoned: bool = False) -> int | None:
    """The index of the option that ``said`` names, or None.

    ``labels`` name the options: letters, or the words yes, no and maybe. What follows the last "answer is" counts, or a
    heading of ``##``, or else the beginning; with ``reasoned`` the beginning counts only where it is all there is.
    """
    text = _CUE.sub(lambda cue: re.sub(r"\s+", " ", cue[0]), _NEXT.split(said.strip())[0])
    if not reasoned:
        text = re.split(r"\n\s*\n", text.strip())[0]
    cues = list(_CUE.finditer(text))
    tries = [text[cues[-1].end() :]] if cues else []
    tries += [heading[1] for heading in _HEADING.finditer(text)][-1:]
    if not reasoned or (not cues and "\n" not in text.strip()):
        tries.append(text)
    for one in tries:
        found = _named(re.split(r"\n\s*\n", one.strip())[0], options, labels)
        if found is not None:
            return found
    return None


def vote(answers: Sequence[int | None]) -> int | None:
    """The most frequent answer of several branches; of those that are equally frequent the one that got there first.

    Branches without a readable answer have no vote.
    """
    counts = Counter(answer for answer in answers if answer is not None)
    most = max(counts.values(), default=0)
    so_far: Counter[int] = Counter()
    for answer in answers:
        if answer is not None:
            so_far[answer] += 1
            if so_far[answer] == most:
                return answer
    return None


def as_source(said: str, labels: Sequence[str], *, shots: bool, reasoned: bool) -> int | None:
    """The source system's own reading, for comparison: the first character, or yes or no; no other word."""
    text = said.lower()
    if "is:" in text:
        text = text.split("is:")[1]
    if "\n##" in text:
        text = text.split("\n##")[1].split("\n")[0]
    if shots and not reasoned:
        text = text.strip().split("\n\n")[0]
    text = " ".join(re.findall(r"[a-z0-9]+", text))
    if reasoned:
        text = (text.split("answer is")[-1].split() or [""])[0]
    known = [label.lower() for label in labels if label.lower() != "maybe"]
    for twice, once in (("yesyes", "yes"), ("nono", "no"), ("yesno", "yes"), ("noyes", "no")):
        text = text.replace(twice, once)
    found = text if len(known[0]) > 1 else text[:1]
    return known.index(found) if found in known else None


def _named(said: str, options: Sequence[str], labels: Sequence[str]) -> int | None:
    """The option that ``said`` begins with: its label standing by itself, or its whole text."""
    rest = said[_LEAD.match(said).end() :]  # type: ignore[union-attr]  # it matches nothing too
    letters = len(labels[0]) == 1
    if letters and (found := _by_text(rest, options)) is not None:
        return found
    for index, label in enumerate(labels):
        name = re.escape(label) if letters else f"(?:{re.escape(label)})+"  # "yesyes"
        begins = re.match(rf"(?i){name}(?![\w]|['\u2019]\w)", rest)
        if begins is None:
            continue
        behind = rest[begins.end() :]
        others = [one.lower() if begins[0].islower() else one for one in labels if one != label]
        flag = "" if letters else "(?i)"  # "B, a hormone" names one letter
        if re.match(rf"{flag}{_ALSO}(?:{'|'.join(map(re.escape, others))})\b(?!['\u2019])", behind):
            return None
        if re.match(_AFTER, behind) and not (letters and _is_abbreviation(behind, options[index])):
            return index
        if not letters and (label != "no" or re.match(r"(?i)\s+(?:it|they|there|this|that|he|she|we|i)\b", behind)):
            return index
        return None
    return None


def _is_abbreviation(behind: str, option: str) -> bool:
    """Whether ``behind`` goes on as in "E. coli": a full stop and a small letter, and not with the option's text."""
    goes_on = re.match(r"\.\s+([a-z].*)", behind, re.DOTALL)
    if goes_on is None or re.match(r"(?:because|since)\b", goes_on[1]):
        return False
    said, text = _words(goes_on[1]), _words(option)
    return not (said.startswith(text) or text.startswith(said))


def _by_text(said: str, options: Sequence[str]) -> int | None:
    """The option whose whole text ``said`` begins with; the longest, if several."""
    line = " ".join(said.split("\n")[0].split())
    found = [
        (len(option), -index)
        for index, option in enumerate(options)
        if not re.fullmatch(r"[A-Za-z]", option.strip())  # taken for a label
        and re.match(rf"(?i){re.escape(' '.join(option.split()))}(?:{_AFTER}|$)", line)
    ]
    return -max(found)[1] if found else None


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
