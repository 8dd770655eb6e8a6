"""A look at every source before any figure rests on it: reachable, populated, keyed, timed, unrepeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlglot import exp

from payoff.errors import PayoffError
from payoff.spec.nouns import Source
from payoff.warehouse.query import ExpressionError, Query, fragment, sql
from payoff.warehouse.sources import Catalog, View, from_us

Status = Literal["ok", "warn", "fail"]
_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``count`` of ``rows`` rows have what ``detail`` says; both None where nothing was counted."""

    source: str
    column: str | None
    check: str
    status: Status
    count: int | None
    rows: int | None
    detail: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "column": self.column,
            "check": self.check,
            "status": self.status,
            "count": self.count,
            "rows": self.rows,
            "detail": self.detail,
        }


def examine(
    open_catalog: Callable[[str], Catalog], sources: Mapping[str, Source], now: datetime | None = None
) -> list[Finding]:
    """Findings on each source, in the order declared. ``open_catalog`` opens one source, so that a broken one hides no other.

    A source is scanned a few times: this is a visit to the doctor, not a run.
    """
    moment = now or datetime.now(UTC)
    out: list[Finding] = []
    for name in sources:
        try:
            with open_catalog(name) as catalog:
                view = catalog.view(name)
                out += _source(catalog, view, view.source, moment)
        except (PayoffError, ExpressionError) as error:
            column, count = getattr(error, "column", None), getattr(error, "count", None)
            out.append(Finding(name, column, "readable", "fail", count, None, str(error)))
    return out


def _source(catalog: Catalog, view: View, source: Source, now: datetime) -> list[Finding]:
    name, engine = view.name, catalog.engine
    parts: list[exp.Expr] = [exp.alias_(exp.Count(this=exp.Star()), "n")]
    keys = {  # as the rows have them: what an identity joins does not mend a source
        e: view.own_unit(e)
        for e in [*source.entity, *((source.one_row_per,) if source.one_row_per else ())]
        if view.unit_text(e)
    }
    for number, unit in enumerate(keys.values()):
        parts.append(exp.alias_(fragment("count($u)", u=unit), f"ids{number}"))
    if source.id is not None:
        parts.append(exp.alias_(fragment("count($i)", i=view.scalar(source.id)), "has_id"))
        parts.append(exp.alias_(fragment("count(DISTINCT $i)", i=view.scalar(source.id)), "distinct_id"))
    clock = view.clock
    if clock is not None:
        now_us = int(now.timestamp() * 1_000_000)
        parts += [
            exp.alias_(fragment("count($t)", t=clock.raw), "timed"),
            exp.alias_(fragment("min($t)", t=clock.us), "first_us"),
            exp.alias_(fragment("max($t)", t=clock.us), "last_us"),
            exp.alias_(fragment("count(*) FILTER (WHERE $t > $now)", t=clock.us, now=now_us), "future"),
            exp.alias_(fragment("count(*) FILTER (WHERE $t < 0)", t=clock.us), "ancient"),
        ]
    for number, linking in enumerate(source.links.values()):
        parts.append(exp.alias_(fragment("count($l)", l=view.scalar(linking)), f"links{number}"))
    seen: dict[str, Any] = engine.row(
        sql("SELECT $parts FROM base", parts=parts, base=Query(view.rows())), f"examine {name}", name
    )
    rows = int(seen["n"])
    out = [Finding(name, None, "rows", "ok" if rows else "fail", rows, rows, f"{rows:,} rows" if rows else "no rows")]
    if not rows:
        return out
    for number, entity in enumerate(keys):
        missing = rows - int(seen[f"ids{number}"])
        key = view.unit_text(entity)
        out.append(_nulls(name, key, f"{entity} id", missing, rows))
        if source.one_row_per == entity:
            query = sql("SELECT count($u) - count(DISTINCT $u) AS n FROM base", u=keys[entity], base=Query(view.rows()))
            repeated = int(engine.row(query, f"repeats in {name}", name)["n"])
            status: Status = "fail" if repeated else "ok"
            detail = f"{repeated:,} rows repeat a {entity}" if repeated else f"one row per {entity}, as declared"
            out.append(Finding(name, key, "one row a unit", status, repeated, rows, detail))
    if source.id is not None:
        out.append(_nulls(name, source.id, "row id", rows - int(seen["has_id"]), rows))
        repeated = int(seen["has_id"]) - int(seen["distinct_id"])
        detail = f"{repeated:,} rows repeat an id and would be counted again" if repeated else "no id occurs twice"
        out.append(Finding(name, source.id, "repeated ids", "warn" if repeated else "ok", repeated, rows, detail))
    if clock is not None:
        out.append(_nulls(name, source.time, "time", rows - int(seen["timed"]), rows))
        if seen["first_us"] is not None:
            first, last = int(seen["first_us"]), int(seen["last_us"])
            days = (last - first) / _DAY_US
            zone = "" if "ZONE" in clock.kind else f", read as {clock.zone}"
            out.append(
                Finding(
                    name,
                    source.time,
                    "time span",
                    "ok",
                    None,
                    rows,
                    f"{from_us(first)} to {from_us(last)} ({days:,.1f} days{zone})",
                )
            )
        for key, what in (("future", "lie in the future"), ("ancient", "lie before 1970")):
            count = int(seen[key])
            if count:
                out.append(
                    Finding(
                        name,
                        source.time,
                        "clock",
                        "warn",
                        count,
                        rows,
                        f"{count:,} rows {what}: look at the clock or time zone",
                    )
                )
    for number, (target, link) in enumerate(source.links.items()):
        out.append(_nulls(name, link, f"link to {target}", rows - int(seen[f"links{number}"]), rows))
    return out


def _nulls(source: str, column: str | None, what: str, count: int, rows: int) -> Finding:
    status: Status = "ok" if count == 0 else "fail" if count > 0.05 * rows else "warn"
    detail = f"every row has a {what}" if count == 0 else f"{count:,} of {rows:,} rows have no {what} (NULL)"
    return Finding(source, column, f"{what}", status, count, rows, detail)
