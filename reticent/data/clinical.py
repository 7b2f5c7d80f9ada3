# ruff: noqa: E501 (a pattern is read as one line)
"""Identifiers that have a form: found by pattern, and believed by their checksum and by the words before them.

The kinds are those of the HIPAA Safe Harbor rule (45 CFR 164.514(b)(2)) in the forms that English clinical and legal
text uses. A pattern that could mean something else (a run of digits, a fraction) counts only after a word that says
what it is; one with a checksum also counts on its own. Names are in `reticent.data.names`.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from reticent.data.names import titled_names
from reticent.data.spans import Span
from reticent.errors import DataError

RULES = "2"  # raise it with every change of what is found: it is part of cache keys
REACH = 40  # characters before a match in which its context is looked for


class Pattern(NamedTuple):
    """One form of one kind of identifier.

    ``alone`` is the score without context and ``known`` with it; 0 drops the match. A match that fails ``valid`` (its
    checksum) scores ``broken`` after its context word, for people mistype, and is dropped elsewhere. The group
    ``found``, if there is one, is what is marked. The pattern is tried only on a text that has one of ``needs``.
    """

    entity: str
    regex: re.Pattern[str]
    alone: float
    known: float = 0.0
    context: re.Pattern[str] | None = None
    valid: Callable[[str], bool] | None = None
    broken: float = 0.0
    needs: str = "digit"


def digits_of(text: str) -> list[int]:
    """The decimal digits in ``text``, in order."""
    return [int(c) for c in text if c in "0123456789"]


def luhn(text: str) -> bool:
    """Whether the digits of a card number pass the check of ISO/IEC 7812-1, annex B."""
    doubled = [d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(reversed(digits_of(text)))]
    return len(doubled) >= 12 and sum(doubled) % 10 == 0


def iban(text: str) -> bool:
    """Whether an account number is 1 modulo 97 after its first four characters moved to the end (ISO 13616)."""
    compact = re.sub(r"\s", "", text).upper()
    return 15 <= len(compact) <= 34 and int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def nhs_number(text: str) -> bool:
    """Whether ten digits are an NHS number: weights 10 to 2, modulus 11 (NHS Data Dictionary)."""
    *body, check = digits_of(text)
    remainder = 11 - sum(weight * d for weight, d in zip(range(10, 1, -1), body, strict=True)) % 11
    return remainder % 11 == check


def npi(text: str) -> bool:
    """Whether ten digits are a US provider's number: Luhn with the prefix 80840 (45 CFR 162.406)."""
    return luhn("80840" + text)


def vin(text: str) -> bool:
    """Whether seventeen characters are a vehicle's number: position 9 is the check (49 CFR 565.15)."""
    values = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", "12345678123457923456789", strict=True))
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    total = sum(weight * int(values.get(c, c)) for weight, c in zip(weights, text.upper(), strict=True))
    return "0123456789X"[total % 11] == text[8].upper()


def ssn(text: str) -> bool:
    """Whether nine digits can be a US social security number (areas 000, 666 and 9xx are never given out)."""
    number = "".join(map(str, digits_of(text)))
    return number[:3] not in ("000", "666") and number[0] != "9" and number[3:5] != "00" and number[5:] != "0000"


def day_and_month(text: str) -> bool:
    """Whether three numbers can be a date, in the order of any country."""
    first, second, third = (int(part) for part in re.findall(r"\d+", text)[:3])
    if first > 31:
        first, second = second, third  # the year is in front
    return (1 <= first <= 12 and 1 <= second <= 31) or (1 <= first <= 31 and 1 <= second <= 12)


def address_of_host(text: str) -> bool:
    """Whether ``text`` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _words(*alternatives: str, after: str = r"\W{0,3}$") -> re.Pattern[str]:
    """What stands just before a match: one of the ``alternatives``, then nothing but ``after``."""
    return re.compile(rf"(?i)(?<!\w)(?:{'|'.join(alternatives)}){after}")


MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:r(?:uary)?)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?"
    r"|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)(?![^\W\d_])\.?"
)
WEEKDAY = r"(?:Mon|Tues?|Wed(?:nes)?|Thu(?:rs?)?|Fri|Sat(?:ur)?|Sun)(?:day)?\b\.?"
ORDINAL = (
    r"(?:(?:twenty|thirty)[- ])?(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth)"
    r"|(?:ten|eleven|twelf|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twentie|thirtie)th"
)
DAY = rf"(?:(?:0?[1-9]|[12]\d|3[01])(?:\s?(?:st|nd|rd|th))?(?!\d)|{ORDINAL})"
DAYS = rf"{DAY}(?:\s{{0,3}}(?:[-–—/,&]|to|and|or|until)\s{{0,3}}{DAY}){{0,5}}"
YEAR = r"(?:1[6-9]|20|21)\d\d(?!\d)"
SHORT_YEAR = rf"(?:{YEAR}|['’‘]\d\d(?!\d))"
CLOCK = r"(?:[01]?\d|2[0-4])[:.h][0-5]\d(?::[0-5]\d)?(?:\s?[ap]\.?\s?m\b\.?)?"
AT_CLOCK = rf"(?:(?:,?\s+(?:at\s+)?|T){CLOCK}(?:\s?(?:Z|UTC|GMT|[+-]\d\d:?\d\d))?)?"
SEASON = (
    r"(?:(?:early|mid|late)[- ])?(?:[Ss]pring|[Ss]ummer|[Aa]utumn|[Ff]all|[Ww]inter|Easter|Christmas|Thanksgiving"
    r"|Ramadan|Q[1-4])"
)
NUMERIC = r"\d{1,2}([-/.])\d{1,2}\1(?:\d{4}|\d{2})|\d{4}([-/.])\d{1,2}\2\d{1,2}"
IN_TIME = _words(
    *("in", "since", "on", "until", "till", "by", "from", "of", "during", "before", "after", "around", "year", "dated"),
    *("circa", "between", "and", "to", "through", "last", "next", "this", "early", "late", "mid", "early in", "born"),
    after=r"[\s-]+(?:the\s+)?$",
)
ON_DAY = _words(
    *("on", "since", "dated?", "until", "till", "from", "before", "after", "admitted", "discharged", "seen", "born"),
    *("dob", "d\\.o\\.b\\.", "d/c", "admit(?:ted)?", "visit", "appointment", "appt", "exp(?:iry|ires)?", "service"),
    after=r"(?:\s+(?:on|date))?\W{0,3}$",
)

DATES = (
    Pattern("DATE", re.compile(rf"(?<![\d./-])(?:{NUMERIC}){AT_CLOCK}(?![\d/])(?![-.]\d)"), 0.9, valid=day_and_month),
    Pattern(
        "DATE",
        re.compile(
            rf"(?i)(?<!\w)(?:{WEEKDAY},?\s{{1,3}}(?:the\s{{1,3}})?)?{DAYS}\s{{0,3}}(?:of\s{{1,3}}|-|/)?{MONTH},?[\s/-]{{0,3}}(?:of\s{{1,3}})?{SHORT_YEAR}{AT_CLOCK}"
        ),
        0.95,
    ),
    Pattern(
        "DATE",
        re.compile(
            rf"(?i)(?<!\w)(?:{WEEKDAY},?\s{{1,3}})?{MONTH}[\s-]{{0,3}}(?:the\s{{1,3}})?{DAYS},?[\s-]{{0,3}}{SHORT_YEAR}{AT_CLOCK}"
        ),
        0.95,
    ),
    Pattern(
        "DATE",
        re.compile(
            rf"(?i)(?<![\w/-])(?:0?[1-9]|[12]\d|3[01])[-/ .]?(?:{MONTH})[-/ .]?\d\d(?!\d|\s{{0,3}}(?:year|yr|day|week|mg|ml|%))"
        ),
        0.7,
    ),
    Pattern(
        "DATE",
        re.compile(
            rf"(?:(?i:(?<!\w){WEEKDAY},?\s{{1,3}}(?:the\s{{1,3}})?))?(?<!\w)(?i:{DAYS})(?:\s{{1,3}}(?:of\s{{1,3}})?|-){MONTH}{AT_CLOCK}"
        ),
        0.85,
    ),
    Pattern(
        "DATE",
        re.compile(
            rf"(?:(?i:(?<!\w){WEEKDAY},?\s{{1,3}}(?:the\s{{1,3}})?))?\b(?:{MONTH}|[A-Z]{{3,9}}(?<=JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC))\s{{1,3}}(?:the\s{{1,3}})?(?i:{DAYS})(?!\s{{0,3}}(?:mg|ml|mcg|%))(?!\.\d){AT_CLOCK}"
        ),
        0.8,
    ),
    Pattern("DATE", re.compile(rf"\b(?i:{MONTH}),?\s{{0,3}}(?:of\s{{1,3}})?(?:{SHORT_YEAR})"), 0.85),
    Pattern("DATE", re.compile(rf"\b{WEEKDAY},?\s{{1,3}}(?:the\s{{1,3}})?(?i:{DAY})(?!\w)"), 0.7, needs="day"),
    Pattern("DATE", re.compile(r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)days?\b"), 0.5, needs="day"),
    Pattern("DATE", re.compile(rf"(?<![\w/-])(?:0?[1-9]|1[0-2])[/-]{YEAR}(?![/-])"), 0.7),
    Pattern(
        "DATE", re.compile(r"(?<![\w/.,-])(?:0?[1-9]|1[0-2])/(?:0?[1-9]|[12]\d|3[01])(?![\w/%]|[.-]\d)"), 0, 0.5, ON_DAY
    ),
    Pattern(
        "DATE", re.compile(r"(?<![\w/.,-])(?:1[3-9]|2\d|3[01])/(?:0?[1-9]|1[0-2])(?![\w/%]|[.-]\d)"), 0, 0.5, ON_DAY
    ),
    Pattern("DATE", re.compile(r"(?<!\d)(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)"), 0, 0.7, ON_DAY),
    Pattern("DATE", re.compile(rf"\b{SEASON}(?:\s{{1,3}}(?:of\s{{1,3}})?|['’]){YEAR}"), 0.7),
    Pattern(
        "DATE",
        re.compile(r"(?<![\w./-])(?:19|20)\d\d(?:\s?[-–/]\s?(?:(?:19|20)\d\d|\d\d))?(?![\w/]|[.,-]\d)"),
        0,
        0.5,
        IN_TIME,
    ),
    Pattern(
        "DATE",
        re.compile(
            r"\b(?:January|February|March|April|June|July|August|September|October|November|December)\b|(?<=[Ii]n )May\b(?! I\b)|(?<=[Ss]ince )May\b|(?<=(?:last|next|late|this) )May\b"
        ),
        0,
        0.5,
        IN_TIME,
        needs="month",
    ),
    Pattern(
        "TIME",
        re.compile(rf"(?<![\w:.]){CLOCK.replace('[:.h]', ':')}(?![\w:])"),
        0,
        0.4,
        _words("at", "around", "by", "from", "until", "time", "about", after=r"\W{0,3}$"),
    ),
)

TENS = r"(?:ninety(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?|(?:an?|one)\s{1,3}hundred(?:\s{1,3}and\s{1,3}\w+)?)"
OLD = r"(?:9\d|1[0-3]\d)"
AGES = (
    Pattern(
        "AGE",
        re.compile(
            rf"(?i)(?<![\w.]){OLD}(?:[\s-]{{0,3}}(?:years?|yrs?)[\s-]{{0,3}}(?:old|of\s{{1,3}}age)|\s?-?y[./]?\s?o\b\.?|\s?yo[mf]?\b)"
        ),
        0.9,
    ),
    Pattern(
        "AGE",
        re.compile(rf"(?i)\b{TENS}[\s-]{{0,3}}(?:years?|yrs?)[\s-]{{0,3}}(?:old|of\s{{1,3}}age)\b"),
        0.9,
        needs="any",
    ),
    Pattern(
        "AGE",
        re.compile(rf"(?i)(?<![\w.])(?:{OLD}(?![\w%/.]\d?|\s?(?:mg|ml|kg|cm|bpm|mm))|{TENS}(?!\w))"),
        0,
        0.8,
        _words("aged?", "age of", "turn(?:ed|s|ing)", "age is", "years? old at"),
        needs="any",
    ),
    Pattern("AGE", re.compile(r"(?i)\b(?:nonagenarian|centenarian|supercentenarian)s?\b"), 0.8, needs="any"),
    Pattern(
        "AGE",
        re.compile(
            r"(?i)\b(?:in\s{1,3}(?:his|her|their)\s{1,3}(?:(?:early|mid|late)[\s-]+)?)(?P<found>nineties|90['’]?s)\b"
        ),
        0.6,
        needs="any",
    ),
)

CALL = _words(
    *(
        "tel(?:ephone)?",
        "phone",
        "ph",
        "call(?:ed|ing)?",
        "fax",
        "mobile",
        "cell(?:ular)?",
        "pager",
        "beeper",
        "contact",
    ),
    *(
        "number",
        "home",
        "work",
        "office",
        "reach(?:ed)?",
        "dial",
        "ext(?:ension)?",
        "hotline",
        "whatsapp",
        "sms",
        "text",
    ),
    after=r"(?:\s{0,3}(?:no|nr|number|num|#|is|at|on|to|of|him|her|them|me|us|or|and)\b\.?)*[\s:.#()–-]{0,4}$",
)
PHONES = (
    Pattern(
        "PHONE_NUMBER",
        re.compile(
            r"(?<![\w.-])(?:\+?1[-. ]{0,2})?(?:\([2-9]\d\d\)\s?|[2-9]\d\d[-. /]\s?)\d{3}[-. ]\d{4}(?:\s{0,3}(?:x|ext\.?|extension)\s{0,3}\d{1,6})?(?![\w-])"
        ),
        0.85,
        0.95,
        CALL,
    ),
    Pattern("PHONE_NUMBER", re.compile(r"(?<![\w.])\+\d{1,3}(?:[-. ()]{0,2}\d){6,13}(?!\d)"), 0.85, 0.95, CALL),
    Pattern("PHONE_NUMBER", re.compile(r"(?<![\w.-])\(?0\d{2,4}\)?[- ]\d{3,4}[- ]?\d{3,4}(?![\w-])"), 0.6, 0.95, CALL),
    Pattern("PHONE_NUMBER", re.compile(r"(?<![\w.-])555-01\d\d(?![\w-])"), 0.9),
    Pattern(
        "PHONE_NUMBER",
        re.compile(r"(?<![\w.-])\d{3}[-. ]\d{4}(?:\s{0,3}(?:x|ext\.?)\s{0,3}\d{1,6})?(?![\w-])"),
        0,
        0.8,
        CALL,
    ),
    Pattern("PHONE_NUMBER", re.compile(r"(?<![\w.-])\(?\d(?:[-. ()/]{0,2}\d){5,14}(?![\w-])"), 0, 0.7, CALL),
    Pattern(
        "PHONE_NUMBER",
        re.compile(r"(?<![\w.-])\d{3,6}(?![\w-]|\.\d)"),
        0,
        0.6,
        _words("ext(?:ension)?", "pager", "beeper", "x", after=r"(?:\s{0,3}(?:no|number|is|#)\b\.?)*[\s:.#]{0,3}$"),
    ),
)

NUMBER = r"(?:\s{0,3}(?:no|nr|num|numbers?|id|identifier|code|№|#|is|was)\b\.?|\s{0,3}[:#№])*[\s:.#–-]{0,3}$"
RECORD = _words(
    *(
        "mrn?",
        "m\\.r\\.n\\.?",
        "(?:medical|health|hospital|clinical|patient)\\s{1,3}(?:records?|files?|chart|id|no|number)",
    ),
    *(
        "(?:patient|unit|chart|record|hospital|clinic|encounter|admission|accession|specimen|episode|visit)",
        "pt\\s{1,3}id",
    ),
    *("pid", "pas\\s{1,3}id", "csn", "har", "urn?", "chi", "hospital"),
    after=NUMBER,
)
PAPER = _words(
    *(
        "(?:account|acct|a/c|case|file|policy|member(?:ship)?|subscriber|group|claim|invoice|certificate|docket|reference)",
    ),
    *(
        "ref",
        "id",
        "passport",
        "identity\\s{1,3}card",
        "driver'?s?\\s{1,3}licen[cs]e",
        "licen[cs]e",
        "dl",
        "dea",
        "npi",
        "serial",
    ),
    *("application", "applications", "beneficiary", "medicare", "medicaid", "insurance", "permit", "badge", "student"),
    *(
        "employee",
        "national\\s{1,3}id",
        "tax\\s{1,3}id",
        "ein",
        "tin",
        "itin",
        "lot",
        "device",
        "order",
        "receipt",
        "protocol",
    ),
    after=NUMBER,
)
CODE = r"(?<![\w.,/-])(?=[A-Z0-9/.-]*\d{2})[A-Z]{0,4}[-/]?\d[A-Z0-9]*(?:[-/.][A-Z0-9]+)*(?![\w%])"
LONG_CODE = r"(?<![\w.,/-])(?=[A-Z0-9/-]*\d{3})[A-Z]{0,4}[-/]?\d[A-Z0-9-]{3,}(?:/\d+)?(?![\w%])"
NAMED_NUMBER = r"(?:\bno|\bnr|\bnum|\bnumbers?|\bid|№|#)\b\.?"
SOCIAL = _words("ssn?", "s\\.s\\.n\\.?", "social(?:\\s{1,3}security)?", "soc\\.?\\s{1,3}sec\\.?", after=NUMBER)
CARD = _words(
    "card", "visa", "mastercard", "amex", "american express", "discover", "cc", "credit", "debit", after=NUMBER
)
PLATE = _words(
    *(
        "(?:licen[cs]e|number|registration|vehicle)\\s{1,3}plates?",
        "plates?",
        "(?:vehicle\\s{1,3}|car\\s{1,3})?registration",
        "reg",
    ),
    *("(?:car|vehicle)\\s{1,3}with\\s{1,3}(?:the\\s{1,3})?(?:registration|plates?)", "tags?"),
    after=r"(?:\s{0,3}(?:no|nr|number|mark|was|is|of|#|reads?|reading)\b\.?)*[\s:.#“\"']{0,4}$",
)
NUMBERS = (
    Pattern("US_SSN", re.compile(r"(?<![\w-])\d{3}([- ])\d{2}\1\d{4}(?![\w-])"), 0.85, 0.95, SOCIAL, ssn, 0.6),
    Pattern("US_SSN", re.compile(r"(?<![\w-])\d{9}(?![\w-])"), 0, 0.8, SOCIAL, ssn, 0.5),
    Pattern("US_SSN", re.compile(r"(?i)(?<!\w)[x*#]{3}[- ]?[x*#]{2}[- ]?\d{4}(?!\w)"), 0.8),
    Pattern(
        "US_SSN",
        re.compile(r"(?<![\w-])\d{4}(?![\w-])"),
        0,
        0.6,
        _words("last\\s{1,3}(?:4|four)(?:\\s{1,3}(?:of\\s{1,3})?(?:ssn|social))?", "ssn\\s{1,3}ending(?:\\s{1,3}in)?"),
    ),
    Pattern(
        "UK_NINO",
        re.compile(r"\b(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]\b"),
        0.85,
    ),
    Pattern(
        "UK_NHS",
        re.compile(r"(?<![\w-])\d{3}[ -]\d{3}[ -]\d{4}(?![\w-])"),
        0.7,
        1.0,
        _words("nhs", after=NUMBER),
        nhs_number,
        0.6,
    ),
    Pattern("UK_NHS", re.compile(r"(?<![\w-])\d{10}(?![\w-])"), 0.4, 1.0, _words("nhs", after=NUMBER), nhs_number, 0.6),
    Pattern(
        "IBAN_CODE",
        re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"),
        0.95,
        1.0,
        _words("iban", "account", after=NUMBER),
        iban,
        0.6,
    ),
    Pattern(
        "CREDIT_CARD",
        re.compile(
            r"(?<![\w-])[2-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{1,7}(?![\w-])|(?<![\w-])3[47]\d\d[ -]?\d{6}[ -]?\d{5}(?![\w-])"
        ),
        0.7,
        1.0,
        CARD,
        luhn,
        0.6,
    ),
    Pattern(
        "NPI", re.compile(r"(?<![\w-])[12]\d{9}(?![\w-])"), 0, 1.0, _words("npi", "provider", after=NUMBER), npi, 0.6
    ),
    Pattern(
        "MEDICAL_RECORD",
        re.compile(rf"{NAMED_NUMBER}\W{{0,3}}(?P<found>{CODE})"),
        0,
        0.95,
        re.compile(
            r"(?i)\b(?:medical|health|hospital|patient|chart|record|unit|clinic|encounter|admission|accession|visit)\b[\s'’s]*$"
        ),
    ),
    Pattern("MEDICAL_RECORD", re.compile(LONG_CODE), 0, 0.95, RECORD),
    Pattern("ID", re.compile(LONG_CODE), 0, 0.8, PAPER),
    Pattern(
        "ID",
        re.compile(rf"(?i){NAMED_NUMBER}\W{{0,3}}(?P<found>{CODE})"),
        0.4,
        0.8,
        re.compile(r"(?i)\b\w{3,}\s{0,3}$"),
        needs="number",
    ),
    Pattern("ID", re.compile(r"(?<!\w)[A-HJ-NPR-Z0-9]{17}(?!\w)"), 0.9, 1.0, _words("vin", after=NUMBER), vin, 0.6),
    Pattern("ID", re.compile(r"(?i)(?<!\w)[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?!\w)"), 0.9),
    Pattern("ID", re.compile(r"(?i)(?<![\w:])(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}(?![\w:])"), 0.8),
    Pattern(
        "LICENSE_PLATE",
        re.compile(r"(?<![\w-])(?=[A-Z0-9 -]*\d)[A-Z0-9]{1,4}[- ]?[A-Z0-9]{2,4}(?:[- ]?[A-Z0-9]{1,3})?(?![\w-])"),
        0,
        0.9,
        PLATE,
    ),
    Pattern(
        "LICENSE_PLATE",
        re.compile(r"(?<!\w)[A-HJ-PR-Y][A-HJ-PR-Y](?:0[2-9]|[1-7]\d) ?[A-HJ-PR-Z]{3}(?!\w)"),
        0.5,
        0.9,
        PLATE,
    ),
)

ENDING = r"com|org|net|edu|gov|mil|int|info|biz|io|ai|app|dev|health|uk|us|ca|au|nz|ie|de|fr|es|it|nl|be|ch|at|se|no|dk|fi|pl|pt|cz|ro|ru|ua|tr|gr|eu|in|cn|jp|kr|br|mx|ar|za|example|test"
ONLINE = (
    Pattern("EMAIL_ADDRESS", re.compile(r"(?i)(?<![\w.+-])[\w.+%'’-]+@(?:[\w-]+\.)+[a-z]{2,}(?!\w)"), 0.99, needs="@"),
    Pattern(
        "EMAIL_ADDRESS",
        re.compile(
            r"(?i)(?<![\w.+-])[\w.+-]{1,64}\s{0,3}(?:\(at\)|\[at\])\s{0,3}[\w-]{1,64}(?:\s{0,3}(?:\(dot\)|\[dot\]|\.)\s{0,3}[\w-]{1,64}){1,5}"
        ),
        0.8,
        needs="at",
    ),
    Pattern(
        "URL", re.compile(r"(?i)\b(?:https?|ftps?|sftp|ssh|s3)://[^\s<>\"'”)\]]*[^\s<>\"'”)\].,;:!?]"), 0.99, needs=":"
    ),
    Pattern(
        "URL",
        re.compile(
            rf"(?i)(?<![\w@.-])(?:www\.)?(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+(?:{ENDING})(?:/[^\s<>\"'”)\]]*[^\s<>\"'”)\].,;:!?]|/)?(?![\w@-]|\.\w)"
        ),
        0.6,
        needs=".",
    ),
    Pattern("IP_ADDRESS", re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)"), 0.8, valid=address_of_host),
    Pattern(
        "IP_ADDRESS",
        re.compile(r"(?i)(?<![\w:])(?=[0-9a-f:]*:[0-9a-f]*:)[0-9a-f:]{3,39}(?![\w:])"),
        0.8,
        valid=lambda text: len(text) > 4 and address_of_host(text),
        needs=":",
    ),
    Pattern("ID", re.compile(r"(?<![\w@.])@[A-Za-z_]\w{2,30}(?!\w)"), 0.6, needs="@"),
)

STATE = (
    r"(?:A[AEKLPRSZ]|C[AOT]|D[CE]|F[LM]|G[AU]|HI|I[ADLN]|K[SY]|LA|M[ADEHINOPST]|N[CDEHJMVY]|O[HKR]|P[ARW]|RI|S[CD]|T[NX]|UT|V[AIT]"
    r"|W[AIVY]|Alabama|Alaska|Arizona|Arkansas|California|Colorado|Connecticut|Delaware|Florida|Georgia|Hawaii|Idaho"
    r"|Illinois|Indiana|Iowa|Kansas|Kentucky|Louisiana|Maine|Maryland|Massachusetts|Michigan|Minnesota|Mississippi"
    r"|Missouri|Montana|Nebraska|Nevada|New (?:Hampshire|Jersey|Mexico|York)|(?:North|South) (?:Carolina|Dakota)|Ohio"
    r"|Oklahoma|Oregon|Pennsylvania|Rhode Island|Tennessee|Texas|Utah|Vermont|(?:West )?Virginia|Washington|Wisconsin"
    r"|Wyoming)"
)
ZIP = rf"{STATE}\.?,?\s{{1,3}}\d{{5}}(?:-\d{{4}})?(?!\d)"
UK_POSTCODE = r"(?:GIR ?0AA|[A-PR-UWYZ](?:[A-HK-Y]?\d[A-Z\d]?|\d[A-HJKPSTUW]?) ?\d[ABD-HJLNP-UW-Z]{2})"
WAY = (  # with the street suffixes of USPS Publication 28, appendix C1
    r"(?:Street|St|Avenue|Ave?|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Circle|Cir|Place|Pl|Square|Sq|Terrace"
    r"|Ter|Parkway|Pkwy|Highway|Hwy|Way|Close|Crescent|Cres|Gardens?|Groves?|Mews|Row|Walk|Hills?|Parks?|Greens?|Alley"
    r"|Loop|Trail|Trl|Pike|Turnpike|Plaza|Crossing|Route|Rte|Quay|Wharf|Rise|Views?|Heights|Ridges?|Run|Path|Causeway"
    r"|Broadway|Annex|Arcade|Bayou|Beach|Bend|Bluffs?|Bottom|Branch|Bridge|Brooks?|Burgs?|Bypass|Camp|Canyon|Cape"
    r"|Centers?|Cliffs?|Club|Commons?|Corners?|Course|Courts|Coves?|Creek|Crest|Crossroads?|Curve|Dale|Dam|Divide|Drives|Roads"
    r"|Estates?|Expressway|Extensions?|Falls|Ferry|Fields?|Flats?|Fords?|Forest|Forges?|Forks?|Fort|Freeway|Gateway"
    r"|Glens?|Harbors?|Haven|Hollow|Inlet|Islands?|Isle|Junctions?|Keys?|Knolls?|Lakes?|Landing|Lights?|Loaf|Locks?"
    r"|Lodge|Mall|Manors?|Meadows?|Mills?|Mission|Motorway|Mount|Mountains?|Neck|Orchard|Oval|Overpass|Pass|Passage"
    r"|Pines?|Plains?|Points?|Ports?|Prairie|Radial|Ramp|Ranch|Rapids?|Rest|River|Shoals?|Shores?|Skyway|Springs?|Spurs?"
    r"|Squares|Station|Stravenue|Stream|Streets|Summit|Throughway|Trace|Track|Trafficway|Trailer|Tunnel|Underpass"
    r"|Unions?|Valleys?|Viaduct|Villages?|Ville|Vista|Walks|Wells?)"
)
UNIT = r"(?:,?\s{1,3}(?:Apt|Apartment|Suite|Ste|Unit|Flat|Room|Rm|Floor|Fl|Building|Bldg|#)\.?\s{0,3}#?\w{1,6})"
TOWN = r"(?:,?\s{1,3}[A-Z][\w'’.-]+(?:\s{1,3}[A-Z][\w'’.-]+){0,3})"
COMMA_TOWN = r"(?:,\s{1,3}[A-Z][\w'’-]+(?:\s[A-Z][\w'’-]+){0,2})"
ADDRESSES = (
    Pattern(
        "ADDRESS",
        re.compile(
            rf"(?<![\w/.-])(?:(?:Flat|Apt|Apartment|Unit)\s{{1,3}}\w{{1,4}},?\s{{1,3}})?\d{{1,6}}[A-Za-z]?(?:[-/]\d+)?,?\s{{1,3}}(?:[NSEW]{{1,2}}\.?\s{{1,3}}|North\s{{1,3}}|South\s{{1,3}}|East\s{{1,3}}|West\s{{1,3}})?(?:(?:[A-Z][\w'’.-]*|\d+(?:st|nd|rd|th))\s{{1,3}}){{1,4}}{WAY}\b\.?{UNIT}?(?:{TOWN}?,?\s{{1,3}}(?:{ZIP}|{UK_POSTCODE}\b)|{COMMA_TOWN})?"
        ),
        0.85,
    ),
    Pattern("ADDRESS", re.compile(rf"(?i:\bP\.?\s?O\.?\s?Box\s{{1,3}}\d+)(?:{TOWN}?,?\s{{1,3}}{ZIP})?"), 0.9),
    Pattern(
        "ADDRESS",
        re.compile(
            rf"(?:(?<![\w'’.-])[A-Z][\w'’.-]{{1,30}}(?:\s{{1,3}}[A-Z][\w'’.-]{{1,30}}){{0,2}},?\s{{1,3}})?\b{ZIP}"
        ),
        0.85,
    ),
    Pattern("ADDRESS", re.compile(rf"(?<!\w){UK_POSTCODE}(?!\w)"), 0.6),
    Pattern(
        "ADDRESS",
        re.compile(r"(?<![\w-])\d{5}(?:-\d{4})?(?![\w-])"),
        0,
        0.8,
        _words("zip(?:\\s{0,3}code)?", "postal\\s{1,3}code", "postcode", "plz", after=NUMBER),
    ),
    Pattern(
        "ADDRESS",
        re.compile(
            r"\b[A-ZÄÖÜ]\w+(?:straße|strasse|str\.|weg|platz|gasse|allee)\s{1,3}\d{1,4}\s?[a-z]?\b(?:,?\s{1,3}\d{5}\s{1,3}[A-ZÄÖÜ]\w+)?"
        ),
        0.85,
    ),
    Pattern(
        "ADDRESS",
        re.compile(
            r"\b\d{1,4}\s?(?:bis|ter)?,?\s{1,3}(?:rue|avenue|boulevard|place|chemin|impasse|via|calle|rua|piazza)\s{1,3}(?:(?:de|du|des|la|le|les|del|della|d['’]|l['’])\s{0,3})*[A-ZÀ-Þ][\w'’-]+(?:\s{1,3}[A-ZÀ-Þ][\w'’-]+)*"
        ),
        0.85,
    ),
)
PATTERNS = (*DATES, *AGES, *PHONES, *NUMBERS, *ONLINE, *ADDRESSES)

# What a text must have for a pattern to be worth trying.
PRESENT: dict[str, Callable[[str], object]] = {
    "any": lambda text: True,
    "digit": re.compile(r"\d").search,
    "@": lambda text: "@" in text,
    ":": lambda text: ":" in text,
    ".": lambda text: "." in text,
    "at": re.compile(r"(?i)[(\[]at[)\]]").search,
    "day": lambda text: "day" in text or bool(re.search(WEEKDAY, text)),
    "month": re.compile(r"\b[A-Z]\w*(?:ary|rch|ril|May|une|uly|ust|ber)\b|\bMay\b").search,
    "number": re.compile(r"(?i)(?:\bno|\bnr|\bnum|\bnumbers?|\bid|№|#)\b").search,
}


class Clinical:
    """Our own patterns, and names that a title or a label announces. Needs no model."""

    name = "clinical"

    def __init__(self) -> None:
        try:
            import phonenumbers
        except ImportError:
            raise DataError("clinical: needs the package phonenumbers; pip install 'reticent[scrub]'") from None
        self.version = f"clinical {RULES}, phonenumbers {phonenumbers.__version__}"

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """One list of spans per text, in order; the spans may overlap."""
        return [find(text) for text in texts]


def find(text: str) -> list[Span]:
    """All identifiers of a known form in ``text``."""
    present = {need for need, test in PRESENT.items() if test(text)}
    spans = [span for pattern in PATTERNS if pattern.needs in present for span in _matches(pattern, text)]
    if "digit" in present:
        spans += _phone_numbers(text)
    return spans + titled_names(text)


def _matches(pattern: Pattern, text: str) -> Iterator[Span]:
    group = "found" if "found" in pattern.regex.groupindex else 0
    for match in pattern.regex.finditer(text):
        start, end = match.span(group)
        before = text[max(0, match.start() - REACH) : match.start()]
        known = pattern.context is not None and pattern.context.search(before) is not None
        score = max(pattern.known, pattern.alone) if known else pattern.alone
        if pattern.valid is not None and not pattern.valid(match.group(group)):
            score = pattern.broken if known else 0.0
        if score > 0:
            yield Span(start, end, pattern.entity, score, "clinical")


LONG_NUMBER = re.compile(r"(?:\d[\s().-]{0,3}){7}")


def _phone_numbers(text: str) -> Iterator[Span]:
    """Numbers that a country's numbering plan has given out."""
    if LONG_NUMBER.search(text) is None:
        return
    from phonenumbers import PhoneNumberMatcher

    for region in ("US", "GB"):
        for match in PhoneNumberMatcher(text, region):
            yield Span(match.start, match.end, "PHONE_NUMBER", 0.7, "clinical")
