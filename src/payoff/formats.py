"""How numbers and names are written. The only place where a figure becomes text; pure standard library.

Rules: an estimate is rounded to the precision of its interval (two significant digits of the half-width); a rate is a
percentage and its change is in percentage points (pp); money has its currency; a rounded number never changes sides of
zero or of another line it is compared with; a p-value is never printed as 0.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

MINUS = "\u2212"
ELLIPSIS = "\u2026"

_SYMBOLS = {"USD": "$", "EUR": "\u20ac", "GBP": "\u00a3", "JPY": "\u00a5", "INR": "\u20b9"}
_SHARES = {"rate", "share", "proportion", "fraction", "probability"}
_PLAIN = {"", "number", "ratio", "mean", "value", "count", "units", "1"}
_SECONDS = {
    "second": 1.0,
    "minute": 60.0,
    "hour": 3600.0,
    "day": 86400.0,
    "week": 604800.0,
    "month": 365.25 * 86400 / 12,
    "year": 365.25 * 86400,
}
_SHORT = {"s": "second", "sec": "second", "min": "minute", "h": "hour", "hr": "hour", "d": "day", "w": "week"}
_ARTICLE = {"year": "a year", "month": "a month", "week": "a week", "day": "a day", "quarter": "a quarter"}


@dataclass(frozen=True, slots=True)
class Unit:
    """What a number counts. ``label`` is the currency code or the unit's words; ``per`` ends the text ("a year")."""

    kind: Literal["share", "relative", "money", "duration", "number"]
    label: str = ""
    per: str = ""


RELATIVE = Unit("relative")
NUMBER = Unit("number")


def unit(text: str) -> Unit:
    """Read a unit as results and claims write it: ``rate``, ``USD``, ``USD/year``, ``days``, ``points``, ``orders/user``."""
    head, _, tail = text.strip().partition("/")
    if not tail and " per " in head:
        head, _, tail = head.partition(" per ")
    head, tail = head.strip(), tail.strip()
    per = _ARTICLE.get(tail, f"per {clean(human(tail))}") if tail else ""
    if re.fullmatch(r"[A-Z]{3}", head):
        return Unit("money", head, per)
    if head.lower() in _SHARES:
        return Unit("share", "", per)
    if head.lower() in {"relative", "relative lift"}:
        return Unit("relative", "", per)
    word = _SHORT.get(head, head.lower().removesuffix("s"))
    if word in _SECONDS:
        return Unit("duration", word, per)
    return Unit("number", "" if head.lower() in _PLAIN else clean(head), per)


# ---------------------------------------------------------------- numbers


@dataclass(frozen=True, slots=True)
class Written:
    """An estimate and its interval as text, all three at one precision and one scale."""

    value: str
    low: str
    high: str
    range: str


@dataclass(frozen=True, slots=True)
class _Scale:
    """factor: the number printed is the number times it; prefix and suffix belong to each number, ``tail`` to the last."""

    factor: float
    prefix: str = ""
    suffix: str = ""
    tail: str = ""
    money: bool = False


def _scale(what: Unit, change: bool, largest: float) -> _Scale:
    per = f" {what.per}" if what.per else ""
    if what.kind == "relative":
        return _Scale(100.0, suffix="%", tail=per)
    if what.kind == "share":
        return _Scale(100.0, tail=f" pp{per}") if change else _Scale(100.0, suffix="%", tail=per)
    if what.kind == "money":
        prefix = _SYMBOLS.get(what.label, f"{what.label}\u00a0")
        for size, suffix in ((1e9, "B"), (1e6, "M")):
            if largest >= size:
                return _Scale(1 / size, prefix, suffix, per, money=True)
        return _Scale(1.0, prefix, "", per, money=True)
    if what.kind == "duration":
        seconds = largest * _SECONDS[what.label]
        shown = "second"
        for word, least in (("minute", 120), ("hour", 7200), ("day", 172800), ("month", 7776000), ("year", 63115200)):
            if seconds >= least:
                shown = word
        return _Scale(_SECONDS[what.label] / _SECONDS[shown], tail=f" {shown}s{per}")
    return _Scale(1.0, tail=(f" {what.label}" if what.label else "") + per)


def _place(scaled: float, scale: _Scale, decimals: int, signed: bool) -> str:
    rounded = round(scaled, decimals)
    shown = max(decimals, 2) if scale.money and not scale.suffix and decimals > 0 else max(decimals, 0)
    sign = MINUS if rounded < 0 else "+" if signed and rounded > 0 else ""
    return f"{sign}{scale.prefix}{abs(rounded):,.{shown}f}{scale.suffix}"


def _decimals(half: float, scale: _Scale) -> int:
    """Two significant digits of the half-width. Money that has one decimal has two: a cent that is shown is not made up."""
    decimals = min(1 - math.floor(math.log10(half)), 12)
    return 2 if decimals == 1 and scale.money and not scale.suffix else decimals


def _side(x: float, line: float) -> int:
    return (x > line) - (x < line)


def _faithful(scaled: float, decimals: int, lines: Iterable[float]) -> int:
    """The fewest decimals, at least ``decimals``, at which rounding keeps the number on its side of every line."""
    for more in range(30):
        if all(_side(round(scaled, decimals + more), line) == _side(scaled, line) for line in lines):
            return decimals + more
    return decimals + 29


_CUT = 1e-14
"""An end of an interval nearer to zero than this share of it was cut there, by a test that excludes zero and says no more."""


def _beside_zero(x: float) -> str:
    return "above 0" if x > 0 else "below 0"


def written(
    value: float, low: float, high: float, what: Unit, *, change: bool = False, against: Iterable[float] = ()
) -> Written:
    """``value`` with its interval as text. ``change`` writes the sign, and a rate in pp; ``against`` are the lines
    (target, margin; zero is always one) that no rounded number may cross. Raises ValueError on NaN or infinity."""
    numbers = (value, low, high)
    if not all(math.isfinite(x) for x in numbers):
        raise ValueError(f"not a finite interval: {value}, {low}, {high}")
    if max(numbers) - min(numbers) <= 1e-12 * max(abs(x) for x in numbers):  # the last bits of a sum are no width
        # a measured time in another unit of time has digits that nobody measured
        text = _whole(value, what, change, 4) if what.kind == "duration" else exact(value, what, change=change)
        return Written(text, text, text, text)
    scale = _scale(what, change, max(abs(x) for x in numbers))
    half = abs(high - low) / 2 * scale.factor
    decimals = _decimals(half, scale) if half > 0 else 6
    lines = [0.0, *(line * scale.factor for line in against)]
    # The estimate's own side of zero says something only where the whole interval lies there.
    kept = (lines if low * high > 0 else [], lines, lines)
    texts = [
        _beside_zero(x)
        if end and 0 < abs(x) < _CUT * (high - low)
        else _place(x * scale.factor, scale, _faithful(x * scale.factor, decimals, near), change)
        for x, near, end in zip(numbers, kept, (False, True, True), strict=True)
    ]
    return Written(
        value=texts[0] + scale.tail,
        low=texts[1] + scale.tail,
        high=texts[2] + scale.tail,
        range=f"{texts[1]} to {texts[2]}{scale.tail}",
    )


def alike(x: float, low: float, high: float, what: Unit) -> str:
    """A number beside one whose interval is ``low`` to ``high``: written as precisely, and on its own side of zero."""
    scale = _scale(what, False, max(abs(low), abs(high)))
    half = abs(high - low) / 2 * scale.factor
    if half == 0:
        return rounded(x, what)
    return (
        _place(x * scale.factor, scale, _faithful(x * scale.factor, _decimals(half, scale), [0.0]), False) + scale.tail
    )


def without_unit(text: str, span: str) -> str:
    """The range ``span`` of the number ``text`` without the words of a unit that both end in: ``0.27 to 0.35``."""
    same = 0
    while same < min(len(text), len(span)) and text[-1 - same] == span[-1 - same]:
        same += 1
    start = span.find(" ", len(span) - same)
    return span if start < 0 or not same else span[:start]


def exact(value: float, what: Unit, *, change: bool = False) -> str:
    """A number somebody typed or counted: all of its digits, with separators; nothing is rounded to an interval."""
    return _whole(value, what, change, 12)


def rounded(value: float, what: Unit, *, change: bool = False) -> str:
    """A number without an interval of its own (the end of a range, a turning point): three significant digits."""
    return _whole(value, what, change, 3)


def _whole(value: float, what: Unit, change: bool, digits: int) -> str:
    if not math.isfinite(value):
        raise ValueError(f"not a finite number: {value}")
    scale = _scale(what, change, 0.0 if what.kind == "money" else abs(value))
    scaled = float(f"{value * scale.factor:.{digits}g}")
    text = format(Decimal(f"{abs(scaled):.12g}"), ",f")
    if scale.money and "." in text:
        text += "0" * (2 - len(text.partition(".")[2]))
    sign = MINUS if scaled < 0 else "+" if change and scaled > 0 else ""
    return f"{sign}{scale.prefix}{text}{scale.suffix}{scale.tail}"


def axis(value: float, largest: float, what: Unit) -> str:
    """A round number on an axis that reaches ``largest``: ``$2M``, ``$500,000``, ``0``."""
    scale = _scale(what, False, largest)
    digits = format(Decimal(f"{abs(value * scale.factor):.6g}"), ",f")
    return f"{MINUS if value < 0 else ''}{scale.prefix}{digits}{scale.suffix}" if value else "0"


def between(low: float, high: float, what: Unit, *, change: bool = False, whole: bool = True) -> str:
    """A range that somebody declared, its unit written once; ``whole`` keeps all digits, else three significant ones."""
    write = exact if whole else rounded
    first, last = write(low, what, change=change), write(high, what, change=change)
    tail = _scale(what, change, 0.0).tail
    return f"{first.removesuffix(tail)} to {last}"


def unbroken(text: str) -> str:
    """A minus kept on the line of its amount by a word joiner: browsers may break between a minus and a currency sign,
    and a reader who meets "$1,600" at the start of a line reads a gain."""
    return re.sub(f"{MINUS}(?=[{''.join(_SYMBOLS.values())}])", f"{MINUS}\u2060", text)


def size(text: str) -> str:
    """The text of a signed number without its sign, for sentences that say "rises by" or "falls by"."""
    return text.removeprefix("+").removeprefix(MINUS)


def p_value(p: float, alpha: float = 0.05) -> str:
    """``p < 0.001``, ``p = 0.012``, ``p = 0.43``; never ``p = 0``, never rounded across ``alpha``."""
    if not 0 <= p <= 1:
        raise ValueError(f"not a p-value: {p}")
    if p < 0.001:
        return "p < 0.001"
    if p > 0.99:
        return "p > 0.99"
    decimals = _faithful(p, 3 if p < 0.1 else 2, [alpha])
    return f"p = {round(p, decimals):.{decimals}f}"


def probability(p: float, against: Iterable[float] = ()) -> str:
    """``97%``, ``over 99%``, ``under 1%``: a simulated probability is never printed as certain."""
    if not 0 <= p <= 1:
        raise ValueError(f"not a probability: {p}")
    if p > 0.99:
        return "over 99%"
    if p < 0.01:
        return "under 1%"
    decimals = _faithful(100 * p, 0, [100 * line for line in against])
    return f"{round(100 * p, decimals):.{max(decimals, 0)}f}%"


LIKELIHOOD = (
    (0.99, "virtually certain"),
    (0.90, "very likely"),
    (0.66, "likely"),
    (0.33, "about as likely as not"),
    (0.10, "unlikely"),
    (0.01, "very unlikely"),
    (0.0, "exceptionally unlikely"),
)
"""Lowest probability and word. Mastrandrea et al. (2010), IPCC guidance note on uncertainties, table 1."""


def times(factor: float) -> str:
    """``2.6 times``, ``0.94 times``: two significant digits, and all of those before the point."""
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"not a factor: {factor}")
    decimals = max(1 - math.floor(math.log10(float(f"{factor:.2g}"))), 0)
    return f"{factor:,.{decimals}f} times"


def loss(share: float) -> str:
    """An expected loss relative to control, two significant digits: ``0.012%``; a very small one as a bound, never as 0."""
    if not (math.isfinite(share) and share >= 0):
        raise ValueError(f"not a loss: {share}")
    return "under 0.001%" if share < 1e-5 else f"{float(f'{100 * share:.2g}'):.12g}%"


def likelihood(p: float) -> str:
    """The fixed word for a probability, so that two reports with one figure say one thing."""
    return next(word for least, word in LIKELIHOOD if p >= least)


def count(n: int) -> str:
    return f"{n:,}".replace("-", MINUS)


def statistic(x: float) -> str:
    """A test statistic, three significant digits; a very small one as a bound, never as 0."""
    if not math.isfinite(x):
        raise ValueError(f"not a finite statistic: {x}")
    if x != 0 and abs(x) < 0.001:
        return "< 0.001" if x > 0 else f"> {MINUS}0.001"
    if abs(x) >= 1000:
        return f"{x:,.0f}".replace("-", MINUS)
    return f"{x:.3g}".replace("-", MINUS)


def level(x: float) -> str:
    return f"{100 * x:.6g}%"


def moment(text: str) -> str:
    """An ISO 8601 date, or date and time, for people; midnight is the date alone."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(?:\.\d+)?\s*(Z|[+-]\d\d:?\d\d)?)?", text.strip())
    if match is None:
        return clean(text)
    day, minute, second, zone = match.groups()
    if minute is None or (minute == "00:00" and second in (None, ":00")):
        return str(day)
    return f"{day} {minute}{' UTC' if zone in ('Z', '+00:00', '+0000') else f' {zone}' if zone else ''}"


# ---------------------------------------------------------------- names

_BIDI = {chr(c) for c in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def clean(text: str) -> str:
    """Somebody else's text, safe to print: control and direction-changing characters become visible codes (a terminal
    escape or a right-to-left override could otherwise rewrite the figures beside it); white space becomes one space."""
    out = []
    for char in text:
        if char in "\t\n\r ":
            out.append(" ")
        elif char in _BIDI or unicodedata.category(char) in ("Cc", "Cs", "Co", "Zl", "Zp"):
            out.append(f"[U+{ord(char):04X}]")
        else:
            out.append(char)
    return re.sub(r" {2,}", " ", "".join(out)).strip()


def lines(text: str) -> str:
    """As ``clean``, line by line, keeping indentation: for SQL."""
    kept = []
    for line in text.expandtabs(4).splitlines():
        body = line.lstrip(" ")
        kept.append(" " * (len(line) - len(body)) + clean(body))
    return "\n".join(kept).strip("\n")


def human(name: str) -> str:
    """``click_rate`` as ``click rate``; anything that is not an identifier stays as it is."""
    return name.replace("_", " ").strip() if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else name


def isolate(text: str) -> str:
    """Text that reads right to left is fenced off, so that it cannot reorder the sentence it stands in."""
    if any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in text):
        return f"\u2068{text}\u2069"
    return text


def fenced(prose: str) -> str:
    """A sentence with each stretch of right-to-left text in it fenced off, so that the figures around it keep their order."""
    out: list[str] = []
    at = 0
    while at < len(prose):
        if not _reads_left(prose[at]):
            out.append(prose[at])
            at += 1
            continue
        end = last = at
        while end < len(prose) and (
            _reads_left(prose[end]) or unicodedata.bidirectional(prose[end]) in ("WS", "NSM", "ON")
        ):
            last = end if _reads_left(prose[end]) or unicodedata.bidirectional(prose[end]) == "NSM" else last
            end += 1
        fence = at == 0 or prose[at - 1] != "\u2068"
        out.append(f"\u2068{prose[at : last + 1]}\u2069" if fence else prose[at : last + 1])
        at = last + 1
    return "".join(out)


def _reads_left(char: str) -> bool:
    return unicodedata.bidirectional(char) in ("R", "AL")


def shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + ELLIPSIS


def capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


_ASCII = str.maketrans(
    {
        MINUS: "-",
        ELLIPSIS: "...",
        "\u00a0": " ",
        "\u20ac": "EUR ",
        "\u00a3": "GBP ",
        "\u00a5": "JPY ",
        "\u20b9": "INR ",
        "\u2013": "-",
        "\u2014": "-",
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2265": ">=",
        "\u2264": "<=",
        "\u00d7": "x",
        "\u00b7": "-",
        "\u25b2": "^",
        "\u25cf": "+",
        "\u25cb": "~",
        "\u25bc": "v",
        "\u25ca": "!",
        "\u25a0": "X",
        "\u25a1": "-",
        "\u2502": "|",
        "\u2500": "-",
        "\u2501": "=",
        "\u2068": "",
        "\u2069": "",
    }
)


def ascii_only(text: str) -> str:
    """The text for a terminal that has ASCII alone; what has no equivalent is shown as its code."""
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")


def stored(n: int | None) -> str:
    """Bytes in the unit that suits them: ``312 MB``; None is ``not known``."""
    if n is None:
        return "not known"
    value, unit = float(n), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "bytes" or value >= 99.95 else f"{value:,.1f} {unit}"
