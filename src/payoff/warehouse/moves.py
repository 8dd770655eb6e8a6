"""Moves of Markov paths, counted by hash group in one sort of touches and conversions together.

A path is a unit's touches since its previous conversion. Those within the window before the next one lead to it; the others lead
nowhere, and are cut where two are further apart than the window. A state is the last ``order`` touches of the path.
"""

from __future__ import annotations

from sqlglot import exp

from payoff.errors import DataError
from payoff.warehouse.query import Query, fragment, sql

_BITS = 11
"""Bits beside a time before 2112 in one integer, on which units are sorted: what comes at one time goes by code, a conversion last."""


def moves_query(
    touched: Query,
    *,
    outcome: int,
    window_us: int,
    order: int,
    group: exp.Expr,
    codes: int,
    starts_us: int | None,
    open_us: int | exp.Expr,
) -> Query:
    """SELECT g, s_k ... s_0 (the ``order`` touches before, -1 where there was none, and this one), how often it was a move (``moves``),
    and how many paths ended with it: ``won`` and ``lost``, of which ``open`` after ``open_us``.

    ``group``: that of the column ``unit``. ``touched``: SELECT unit, us, code; conversions are rows of credit_raw. Paths that led to a conversion before ``starts_us`` are
    out, and those that lead nowhere begin there. Raises DataError with too many touchpoints.
    """
    bits = (codes + 1).bit_length()
    if bits > _BITS:
        raise DataError(f"{codes:,} touchpoints are too many for a Markov model; it takes {2**_BITS - 2:,}")
    end = 2**bits - 1

    def us(at: str) -> str:
        return f"(at_{at} >> {bits})"

    def bound(text: str) -> exp.Expr:
        given = {"window": window_us} | ({} if starts_us is None else {"starts": starts_us})
        return fragment(text, **{k: v for k, v in given.items() if f"${k}" in text})

    # of each touch at hand: its time, its code (NULL of a conversion) and whether it leads to the conversion that follows
    told: list[exp.Expr] = [exp.alias_(fragment(f"at_0 >> {bits}"), "us")]
    for at in ("next", *map(str, range(order + 1))):
        told.append(exp.alias_(fragment(f"nullif(at_{at} & {end}, {end})"), f"code_{at}"))
        told.append(exp.alias_(bound(f"coalesce({us('end')} - {us(at)} < $window, FALSE)"), f"leads_{at}"))

    def cut(before: str, at: str) -> str:
        """Between two touches with no conversion between them: another path begins."""
        early = "" if starts_us is None else f" OR {us(before)} < $starts"
        return (
            f"code_{before} IS NULL OR code_{at} IS NULL"
            f" OR CASE WHEN leads_{at} THEN NOT leads_{before} ELSE {us(at)} - {us(before)} > $window{early} END"
        )

    seen = ", ".join(f"lag(at_0, {j}) OVER o AS at_{j}" for j in range(1, order + 1))
    begins = [f"begins_{j}" for j in range(order)]
    cuts = [exp.alias_(bound(cut(str(j + 1), str(j))), name) for j, name in enumerate(begins)]
    states = [exp.alias_(fragment("CAST(code_0 AS SMALLINT)"), "s_0")]
    for j in range(1, order + 1):
        new = " OR ".join(begins[:j])
        states.append(exp.alias_(fragment(f"CAST(CASE WHEN {new} THEN -1 ELSE code_{j} END AS SMALLINT)"), f"s_{j}"))
    own = "TRUE" if starts_us is None else "CASE WHEN leads_0 THEN following ELSE us END >= $starts"
    moved = " OR ".join(f"s_{j} <> s_{j + 1}" for j in range(order))
    return sql(
        f"""
        SELECT CAST($bucket AS INTEGER) AS g, {", ".join(f"s_{j}" for j in range(order + 1))},
               count(*) FILTER (WHERE {moved}) AS moves, count(*) FILTER (WHERE ends AND leads_0) AS won,
               count(*) FILTER (WHERE ends AND NOT leads_0) AS lost,
               count(*) FILTER (WHERE ends AND NOT leads_0 AND us > $open) AS open
        FROM steps GROUP BY ALL
        """,
        bucket=group,
        open=open_us,
        steps=sql(
            "SELECT unit, us, leads_0, ends, $states FROM path_cuts WHERE $own",
            states=states,
            own=bound(own),
            path_cuts=sql(
                f"SELECT unit, us, leads_0, at_end >> {bits} AS following, $codes, $cuts, $ends AS ends FROM stops WHERE code_0 IS NOT NULL",
                codes=[fragment(f"code_{j}") for j in range(order + 1)],
                cuts=cuts,
                ends=bound(cut("0", "next")),
                stops=sql(
                    "SELECT unit, at_end, $ats, $told FROM around",
                    ats=[fragment(f"at_{at}") for at in ("next", *range(order + 1))],
                    told=told,
                    around=sql(
                        f"""
                        SELECT unit, at_0, lead(at_0) OVER o AS at_next, {seen},
                               lead(CASE WHEN at_0 & {end} = {end} THEN at_0 END IGNORE NULLS) OVER o AS at_end
                        FROM stream
                        WINDOW o AS (PARTITION BY unit ORDER BY at_0)
                        """,
                        stream=sql(
                            f"""
                            SELECT unit, (us << {bits}) + code AS at_0 FROM touched
                            UNION ALL
                            SELECT unit, (us << {bits}) + {end} AS at_0 FROM credit_raw WHERE outcome = $outcome
                            """,
                            outcome=outcome,
                            touched=touched,
                        ),
                    ),
                ),
            ),
        ),
    )
