"""How numbers become text: the rules, and the laws that no rounding may break."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from payoff import formats
from payoff.formats import MINUS, RELATIVE, Unit, unit

FINITE = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False)


@pytest.mark.parametrize(
    ("numbers", "what", "change", "value", "interval"),
    [
        # a rate is a percentage, its change is in points; two significant digits of the half-width
        ((0.0997, 0.0960, 0.1034), "share", False, "9.97%", "9.60% to 10.34%"),
        ((0.0103, 0.0061, 0.0145), "share", True, "+1.03 pp", "+0.61 to +1.45 pp"),
        ((-0.0004, -0.0026, 0.0018), "rate", True, f"{MINUS}0.04 pp", f"{MINUS}0.26 to +0.18 pp"),
        # money: one scale for all three, the period once
        ((2_411_234, 1_890_000, 2_930_000), "USD/year", False, "$2.41M a year", "$1.89M to $2.93M a year"),
        ((412_345, -90_000, 1_200_000), "EUR", False, "\u20ac0.41M", f"{MINUS}\u20ac0.09M to \u20ac1.20M"),
        ((14_723, 6_900, 23_600), "CHF", False, "CHF\u00a014,700", "CHF\u00a06,900 to CHF\u00a023,600"),
        ((0.42, 0.17, 0.68), "USD per user", True, "+$0.42 per user", "+$0.17 to +$0.68 per user"),
        ((3.1, -2.0, 8.2), "points", True, "+3.1 points", f"{MINUS}2.0 to +8.2 points"),
        ((1234.5, 1100, 1400), "orders", False, "1,230 orders", "1,100 to 1,400 orders"),
        # durations in the unit that people would use
        ((0.42, 0.30, 0.61), "years", False, "5.0 months", "3.6 to 7.3 months"),
        ((45.0, 40.0, 50.0), "s", False, "45.0 seconds", "40.0 to 50.0 seconds"),
    ],
)
def test_an_estimate_is_rounded_to_its_interval(
    numbers: tuple[float, float, float], what: str, change: bool, value: str, interval: str
) -> None:
    shown = formats.written(*numbers, unit(what), change=change)
    assert (shown.value, shown.range) == (value, interval)


def test_an_estimate_that_is_nothing_next_to_its_interval_is_written_as_nothing() -> None:
    shown = formats.written(-4e-7, -0.0018, 0.0018, unit("share"), change=True)
    assert (shown.value, shown.range) == ("0.00 pp", f"{MINUS}0.18 to +0.18 pp")


def test_a_relative_lift_is_in_percent_with_its_sign() -> None:
    assert formats.written(0.1153, 0.0573, 0.1763, RELATIVE, change=True).range == "+5.7% to +17.6%"


def test_what_was_typed_keeps_its_digits() -> None:
    assert formats.exact(400_000, unit("USD")) == "$400,000"
    assert formats.exact(1_234_567.5, unit("USD")) == "$1,234,567.50"
    assert formats.exact(0.1 + 0.2, unit("USD")) == "$0.30"
    assert formats.exact(0.001, unit("share"), change=True) == "+0.1 pp"
    assert formats.exact(-50_000, unit("USD")) == f"{MINUS}$50,000"
    assert formats.between(0.3, 4.5, unit("USD per click")) == "$0.30 to $4.50 per click"
    assert formats.rounded(0.38712, unit("USD per click")) == "$0.387 per click"
    assert formats.rounded(452.0, unit("days")) == "14.9 months"


def test_a_number_beside_another_is_as_precise_and_on_its_own_side_of_zero() -> None:
    yearly = unit("USD/year")
    written = [formats.alike(x, -32_912, 31_685, yearly) for x in (-860.0, -300.0, 20.0, -1780.0)]
    assert written == [f"{MINUS}$1,000 a year", f"{MINUS}$300 a year", "$20 a year", f"{MINUS}$2,000 a year"]
    assert formats.alike(1234.5, 7.0, 7.0, unit("USD")) == "$1,230"


def test_a_minus_stays_with_its_amount() -> None:
    assert formats.unbroken(f"{MINUS}$5 to {MINUS}5 pp") == f"{MINUS}\u2060$5 to {MINUS}5 pp"


def test_an_axis_has_short_numbers() -> None:
    assert [formats.axis(x, 4e6, unit("USD")) for x in (-1e6, 0, 2.5e6)] == [f"{MINUS}$1M", "0", "$2.5M"]


def _number(text: str) -> float:
    if text in ("above 0", "below 0"):  # an end cut at zero: a hair on one side of it
        return 5e-324 if text == "above 0" else -5e-324
    return float(text.replace(MINUS, "-").replace("+", "").replace(",", "").rstrip("%"))


@given(FINITE, st.floats(1e-9, 1e9), st.floats(0, 1))
def test_rounding_never_moves_an_end_across_zero(low: float, width: float, share: float) -> None:
    high = low + width
    assume(high > low)
    value = min(max(low + share * width, low), high)
    shown = formats.written(value, low, high, Unit("number"))
    ends = [(low, shown.low), (high, shown.high)]
    for number, text in [*ends, (value, shown.value)] if low * high > 0 else ends:
        if abs(number) > 1e-9:
            assert math.copysign(1, _number(text)) == math.copysign(1, number)
            assert _number(text) != 0


@given(st.floats(-1, 1), st.floats(1e-6, 1), st.floats(-1, 1))
def test_rounding_never_moves_an_end_across_a_margin(low: float, width: float, line: float) -> None:
    high = low + width
    assume(abs(low - line) > 1e-6)
    assume(abs(high - line) > 1e-6)
    shown = formats.written((low + high) / 2, low, high, Unit("number"), against=[line])
    assert (_number(shown.low) > line) == (low > line)
    assert (_number(shown.high) > line) == (high > line)


@given(FINITE, st.floats(1e-6, 1e6))
def test_rounding_stays_within_a_tenth_of_the_half_width(value: float, half: float) -> None:
    low, high = value - half, value + half
    assume(high > low)
    real_half = (high - low) / 2
    shown = formats.written(value, low, high, Unit("number"))
    assert abs(_number(shown.value) - value) <= 0.051 * real_half + 1e-9 * abs(value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_never_written(bad: float) -> None:
    for numbers in ((bad, 0.0, 1.0), (0.0, bad, 1.0), (0.0, 0.0, bad)):
        with pytest.raises(ValueError, match="finite"):
            formats.written(*numbers, Unit("number"))
    with pytest.raises(ValueError, match="finite"):
        formats.exact(bad, Unit("number"))
    with pytest.raises(ValueError, match="finite"):
        formats.statistic(bad)


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0, "p < 0.001"), (0.00099, "p < 0.001"), (0.0124, "p = 0.012"), (0.43, "p = 0.43"), (1.0, "p > 0.99")],
)
def test_p_values(p: float, text: str) -> None:
    assert formats.p_value(p) == text


@given(st.floats(0, 1), st.sampled_from([0.01, 0.05, 0.1]))
def test_a_p_value_is_never_zero_and_never_crosses_alpha(p: float, alpha: float) -> None:
    text = formats.p_value(p, alpha)
    relation, number = text.split()[1:]
    assert float(number) > 0
    if relation == "=" and abs(p - alpha) > 1e-9:
        assert (float(number) < alpha) == (p < alpha)


def test_a_simulated_probability_is_never_certain() -> None:
    assert formats.probability(1.0) == "over 99%"
    assert formats.probability(0.0) == "under 1%"
    assert formats.probability(0.7996, [0.8]) == "79.96%"
    assert [formats.likelihood(p) for p in (1.0, 0.95, 0.5, 0.2, 0.0)] == [
        "virtually certain",
        "very likely",
        "about as likely as not",
        "unlikely",
        "exceptionally unlikely",
    ]


def test_statistics_and_moments() -> None:
    assert formats.statistic(96.4123) == "96.4"
    assert formats.statistic(1e-7) == "< 0.001"
    assert formats.moment("2026-12-15T00:00:00+00:00") == "2026-12-15"
    assert formats.moment("2026-12-15T08:30:11Z") == "2026-12-15 08:30 UTC"
    assert formats.level(1 - 0.05) == "95%"


def test_names_from_elsewhere_cannot_rewrite_what_stands_beside_them() -> None:
    assert formats.clean("a\x1b[31m\u202eb\n c") == "a[U+001B][31m[U+202E]b c"
    assert formats.isolate("\u05d0") == "\u2068\u05d0\u2069"
    assert formats.isolate("plain") == "plain"
    assert formats.human("click_rate") == "click rate"
    assert formats.human("No E-Mail_1") == "No E-Mail_1"
    assert formats.lines("SELECT 1\n    FROM x\x07") == "SELECT 1\n    FROM x[U+0007]"
    assert formats.ascii_only(f"{MINUS}\u20ac1 \u25cf \u05d0") == r"-EUR 1 + \u05d0"


def test_a_cent_that_is_shown_is_not_made_up() -> None:
    # Two significant digits of the half-width, 1.3, would be one decimal, and the second a zero that nobody counted.
    text = formats.written(-1.618, -2.957, -0.279, formats.unit("USD"), change=True)
    assert (text.value, text.range) == (f"{MINUS}$1.62", f"{MINUS}$2.96 to {MINUS}$0.28")
    assert formats.written(-1.618, -2.957, -0.279, formats.unit("points")).value == f"{MINUS}1.6 points"


def test_factors_and_losses() -> None:
    assert [formats.times(x) for x in (2.598, 0.944, 0.9995, 12.4, 1234.0)] == [
        "2.6 times",
        "0.94 times",
        "1.0 times",
        "12 times",
        "1,234 times",
    ]
    assert [formats.loss(x) for x in (0.0, 0.0000021, 0.000123, 0.0143)] == [
        "under 0.001%",
        "under 0.001%",
        "0.012%",
        "1.4%",
    ]
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not a factor"):
            formats.times(bad)
    for bad in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="not a loss"):
            formats.loss(bad)


def test_each_stretch_of_right_to_left_text_is_fenced() -> None:
    alef, bet = "\u05d0", "\u05d1"
    assert formats.fenced("plain (+2.5)") == "plain (+2.5)"
    assert formats.fenced(f"{alef} {bet} +2.5 USD") == f"\u2068{alef} {bet}\u2069 +2.5 USD"
    assert formats.fenced(f"a {alef}: +1, b {bet}: -1") == f"a \u2068{alef}\u2069: +1, b \u2068{bet}\u2069: -1"
    assert formats.fenced(f"\u2068{alef}\u2069 +1") == f"\u2068{alef}\u2069 +1"


def test_a_range_beside_its_number_needs_no_unit_of_its_own() -> None:
    assert formats.without_unit("+0.311 clicks per user", "+0.270 to +0.352 clicks per user") == "+0.270 to +0.352"
    assert formats.without_unit("+$1.62", "+$0.28 to +$2.96") == "+$0.28 to +$2.96"
    assert formats.without_unit("31.8%", "31.4% to 32.2%") == "31.4% to 32.2%"
    assert formats.without_unit("1", "1") == "1"


def test_an_end_that_was_cut_at_zero_is_not_spelt_out() -> None:
    """A corrected test that excludes zero cuts its interval there: the end is a hair on the value's side."""
    assert formats.written(8.71, 2e-15, 17.63, formats.unit("USD"), change=True).range == "above 0 to +$17.63"
    assert formats.written(-0.02, -0.04, -1e-18, formats.unit("share"), change=True).range == "\u22124.0 to below 0 pp"
    assert formats.written(1.0, 0.001, 2.0, formats.unit("USD"), change=True).low == "+$0.001"


def test_the_last_bits_of_a_sum_are_no_width() -> None:
    text = formats.written(1.0, 1.0 - 2e-16, 1.0, formats.unit("share"))
    assert (text.value, text.range) == ("100%", "100%")
