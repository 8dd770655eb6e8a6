"""Sessions: rows of a source taken together while their unit pauses for less than a gap, each with the channel that brought it.

A session's row is its first row, with ``session_unit``, ``session_start``, ``session_end``, ``session_rows`` and (where rules are
declared) ``channel``. Rows are ordered by time, then by the declared id, without one by the columns that are read. A channel is
found once a session, from its first row: the first rule that holds, else "Unassigned".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sqlglot import exp

from payoff.errors import DataError
from payoff.spec.nouns import ChannelPreset, SessionsOf
from payoff.warehouse.query import Query, column, fragment, sql
from payoff.warehouse.sources import View
from payoff.warehouse.statements import Step

UNASSIGNED = "Unassigned"
_CALENDAR = (-62_135_596_800_000_000, 253_402_300_799_999_999)
"""The years 1 to 9999 in microseconds since the epoch: an infinite time is in no session."""
_OWN = {
    "session_start": "TIMESTAMP WITH TIME ZONE",
    "session_end": "TIMESTAMP WITH TIME ZONE",
    "session_rows": "BIGINT",
}


def columns_of(rows: View, name: str, made: SessionsOf, entity: str) -> Mapping[str, str]:
    """The columns of sessions with their types. Raises DataError where the rows have no time or a column of such a name."""
    if rows.clock is None:
        raise DataError("has no time (time: COLUMN), and sessions end with a pause", source=rows.name)
    own = {"session_unit": rows.type_of(rows.unit(entity)), **_OWN}
    taken = [c for c in rows.own.columns if c.lower() in own]
    if taken:
        raise DataError(
            f"has a column {taken[0]}, which sessions ('{name}') have too", source=rows.name, column=taken[0]
        )
    if rows.source.id is not None:
        rows.scalar(rows.source.id)
    _rules(rows, made)  # an expression that is none is told here, at the first look
    if made.channels is None:
        return {**rows.own.columns, **own}
    kept = {c: kind for c, kind in rows.own.columns.items() if c.lower() != "channel"}
    return {**kept, **own, "channel": "VARCHAR"}


def step(rows: View, name: str, made: SessionsOf, entity: str, kept: Sequence[str]) -> Step:
    """The statement that makes the sessions ``name`` of ``rows``, with those columns of their first rows that are ``kept``."""
    assert rows.clock is not None
    parts, rules = _rules(rows, made)
    firsts = [c for c in rows.own.columns if c in kept and (made.channels is None or c.lower() != "channel")]
    needed = {c.name for e in (*parts.values(), *(e for _, e in rules)) for c in e.find_all(exp.Column)}
    read = [c for c in rows.own.columns if c in firsts or c in needed]
    rows.used.update(read)
    tie = [rows.scalar(rows.source.id)] if rows.source.id is not None else [column(c) for c in read]
    # under names of their own, so that a column of the rows may be called as it likes
    told = exp.select(
        exp.alias_(rows.unit(entity), "session_unit", quoted=True),
        exp.alias_(rows.clock.us, "session us", quoted=True),
        *(column(c) for c in read),
        *(exp.alias_(e, f"session tie {i}", quoted=True) for i, e in enumerate(tie)),
    ).from_(rows.rows().subquery("base"))
    order = [column("session us"), *(column(f"session tie {i}") for i in range(len(tie)))]
    placed = [
        exp.alias_(_over(text, order), name, quoted=True)
        for name, text in {
            "session before": 'lag("session us") OVER (PARTITION BY session_unit ORDER BY 1)',
            "session place": "row_number() OVER (PARTITION BY session_unit ORDER BY 1)",
            "session last": """last_value("session us") OVER (
                PARTITION BY session_unit ORDER BY 1 ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)""",
            "session count": """count(*) OVER (
                PARTITION BY session_unit ORDER BY 1 ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)""",
        }.items()
    ]
    out: list[exp.Expr] = [column(c) for c in firsts]
    out += [] if made.channels is None else [exp.alias_(_channel(rules), "channel", quoted=True)]
    out = out or [exp.alias_(exp.null(), "nothing_else", quoted=True)]
    after = 'OVER (PARTITION BY session_unit ORDER BY "session place")'
    query = sql(
        f"""
        SELECT session_unit, make_timestamptz("session us") AS session_start,
               make_timestamptz(coalesce(lead("session before") {after}, "session last")) AS session_end,
               coalesce(lead("session place") {after}, "session count" + 1) - "session place" AS session_rows,
               $columns
        FROM opened
        """,
        opened=sql(
            """
            SELECT *, $parts FROM placed
            WHERE "session before" IS NULL OR "session us" - "session before" >= $gap
            """,
            parts=[exp.alias_(part, name, quoted=True) for name, part in parts.items()] or [exp.true()],
            gap=round(made.gap.total_seconds() * 1e6),
            placed=sql("SELECT *, $placed FROM told", placed=placed, told=_timed(told)),
        ),
        columns=out,
    )
    columns = sorted({c.name for c in told.find_all(exp.Column)} & rows.own.columns.keys())
    purpose = "one row a session: its first row, and how long it went on"
    return Step(f"sessions {name}", rows.own.key, purpose, tuple(columns), (), query)


def _timed(told: exp.Select) -> Query:
    """Rows with a unit and a time in the calendar."""
    return sql(
        'SELECT * FROM every_row WHERE session_unit IS NOT NULL AND "session us" BETWEEN $low AND $high',
        low=_CALENDAR[0],
        high=_CALENDAR[1],
        every_row=Query(told),
    )


def _over(text: str, order: Iterable[exp.Expr]) -> exp.Expr:
    window = fragment(text)
    window.set("order", exp.Order(expressions=[exp.Ordered(this=e.copy(), nulls_first=False) for e in order]))
    return window


# ---------------------------------------------------------------- channels


def _rules(rows: View, made: SessionsOf) -> tuple[dict[str, exp.Expr], list[tuple[str, exp.Expr]]]:
    """(What rules read of a first row, by the names under which they read it; (channel, condition) in order.)"""
    channels = made.channels
    if channels is None:
        return {}, []
    if isinstance(channels, ChannelPreset):
        texts = {"source": channels.source, "medium": channels.medium, "campaign": channels.campaign}
        read = {key: exp.null() if text is None else rows.scalar(text) for key, text in texts.items()}
        parts = {key: fragment("lower(trim(coalesce(CAST($v AS VARCHAR), '')))", v=v) for key, v in read.items()}
        parts["site"] = _site_of(parts["source"])
        named = {f"session {key}": part for key, part in parts.items()}
        return named, ga4(*(column(name) for name in named))
    return {}, [(rule.name, exp.true() if rule.when is None else rows.condition(rule.when)) for rule in channels]


def _channel(rules: Sequence[tuple[str, exp.Expr]]) -> exp.Expr:
    out = exp.Case()
    for name, condition in rules:
        out = out.when(condition, exp.Literal.string(name))
    return out.else_(exp.Literal.string(UNASSIGNED))


SEARCH = (
    *("google", "bing", "yahoo", "duckduckgo", "ecosia", "baidu", "yandex", "naver", "seznam", "startpage", "qwant"),
    *("ask", "aol", "sogou", "so.com", "brave", "kagi", "daum", "lycos", "dogpile", "perplexity"),
)
SOCIAL = (
    *(
        "facebook",
        "fb",
        "fb.me",
        "instagram",
        "ig",
        "linkedin",
        "lnkd.in",
        "twitter",
        "t.co",
        "x.com",
        "pinterest",
        "pin.it",
    ),
    *("tiktok", "reddit", "snapchat", "threads", "threads.net", "whatsapp", "wa.me", "messenger", "telegram", "t.me"),
    *("quora", "tumblr", "vk", "weibo", "wechat", "discord", "line.me", "bluesky", "bsky.app", "mastodon"),
    *("mastodon.social", "meetup", "xing", "nextdoor", "news.ycombinator.com"),
)
SHOPPING = (
    *(
        "amazon",
        "ebay",
        "etsy",
        "walmart",
        "aliexpress",
        "alibaba",
        "shopify",
        "shopping.google.com",
        "google shopping",
    ),
    *("igshopping", "mercadolibre", "mercadolivre", "rakuten", "target.com", "temu", "zalando", "idealo", "otto.de"),
)
VIDEO = (
    *(
        "youtube",
        "youtu.be",
        "vimeo",
        "dailymotion",
        "twitch",
        "netflix",
        "hulu",
        "disneyplus",
        "crackle",
        "iqiyi",
        "youku",
    ),
    *("wistia", "rumble", "bilibili"),
)
ASSISTANTS = (
    "chatgpt",
    "chat.openai.com",
    "openai",
    "gemini.google.com",
    "claude.ai",
    "claude",
    "copilot.microsoft.com",
)
_LISTS = {"search": SEARCH, "social": SOCIAL, "shopping": SHOPPING, "video": VIDEO, "assistant": ASSISTANTS}


def ga4(source: exp.Expr, medium: exp.Expr, campaign: exp.Expr, site: exp.Expr) -> list[tuple[str, exp.Expr]]:
    """Google's default channel group for traffic tagged by hand, as (channel, condition) in the order in which it is tried.

    ``source``, ``medium`` and ``campaign`` are in small letters, empty where there is none; ``site`` is the list that the source
    is on. From the rules as published (Analytics Help, "Default channel group", answer 9756891), which ignore case. Their lists of
    sites are ours above, and short. Three readings are ours too: a session with neither source nor medium is Direct, as a site's own
    log holds nothing where Analytics writes (direct) / (none); the AI Assistant channel (added in May 2026), whose medium Analytics
    sets itself, also takes the assistants as sources; and where a rule says "matches" or "is", the whole value is meant.
    """
    s, m, c = source, medium, campaign
    paid = fragment("regexp_matches($m, '^(.*cp.*|ppc|retargeting|paid.*)$')", m=m)
    shop = fragment("regexp_matches($c, '^(.*(([^a-df-z]|^)shop|shopping).*)$')", c=c)
    search, social, shopping, video, assistant = (_is(site, kind) for kind in _LISTS)
    direct = fragment("($s = '(direct)' AND $m IN ('(not set)', '(none)')) OR ($s = '' AND $m = '')", s=s, m=m)
    mail = ("email", "e-mail", "e_mail", "e mail")
    pushed = "ends_with($m, 'push') OR contains($m, 'mobile') OR contains($m, 'notification') OR $s = 'firebase'"
    network = ("social", "social-network", "social-media", "sm", "social network", "social media")
    return [
        ("Direct", direct),
        ("Cross-network", fragment("contains($c, 'cross-network')", c=c)),
        ("Paid Shopping", exp.and_(exp.or_(shopping, shop), paid)),
        ("Paid Search", exp.and_(search, paid)),
        ("Paid Social", exp.and_(social, paid)),
        ("Paid Video", exp.and_(video, paid)),
        ("Display", _is(m, "display", "banner", "expandable", "interstitial", "cpm")),
        ("Paid Other", paid),
        ("AI Assistant", exp.or_(_is(m, "ai-assistant"), assistant)),
        ("Organic Shopping", exp.or_(shopping, shop)),
        ("Organic Social", exp.or_(social, _is(m, *network))),
        ("Organic Video", exp.or_(video, fragment("contains($m, 'video')", m=m))),
        ("Organic Search", exp.or_(search, _is(m, "organic"))),
        ("Referral", _is(m, "referral", "app", "link")),
        ("Email", exp.or_(_is(s, *mail), _is(m, *mail))),
        ("Affiliates", _is(m, "affiliate")),
        ("Audio", _is(m, "audio")),
        ("SMS", exp.or_(_is(s, "sms"), _is(m, "sms"))),
        ("Mobile Push Notifications", fragment(pushed, m=m, s=s)),
    ]


def _is(value: exp.Expr, *words: str) -> exp.Expr:
    return exp.In(this=value.copy(), expressions=[exp.Literal.string(word) for word in words])


def _site_of(source: exp.Expr) -> exp.Expr:
    """Which list a source is on: by its name (google), or as its host in some country (www.google.co.uk, l.instagram.com).

    A name with a dot in it is a host as it stands. What comes before a host is short (www, m, l, search), so that mail.google.com
    is no search.
    """
    out = exp.Case()
    for kind, names in _LISTS.items():
        whole = [name.replace(".", "[.]") for name in names if "." in name or " " in name]
        short = f"({'|'.join(name for name in names if name.isalnum())})([.][a-z]{{2,4}}){{0,2}}"
        pattern = f"^((www|search|mobile|[a-z]{{1,3}})[.])*({'|'.join([short, *whole])})$"
        out = out.when(fragment("regexp_matches($s, $pattern)", s=source, pattern=pattern), exp.Literal.string(kind))
    return out
