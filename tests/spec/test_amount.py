"""The language of amounts: what it reads, what it computes, and what it says when it cannot."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payoff.errors import UsageError
from payoff.spec.amount import (
    Amount,
    AmountError,
    Attributed,
    Binary,
    Effect,
    Negative,
    Node,
    Number,
    PopulationOf,
    Reference,
    ValueOf,
    VolumeOf,
    parse,
    period_text,
)

YEAR = timedelta(days=365)


def compute(text: str, **values: float) -> float:
    """The amount where value(NAME) is bound to a number."""
    return float(parse(text).evaluate({ValueOf(name): value for name, value in values.items()}))


# ---------------------------------------------------------------- what it reads


def test_reads_the_amount_of_the_chatbot_claim() -> None:
    amount = parse("effect(aht) * value(agent_second) * volume(conversations, 365d)")
    assert amount.root == Binary(
        "*",
        Binary("*", Effect("aht"), ValueOf("agent_second")),
        VolumeOf("conversations", YEAR),
    )
    assert amount.effects == (("aht", None),)
    assert amount.values == ("agent_second",)
    assert amount.volumes == (("conversations", YEAR),)
    assert amount.populations == ()
    assert amount.period == YEAR


def test_reads_populations_with_and_without_a_period() -> None:
    assert parse("population(user)").populations == (("user", None),)
    assert parse("population(user)").period is None
    assert parse("population(user, 48h)").populations == (("user", timedelta(hours=48)),)
    assert parse("volume(orders, 365d) / population(user)").period == YEAR


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("effect(spend, mens)", "mens"),
        ('effect(spend, "Mens E-Mail")', "Mens E-Mail"),
        ("effect(spend, 'Mens E-Mail')", "Mens E-Mail"),
        ("effect(spend, 'say \"hi\"')", 'say "hi"'),
    ],
)
def test_reads_an_arm_by_name_or_in_quotes(text: str, arm: str) -> None:
    assert parse(text).effects == (("spend", arm),)
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("attributed(all, last)", Attributed("all", "last")),
        ("attributed(all, last, home)", Attributed("all", "last", "home")),
        ("attributed(all, 'time_decay 7d', \"channel: Paid, social\")", Attributed("all", "time_decay 7d", "channel: Paid, social")),
    ],
)  # fmt: skip
def test_reads_credit_by_model_and_touchpoint(text: str, found: Attributed) -> None:
    amount = parse(text)
    assert amount.root == found
    assert amount.attributed == (found,)
    assert (amount.effects, amount.period) == ((), None)
    assert parse(str(amount)) == amount
    assert float(parse(f"2 * {text}").evaluate({found: 3.0})) == 6.0


def test_names_each_reference_once_in_the_order_written() -> None:
    amount = parse("value(b) * effect(x) + value(a) * effect(x, t) + value(b)")
    assert amount.values == ("b", "a")
    assert amount.effects == (("x", None), ("x", "t"))
    assert [reference.offset for reference in amount.references()] == [0, 11, 23, 34]


@pytest.mark.parametrize(
    ("text", "span"),
    [("30s", 30.0), ("5m", 300.0), ("48h", 172800.0), ("14d", 1209600.0), ("2w", 1209600.0), ("0.5d", 43200.0)],
)
def test_reads_every_unit_of_period(text: str, span: float) -> None:
    assert parse(f"volume(a, {text})").volumes == (("a", timedelta(seconds=span)),)


@pytest.mark.parametrize("text", ["365d", "48h", "90m", "7s", "1.5s"])
def test_a_period_reads_back_as_itself(text: str) -> None:
    (volume,) = parse(f"volume(a, {text})").volumes
    assert parse(f"volume(a, {period_text(volume[1])})").volumes == (volume,)


# ---------------------------------------------------------------- what it computes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 - 2 - 3", -4.0),
        ("1 - (2 - 3)", 2.0),
        ("12 / 3 / 2", 2.0),
        ("12 / (3 / 2)", 8.0),
        ("2 + 3 * 4", 14.0),
        ("(2 + 3) * 4", 20.0),
        ("-2 * 3", -6.0),
        ("2 * -3", -6.0),
        ("--2", 2.0),
        ("-(1 + 2)", -3.0),
        (".5 + 1. + 1e2 + 2.5E-1", 101.75),
        ("  7 ", 7.0),
    ],
)
def test_computes_as_arithmetic_does(text: str, expected: float) -> None:
    assert compute(text) == expected
    assert float(parse(str(parse(text))).evaluate({})) == expected


def test_computes_numbers_and_arrays_alike() -> None:
    amount = parse("effect(x) * value(v) - population(user) / 4")
    bindings: dict[Reference, float] = {ValueOf("v"): 3.0, PopulationOf("user"): 8.0}
    assert float(amount.evaluate({Effect("x"): 2.0, **bindings})) == 4.0
    np.testing.assert_array_equal(
        amount.evaluate({Effect("x"): np.array([2.0, 0.0, -1.0]), **bindings}), [4.0, -2.0, -5.0]
    )


@pytest.mark.parametrize(("divisor", "words"), [(0.0, "is zero"), (np.array([-1.0, 2.0]), "can be zero")])
def test_refuses_to_divide_by_what_can_be_zero(divisor: object, words: str) -> None:
    with pytest.raises(AmountError, match="divides by value\\(v\\) - 1, which " + words) as caught:
        parse("5 / (value(v) - 1)").evaluate({ValueOf("v"): np.asarray(divisor) + 1})
    assert caught.value.offset == 2


def test_divides_by_draws_on_one_side_of_zero() -> None:
    np.testing.assert_array_equal(parse("6 / value(v)").evaluate({ValueOf("v"): np.array([-1.0, -3.0])}), [-6.0, -2.0])


def test_refuses_an_answer_beyond_any_number() -> None:
    with pytest.raises(AmountError, match="too large to be a number"):
        parse("1e308 * 1e308").evaluate({})


# ---------------------------------------------------------------- what it says


@pytest.mark.parametrize(
    ("text", "offset", "words"),
    [
        ("", 0, "the amount is empty"),
        ("   ", 0, "the amount is empty"),
        ("1 +", 3, "ends too early"),
        ("* 2", 0, "a number or a function is missing before '\\*'"),
        ("(1 + 2", 0, "this '\\(' is never closed"),
        ("1 + 2)", 5, "this '\\)' closes nothing"),
        ("1, 2", 1, "a comma only separates"),
        ("2 effect(x)", 2, "an operator .* is missing before 'effect'"),
        ("policy_value(a)", 0, "'policy_value' is not known in this version; an amount is built from effect"),
        ("1 + efect(x)", 4, "did you mean 'effect'"),
        ("aht * 2", 0, "'aht' stands alone; wrap it as one of effect\\(aht\\)"),
        ("effect", 0, "'effect' needs its parentheses"),
        ("effect()", 7, "effect\\(\\) needs a name first"),
        ("effect(3)", 7, "effect\\(\\) needs a name first"),
        ("effect(a b)", 9, "'b' does not belong inside effect\\(\\)"),
        ("effect(a", 8, "effect\\( is never closed"),
        ("effect(a, 3)", 10, "the second part of effect\\(\\) is an arm"),
        ('effect(a, "")', 10, "the second part of effect\\(\\) is an arm"),
        ("value(a, b)", 9, "value\\(\\) takes one name"),
        ("volume(a)", 0, "volume\\(\\) needs a period"),
        ("volume(a, 365)", 10, "is a period"),
        ("volume(a, 0d)", 10, "longer than zero"),
        ("volume(a, 99999999999999d)", 10, "too long"),
        ("population(a, b)", 14, "is a period"),
        ("volume(a, 365d) + population(u, 30d)", 32, "mixes the periods 365d and 30d"),
        ("attributed()", 11, "attributed\\(\\) needs a name first"),
        ("attributed(a)", 0, "attributed\\(\\) needs a model"),
        ("attributed(a, 7d)", 14, "'7d' is not a name or a quoted text"),
        ("attributed(a, '')", 14, "'' is not a name or a quoted text"),
        ("attributed(a, last, 3)", 20, "'3' is not a name or a quoted text"),
        ("attributed(a, last,)", 19, "'\\)' is not a name or a quoted text"),
        ("attributed(a, last, b, c)", 21, "',' does not belong inside attributed\\(\\)"),
        ("attributed(a, last", 18, "attributed\\( is never closed"),
        ("effect(a, b, c)", 11, "',' does not belong inside effect\\(\\)"),
        ("365d", 0, "only stands inside volume"),
        ("'arm'", 0, "only stands inside effect"),
        ("1_000", 0, "'1_000' is neither a number"),
        ("1.2.3", 0, "'1.2.3' is neither a number"),
        ("5 + 3y", 4, "'3y' is neither a number"),
        ("2 ^ 3", 2, "'\\^' is not known"),
        ("2 $", 2, "'\\$' has no meaning"),
        ("effect(a, 'b)", 10, "does not end"),
        ("1e999", 0, "too large"),
    ],
)
def test_says_what_is_wrong_and_where(text: str, offset: int, words: str) -> None:
    with pytest.raises(AmountError, match=words) as caught:
        parse(text)
    assert caught.value.offset == offset
    assert caught.value.message == str(caught.value)
    assert isinstance(caught.value, UsageError)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text", ["(" * 5000 + "1" + ")" * 5000, "-" * 5000 + "1", "1" + " + 1" * 5000, "(" * 60 + "1" + ")" * 60]
)
def test_refuses_a_bomb(text: str) -> None:
    with pytest.raises(AmountError, match=r"deep|at most"):
        parse(text)


def test_the_longest_amount_allowed_is_computed() -> None:
    amount = parse("1" + " + 1" * 99)
    assert float(amount.evaluate({})) == 100.0
    assert parse(str(amount)) == amount


# ---------------------------------------------------------------- laws

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
arms = st.text(st.characters(exclude_characters="\"'\n", exclude_categories=["Cs"]), min_size=1, max_size=8)
leaves = st.one_of(
    st.builds(Number, st.floats(min_value=0, allow_infinity=False, allow_nan=False)),
    st.builds(Effect, names, st.none() | names | arms),
    st.builds(Attributed, names, names | arms, st.none() | names | arms),
    st.builds(ValueOf, names),
    st.builds(VolumeOf, names, st.just(YEAR)),
    st.builds(PopulationOf, names, st.sampled_from([None, YEAR])),
)
trees: st.SearchStrategy[Node] = st.recursive(
    leaves,
    lambda inner: st.builds(Negative, inner) | st.builds(Binary, st.sampled_from("+-*/"), inner, inner),
    max_leaves=12,
)


@given(trees)
def test_the_text_of_a_tree_reads_back_as_the_tree(tree: Node) -> None:
    assert parse(str(Amount(tree))).root == tree


@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                "effect",
                "attributed",
                "(",
                ")",
                ",",
                "volume",
                "value",
                "1",
                "365d",
                "+",
                "-",
                "*",
                "/",
                " ",
                "x",
                "'",
                ".",
            ]
        ),
        max_size=30,
    ).map("".join)
)
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    problem = None
    try:
        amount = parse(text)
    except AmountError as error:
        problem = error
    if problem is None:
        assert parse(str(amount)) == amount
    else:
        assert 0 <= problem.offset <= len(text)
        assert str(problem)


@given(st.integers(min_value=1, max_value=10**12))
def test_a_period_of_whole_seconds_reads_back(seconds: int) -> None:
    period = timedelta(seconds=seconds)
    assert parse(f"volume(a, {period_text(period)})").period == period
