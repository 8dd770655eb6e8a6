"""The nouns: what they accept, what they refuse, and that they are frozen."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from payoff.spec import nouns


def parse(kind: Any, raw: object) -> Any:
    return TypeAdapter(kind).validate_python(raw, strict=True)


def refusal(kind: Any, raw: object) -> str:
    with pytest.raises(ValidationError) as caught:
        parse(kind, raw)
    return str(caught.value)


def test_durations() -> None:
    assert parse(nouns.Duration, "48h") == parse(nouns.Duration, " 2 d ") == timedelta(days=2)
    assert parse(nouns.Duration, "1.5w") == timedelta(days=10.5)
    assert parse(nouns.Duration, timedelta(seconds=90)) == timedelta(seconds=90)
    for wrong in ("14", "d", "1 month", "-1d", "1d 2h", 14, 1.5, None, "\uff11d", "9" * 5000 + "d"):
        assert "a duration is a number and one of s, m, h, d, w" in refusal(nouns.Duration, wrong)
    for wrong in ("0d", "0.0000000001s", "99999999999999d", timedelta(-1), "36526d"):
        assert "longer than zero and at most 100 years" in refusal(nouns.Duration, wrong)


@given(st.timedeltas(min_value=timedelta(microseconds=1), max_value=timedelta(days=36525)))
def test_a_formatted_duration_reads_back_as_the_same(span: timedelta) -> None:
    assert parse(nouns.Duration, nouns.format_duration(span)) == span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(86400, "1d"), (172800, "2d"), (5400, "90m"), (3600, "1h"), (61, "61s"), (1_000_001, "1000001s")],
)
def test_a_duration_is_written_in_the_largest_unit_that_divides_it(seconds: int, text: str) -> None:
    assert nouns.format_duration(timedelta(seconds=seconds)) == text


def test_moments_and_days() -> None:
    assert parse(nouns.Moment, "2026-12-15") == parse(nouns.Moment, date(2026, 12, 15)) == datetime(2026, 12, 15)
    assert parse(nouns.Moment, "2026-12-15T08:30") == datetime(2026, 12, 15, 8, 30)
    assert parse(nouns.Moment, "2026-12-15 08:30:01.5Z") == datetime(2026, 12, 15, 8, 30, 1, 500_000, UTC)
    assert parse(nouns.Moment, "2026-12-15T08:30+02:00") == datetime(2026, 12, 15, 6, 30, tzinfo=UTC)
    assert parse(nouns.Day, "2027-03-31") == parse(nouns.Day, date(2027, 3, 31)) == date(2027, 3, 31)
    # left to pydantic, each of these numbers is seconds since 1970
    for wrong in (20261215, "20261215", 1.8e9, True, "15.12.2026", "2026-W50-2", "2026-12-15T25", None):
        assert "a date is written 2026-12-15" in refusal(nouns.Moment, wrong)
        assert "a date is written 2026-12-15" in refusal(nouns.Day, wrong)
    assert "a date is written" in refusal(nouns.Day, "2026-12-15T00:00")
    for kind in (nouns.Moment, nouns.Day):
        assert "'2026-02-30' is not in the calendar" in refusal(kind, "2026-02-30")


@pytest.mark.parametrize("wrong", ["", "2nd", "a b", "a-b", "é", "a\n", "a.b", 'a"', "a" * 101])
def test_what_is_not_a_name(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"is not a name|at most 100 characters"):
        nouns.check_name(wrong)


def test_messages_show_user_text_on_one_line_and_cut() -> None:
    assert nouns.shown("a\nb\u202e\x1b[31m") == "'a\\nb\\u202e\\x1b[31m'"
    assert nouns.shown("x" * 10_000) == "'" + "x" * 59 + "…'"


def test_hints_are_for_near_slips_only() -> None:
    assert nouns.hint("return_rat", ["return_rate", "revenue"]) == "; did you mean 'return_rate'?"
    assert nouns.hint("segments", ["assignment"]) == ""
    assert nouns.hint("x" * 10_000, ["x" * 9_999]) == ""


def test_caps() -> None:
    def capped(cap: object) -> Any:
        return nouns.CountMetric.model_validate({"kind": "count", "from": "a", "cap": cap}, strict=True).cap

    assert capped(250) == 250.0
    assert capped("p99.5") == capped({"percentile": 99.5}) == nouns.Percentile(percentile=99.5, of="all")
    for wrong in (True, 0, -1, "p50", "p100", "99", "p", {"percentile": "99"}, {"of": "all"}, [99]):
        with pytest.raises(ValidationError):
            capped(wrong)


@pytest.mark.parametrize(("raw", "arm"), [("off", "off"), (True, "true"), (False, "false"), (0, "0"), (7, "7")])
def test_arms_are_text(raw: object, arm: str) -> None:
    assignment = nouns.Assignment.model_validate(
        {"source": "s", "variant": "v", "control": raw, "split": {arm: 1, "other": 1}}, strict=True
    )
    assert assignment.control_arm == assignment.control == arm
    assert nouns.Assignment(source="s", variant="v", control=raw).control == arm  # type: ignore[arg-type]


def test_an_assignment_that_names_a_source_adds_nothing_to_it() -> None:
    for key, value in {"time": "t", "one_row_per": "user", "entity": {"user": "u"}, "links": {"a": "b"}}.items():
        with pytest.raises(ValidationError, match=f"{key} belongs to the source 's'"):
            nouns.Assignment.model_validate({"source": "s", "variant": "v", "control": "c", key: value})
    assert nouns.Assignment(source="s", variant="v", control="c", where="x = 1").where == "x = 1"


def test_the_parts_of_a_ratio() -> None:
    part = nouns.RatioPart(sum="orders.amount * 1.19")
    assert (part.source, part.column) == ("orders", "amount * 1.19")
    part = nouns.RatioPart(count="orders")
    assert (part.source, part.column) == ("orders", None)
    for wrong in ({}, {"count": "a", "sum": "a.b"}, {"sum": "amount"}, {"sum": "orders."}):
        with pytest.raises(ValidationError):
            nouns.RatioPart.model_validate(wrong)


def test_the_sources_of_a_metric() -> None:
    def reads(**metric: object) -> Any:
        return nouns.sources_of(TypeAdapter(nouns.Metric).validate_python(metric))

    assert reads(kind="count", **{"from": "a"}) == ((("from",), "a"),)
    assert reads(kind="conversion", to="a", after="b") == ((("to", "source"), "a"), (("after", "source"), "b"))
    assert reads(kind="ratio", numerator={"sum": "a.x"}, denominator={"count": "b"}) == (
        (("numerator", "sum"), "a"),
        (("denominator", "count"), "b"),
    )


@pytest.mark.parametrize("threshold", ["roi > 0", "net>=250000", "amount < -1.5e3"])
def test_a_threshold_compares_with_a_number(threshold: str) -> None:
    assert nouns.Decision(threshold=threshold, probability=0.8).threshold == threshold


@pytest.mark.parametrize("threshold", ["profit > 0", "roi", "roi > x", "roi = 1", "roi > 0 or net > 0", "roi > 1\n2"])
def test_what_is_not_a_threshold(threshold: str) -> None:
    with pytest.raises(ValidationError, match="does not compare roi, net or amount with a number"):
        nouns.Decision(threshold=threshold, probability=0.8)


@pytest.mark.parametrize(
    "zone", ["Berlin", "", "Europe", "../etc/passwd", "/etc/localtime", "x" * 5000, "a\0b", "\ud800"]
)
def test_what_is_not_a_time_zone(zone: str) -> None:
    for make in (
        lambda: nouns.ProjectSpec(version=1, project="p", timezone=zone),
        lambda: nouns.Source(file="a", timezone=zone),
    ):
        with pytest.raises(ValidationError):
            make()


def test_a_url_is_not_in_the_representation() -> None:
    assert "secret" not in repr(nouns.PostgresConnection(engine="postgres", url="postgresql://u:secret@h/d"))


def test_values_are_ordered() -> None:
    assert nouns.Value(value=1, low=1, high=1).value == 1
    for wrong in ({"low": 2}, {"high": 0}, {"low": 2, "high": 0}):
        with pytest.raises(ValidationError, match="low <= value <= high does not hold"):
            nouns.Value(value=1, **wrong)  # type: ignore[arg-type]


def every_model() -> list[type[BaseModel]]:
    return [m for m in vars(nouns).values() if isinstance(m, type) and issubclass(m, nouns.Noun)]


@pytest.mark.parametrize("model", every_model())
def test_nouns_are_frozen_closed_and_finite(model: type[BaseModel]) -> None:
    assert model.model_config["frozen"] is True
    assert model.model_config["extra"] == "forbid"
    assert model.model_config["allow_inf_nan"] is False
