"""The command line: verbs that show what the layers below computed. They compute no figure, and start light.

Everything heavy is imported inside the verb that needs it. What was asked for goes to stdout; progress and notes go to
stderr, and only to a terminal; what went wrong goes to stderr, and with ``--json`` as an object to stdout as well.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from payoff import __version__, formats
from payoff.errors import ConnectionFailed, DefinitionError, PayoffError, UsageError, did_you_mean

if TYPE_CHECKING:
    from datetime import date

    from payoff.run import Project, Verification
    from payoff.spec.loader import LoadedProject

    Tell = Callable[[str, float | None], None]

INTERNAL, INTERRUPTED, BROKEN_PIPE = 4, 130, 141
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
REPORTS = "reports"
DEMO_MARK = ".payoff-demo"


# ---------------------------------------------------------------- one place for what goes wrong


class _Asked(NamedTuple):
    """The arguments as they were typed. Known before they are parsed, because what is wrong may be the arguments."""

    args: tuple[str, ...]

    @property
    def json(self) -> bool:
        own = self.args[: self.args.index("--")] if "--" in self.args else self.args
        return "--json" in own

    @property
    def command(self) -> str:
        return shlex.join(["payoff", *self.args])


class _Verbs(TyperGroup):
    """The verbs. Here an error becomes a sentence and an exit code, and never a traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        asked = _Asked(tuple(given))
        try:
            code = super().main(given, prog_name, complete_var, False, windows_expand_args, obj=asked, **extra) or 0
        except typer.TyperException as error:
            where = getattr(getattr(error, "ctx", None), "command_path", "payoff")
            hint = f"\nTry '{where} --help' for help."
            code = _fail(asked, UsageError(error.format_message()), after=hint)
        except OSError as error:  # outside a verb only help is written
            code = _unheard(asked, error)
        try:
            sys.stdout.flush()
        except OSError as error:
            code = _unheard(asked, error)
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: Any) -> Any:
        asked: _Asked = ctx.obj
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except KeyboardInterrupt:
            caret = "\n" if sys.stderr.isatty() else ""  # the terminal has just written ^C
            print(f"{caret}interrupted; what was kept before is untouched", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except PayoffError as error:
            raise typer.Exit(_fail(asked, error)) from None
        except OSError as error:
            if isinstance(error, BrokenPipeError) or error.errno in FULL:
                raise typer.Exit(_unheard(asked, error)) from None
            raise typer.Exit(_fail(asked, error)) from None
        except Exception as error:  # noqa: BLE001 - the last resort: a bug is told in one sentence
            raise typer.Exit(_fail(asked, error)) from None
        return value


def _unheard(asked: _Asked, error: OSError) -> int:
    """The exit code when stdout takes no more; what is still held back for it is dropped."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # whoever read our output has seen enough, as `head` does
        return BROKEN_PIPE
    return _fail(asked, ConnectionFailed(f"the output could not be written: {error.strerror or error}"))


def _fail(asked: _Asked, error: Exception, after: str = "") -> int:
    """Tell what went wrong, and give the exit code. PAYOFF_DEBUG=1 adds the traceback."""
    if os.environ.get("PAYOFF_DEBUG"):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, PayoffError):
        data, code = error.to_dict(), error.exit_code
        text = f"error: {error}"
    else:
        told = " ".join(str(error).split()) or "no message"
        data, code = {"error": "InternalError", "message": f"{type(error).__name__}: {told}"}, INTERNAL
        text = f"internal error: {type(error).__name__}: {told}\nThis is a bug in Payoff, not in your project; PAYOFF_DEBUG=1 shows where it happened."
    if isinstance(error, DefinitionError):
        files = {problem.file for problem in error.problems}
        text = (
            "\n".join(map(str, error.problems))
            + f"\n{_many(len(error.problems), 'problem')} in {_many(len(files), 'file')}"
        )
    if asked.json:
        _emit(data)
    sys.stdout.flush()
    print(formats.lines(text + after), file=sys.stderr)
    return code


# ---------------------------------------------------------------- how things are said


def _encodes(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _say(text: str = "") -> None:
    print(text if _encodes(text) else formats.ascii_only(text))


def _emit(data: object) -> None:
    """One JSON document on stdout. NaN is not JSON, and would be a bug."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    if not _encodes(text):
        text = json.dumps(data, indent=2, allow_nan=False)
    # They stand only inside strings, where the escape is the same JSON; bare, a terminal would obey them.
    print(re.sub("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", lambda c: f"\\u{ord(c[0]):04x}", text))


def _note(text: str, quiet: bool) -> None:
    if not quiet and sys.stderr.isatty():
        print(text, file=sys.stderr)


def _many(n: int, noun: str) -> str:
    ending = {"y": "ies", "s": "ses"}.get(noun[-1], f"{noun[-1]}s")
    return f"{n:,} {noun if n == 1 else noun[:-1] + ending}"


def _width() -> int:
    from shutil import get_terminal_size

    return min(max(get_terminal_size((80, 24)).columns, 40), 100)


def _wrap(text: str, indent: str = "", hang: str = "") -> str:
    return textwrap.fill(
        formats.clean(text), _width(), initial_indent=indent, subsequent_indent=indent + hang,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as text, folded to the width of the screen: nothing is cut off."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in head:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(formats.clean(cell) for cell in row))
    page = io.StringIO()
    Console(file=page, width=_width(), color_system=None, markup=False, highlight=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().rstrip("\n").split("\n"))


def _sql(text: str) -> None:
    """SQL as it was executed: in colour on a terminal, plain anywhere else."""
    if not sys.stdout.isatty():
        _say(text)
        return
    from rich.console import Console
    from rich.syntax import Syntax

    Console().print(Syntax(formats.lines(text), "sql", word_wrap=True, background_color="default"))


def _findings(run: Mapping[str, Any], brief: bool, report: str | None = None) -> None:
    """What a run found, or what one of its reports shows of it: in colour on a terminal, plain anywhere else."""
    from rich.console import Console

    from payoff.report import figures, terminal

    page = figures.build(run, report)
    if sys.stdout.isatty():
        terminal.render(page, Console(), brief=brief)
        return
    text = io.StringIO()
    terminal.render(page, Console(file=text, color_system=None), brief=brief)
    _say("\n".join(line.rstrip() for line in text.getvalue().rstrip("\n").split("\n")))


@contextmanager
def _progress(first: str, quiet: bool) -> Iterator[Tell | None]:
    """A line on stderr that says what is being done and how far it is; None where nobody would see it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(first, total=None)

        def tell(step: str, share: float | None) -> None:
            total = None if share is None else 1.0
            bar.update(task, description=formats.shorten(formats.clean(step), 84), completed=share or 0.0, total=total)

        yield tell


def _write(path: Path, text: str) -> None:
    """Whole or not at all. Raises ConnectionFailed where the place cannot be written to."""
    import tempfile

    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise ConnectionFailed(f"{path} could not be written: {error.strerror or error}") from None


def _user() -> str:
    """Who is asking, as far as the system knows."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "unknown"


def _day(text: str | None) -> date | None:
    from datetime import date

    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--today is a day such as 2026-11-22, which '{text}' is not") from None


def _load(project: Path | None) -> Project:
    from payoff.run import Project

    return Project.load(project or Path())


# ---------------------------------------------------------------- completion


def _complete(sections: Sequence[str], ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of a project's sections, by a glance at its YAML: a file that does not parse offers none of its names."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    here = Path(ctx.params.get("project") or ".").absolute()
    root = next((folder for folder in (here, *here.parents) if (folder / "payoff.yml").is_file()), None)
    if root is None:
        return []

    def read(path: Path) -> dict[str, Any]:
        try:
            tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, YAMLError):
            return {}
        return tree if isinstance(tree, dict) else {}

    def matching(pattern: str) -> list[Path]:
        try:
            return sorted(root.glob(pattern))
        except (ValueError, NotImplementedError):  # not a pattern, or not one below the project
            return []

    top = read(root / "payoff.yml")
    include = top.get("include") or []
    patterns = [include] if isinstance(include, str) else [p for p in include if isinstance(p, str)]
    trees = [top, *(read(path) for pattern in patterns for path in matching(pattern))]
    found = [(s, str(name)) for s in sections for tree in trees if isinstance(tree.get(s), dict) for name in tree[s]]
    bare = [name for _, name in found if name.startswith(incomplete)]
    full = [f"{section}.{name}" for section, name in found if incomplete and f"{section}.{name}".startswith(incomplete)]
    return bare or full


ASKED = ("experiments", "claims", "programmes", "attribution", "funnels", "cohorts", "paths")
"""The sections whose entries can be answered. Spelt here too, so that completing a name imports nothing heavy."""


def _complete_name(ctx: typer.Context, incomplete: str) -> list[str]:
    return _complete(ASKED, ctx, incomplete)


def _complete_experiment(ctx: typer.Context, incomplete: str) -> list[str]:
    return _complete(("experiments",), ctx, incomplete)


def _complete_source(ctx: typer.Context, incomplete: str) -> list[str]:
    return _complete(("sources",), ctx, incomplete)


def _complete_report(ctx: typer.Context, incomplete: str) -> list[str]:
    return _complete(("reports",), ctx, incomplete)


# ---------------------------------------------------------------- the options that verbs share

NAME_HELP = "What to answer, such as first_name_subject, claims.savings or funnels.checkout."
ProjectOption = Annotated[
    Path | None,
    typer.Option(
        "--project", "-p", metavar="DIR", help="The project's folder. Default: found upwards from here, as git does."
    ),
]
DialectOption = Annotated[
    str | None,
    typer.Option(
        "--dialect", metavar="NAME", help="With --sql: as it would be written there, such as bigquery; not executed."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
BriefOption = Annotated[bool, typer.Option("--brief", help="The findings alone, without what backs them.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAMES", help=f"{NAME_HELP} Default: all.", show_default=False, autocompletion=_complete_name
    ),
]

app = typer.Typer(
    cls=_Verbs,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"payoff {__version__}")
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog=(
        "Exit codes: 0 fine; 1 it ran, and a check, a guardrail or a claim's decision rule failed; 2 a mistake in the "
        "command or in a definition; 3 data or a connection; 4 a bug in Payoff. With --json what went wrong is an object "
        "with error and message. PAYOFF_DEBUG=1 shows tracebacks. Start with: payoff demo"
    ),
)
def payoff(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What did this model, or this personalisation, really earn, and how sure are we?"""
    del version
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


# ---------------------------------------------------------------- demo and init


@app.command()
def demo(
    customers: Annotated[
        int, typer.Option(metavar="N", help="Customers of the simulated company, 100 to 999,999.")
    ] = 60_000,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed is another company.")] = 7,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the project goes; the truth goes to DIR-truth.")
    ] = Path("payoff-demo"),
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Run an earlier demo as it now stands, edits included, instead of making it anew."),
    ] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure a simulated company of known truth.

    Writes a whole project, runs it, prints what was found and writes the report. What the company's effects truly are
    is kept in a folder of its own, which nothing reads until the run is over. Needs no network. The company is made
    anew each time; the ledger of earlier demos is kept. Exits with 0 whatever the claims say: some are meant to fail.
    """
    from dataclasses import replace
    from datetime import UTC, datetime, timedelta

    today = datetime.now(UTC).date()
    folder = out.absolute()
    truth = folder.with_name(f"{folder.name}-truth")
    _demo_folder(folder, truth, keep)
    with _progress(f"making a company of {customers:,} customers", quiet or json_) as tell:
        if not keep:
            from payoff.world import World, write_demo_project

            world = World(customers=customers, seed=seed)
            world = replace(world, start=today - timedelta(days=world.days))
            _mark(folder)
            write_demo_project(folder, world, today=today, truth_dir=truth, overwrite=True)
        project = _load(folder)
        run = project.run(progress=tell, today=today, actor=_user(), command="payoff demo").to_dict()
    from payoff.report import figures, html

    name = next(iter(project.loaded.spec.reports), None)
    report = html.write(figures.build(run, name), folder / REPORTS / f"{name or 'latest'}.html")
    known = _against_truth(run, project.loaded, json.loads((truth / "truth.json").read_text(encoding="utf-8")))
    if json_:
        _emit({"project": str(folder), "report": str(report), "truth": str(truth), "run": run, "against_truth": known})
        return
    _findings(run, brief=True, report=name)
    _say()
    _say(f"The report:   {_near(report)}")
    _say(f"The project:  {_near(folder)}")
    _say()
    _tell_truth(known, truth)
    _say()
    _say("Next:")
    for command in ("show", "explain --sql", "verify"):
        _say(f"  {_called()} {command} -p {shlex.quote(_near(folder))}")


def _demo_folder(folder: Path, truth: Path, keep: bool) -> None:
    """Raises UsageError where a demo would overwrite something that is not one, or where there is none to keep."""
    made = (folder / DEMO_MARK).is_file()
    if keep:
        if not made or not (truth / "truth.json").is_file():
            raise UsageError(f"there is no demo in {folder} to keep; make one without --keep")
    elif folder.is_file() or (folder.is_dir() and not made and any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not a demo, so it is left alone; name another folder with --out")
    elif truth.is_file() or (truth.is_dir() and {p.name for p in truth.iterdir()} - {"truth.json"}):
        raise UsageError(f"{truth}, where the truth would go, holds other things; name another folder with --out")


def _mark(folder: Path) -> None:
    """Written first, so that a demo that was interrupted can be made again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConnectionFailed(f"the folder {folder} could not be made: {error.strerror or error}") from None
    _write(folder / DEMO_MARK, "Made by `payoff demo`, which replaces what it made here.\n")


def _near(path: Path) -> str:
    """A path as one would type it from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _called() -> str:
    """How one calls Payoff from here: by its path where it is in an environment that is not active."""
    from shutil import which

    script = Path(sys.argv[0]).absolute()
    if which("payoff") is None and script.name == "payoff" and script.is_file():
        return shlex.quote(_near(script))
    return "payoff"


def _against_truth(run: Mapping[str, Any], loaded: LoadedProject, truth: Mapping[str, Any]) -> dict[str, Any]:
    """Each interval of a difference beside the simulated effect. A capped metric is left out: the truth has no caps."""
    rows, left_out = [], []
    for result in run["results"]:
        kind, _, name = result["name"].partition(".")
        metrics = truth["experiments"].get(name, {}).get("metrics", {}) if kind == "experiments" else {}
        for estimate in result["estimates"]:
            metric = estimate["metric"]
            if (
                metric not in metrics
                or estimate["estimand"] != "difference in means"
                or estimate["segment"] is not None
            ):
                continue
            if getattr(loaded.spec.metrics[metric], "cap", None) is not None:
                left_out.append(metric)
                continue
            effect = metrics[metric]["effect"]
            inside = estimate["low"] <= effect <= estimate["high"]
            keep = {key: estimate[key] for key in ("metric", "contrast", "value", "low", "high", "level", "unit")}
            rows.append({"experiment": result["name"], **keep, "truth": effect, "inside": inside})
    totals = {
        k: truth[k] for k in ("last_touch_attributed_revenue", "true_incremental_revenue", "attributed_over_true")
    }
    return {
        "inside": sum(r["inside"] for r in rows),
        "of": len(rows),
        "intervals": rows,
        "left_out": left_out,
        **totals,
    }


def _tell_truth(known: Mapping[str, Any], folder: Path) -> None:
    level = formats.level(known["intervals"][0]["level"]) if known["intervals"] else "95%"
    _say("-" * min(_width(), 80))
    _say(f"What only a simulation knows ({_near(folder)}, read after the run)")
    _say()
    miss = "" if known["inside"] == known["of"] else " About one in twenty misses it by chance."
    _say(_wrap(f"The simulated truth lies inside {known['inside']} of {known['of']} intervals of {level}.{miss}"))
    _say()
    rows = []
    for row in known["intervals"]:
        unit = formats.unit(row["unit"])
        shown = formats.written(row["value"], row["low"], row["high"], unit, change=True)
        truth = formats.rounded(row["truth"], unit, change=True)
        rows.append((formats.human(row["metric"]), truth, shown.range, "inside" if row["inside"] else "outside"))
    _say(_table(("metric", "true effect", f"{level} interval", ""), rows))
    for metric in dict.fromkeys(known["left_out"]):
        _say(_wrap(f"{formats.human(metric)} is left out: its estimate is capped, the simulated effect is not."))
    if known["attributed_over_true"] is not None:
        money = formats.Unit("money", "USD")
        booked, true = (
            formats.rounded(known[k], money) for k in ("last_touch_attributed_revenue", "true_incremental_revenue")
        )
        _say()
        _say(
            _wrap(
                f"Last-touch attribution would have booked {booked} of revenue to personalisation over the year. It truly "
                f"brought {true}: attribution overstates it {known['attributed_over_true']:.1f} times."
            )
        )


class Template(StrEnum):
    """What ``payoff init`` can write."""

    email = "email"
    holdout = "holdout"
    table = "table"


_TEMPLATE_NEXT: Mapping[Template, tuple[str, ...]] = {
    Template.email: (
        "payoff.yml: where your DuckDB database is (connections)",
        "definitions/sources.yml: your tables, times and ids",
        "definitions/email_subject.yml: your arms and metrics",
        "definitions/money.yml: your margin and costs, with source, owner, expiry",
    ),
    Template.holdout: (
        "payoff.yml: where your DuckDB database is (connections)",
        "definitions/sources.yml: your tables, times and ids",
        "definitions/personalisation.yml: your arms and metrics",
        "definitions/money.yml: your margin and costs, with source, owner, expiry",
    ),
    Template.table: (
        "payoff.yml: where your DuckDB database is (connections)",
        "definitions/test.yml: your table or file, its arms and outcomes",
        "definitions/money.yml: your margin and costs, with source, owner, expiry",
    ),
}


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of the new project.", show_default=False)
    ] = Path(),
    template: Annotated[
        Template,
        typer.Option(
            help="email: a subject-line test; holdout: a share of customers kept from personalisation; table: one row a customer."
        ),
    ] = Template.email,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a new project, commented.

    It runs as soon as its tables exist. Nothing is ever overwritten.
    """
    from importlib import resources

    root = folder.absolute()
    source = resources.files("payoff") / "templates" / template.value
    texts: dict[str, str] = {}
    for part in (source, source / "definitions"):
        for item in sorted(part.iterdir(), key=lambda i: i.name):
            if item.name.endswith(".yml"):
                name = item.name if part is source else f"definitions/{item.name}"
                texts[name] = item.read_text(encoding="utf-8")
    # A name in JSON is the same name in YAML, whatever characters the folder has.
    called = json.dumps(os.fsencode(root.name).decode("utf-8", "replace") or "payoff", ensure_ascii=False)
    texts["payoff.yml"] = texts["payoff.yml"].replace("project: PROJECT", f"project: {called}")
    taken = [name for name in texts if (root / name).exists()]
    if taken:
        raise UsageError(
            f"{root} already holds {', '.join(taken)}; nothing was written. Name another folder: payoff init DIR"
        )
    try:
        (root / "definitions").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConnectionFailed(f"the folder {root} could not be made: {error.strerror or error}") from None
    for name in sorted(texts, key=lambda n: n == "payoff.yml"):  # the root last: it makes the folder a project
        _write(root / name, texts[name])
    if json_:
        _emit({"project": str(root), "template": template.value, "files": sorted(texts)})
        return
    _say(f"Wrote a project from the template '{template.value}' to {root}:")
    for name in sorted(texts):
        _say(f"  {name}")
    if quiet:
        return
    _say("\nPut in:")
    for line in _TEMPLATE_NEXT[template]:
        _say(_wrap(line, "  ", "  "))
    where = "" if root == Path.cwd() else f" -p {shlex.quote(_near(root))}"
    _say("\nThen:")
    for command, does in (
        ("check", "are the definitions and columns right?"),
        ("doctor", "is the data?"),
        ("run", "the answer"),
    ):
        _say(f"  {f'{_called()} {command}{where}':<30} {does}")


# ---------------------------------------------------------------- looking before running


@app.command()
def check(
    project: ProjectOption = None,
    definitions_only: Annotated[
        bool, typer.Option("--definitions-only", help="Do not look at the data's columns.")
    ] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check definitions and SQL, reading no rows.

    SQL expressions are held against the data's columns. All problems are reported at once, each with its file, line
    and column. Warnings do not fail the check.
    """
    opened = _load(project)
    loaded, spec = opened.loaded, opened.loaded.spec
    if not definitions_only and loaded.sources():
        with _progress("look at columns", quiet or json_) as tell, opened.catalog(progress=tell) as catalog:
            opened.check_sql(catalog, list(loaded.sources()))
        opened.plan()
    sections = ("sources", "metrics", *(s for s in ASKED if s != "claims"), "values", "claims", "reports")
    counts = {section: len(getattr(spec, section)) for section in sections}
    warnings = [
        {"file": w.file, "line": w.line, "column": w.column, "code": w.code, "message": w.message}
        for w in loaded.warnings
    ]
    if json_:
        _emit(
            {
                "project": spec.project,
                "root": str(opened.root),
                "files": list(loaded.files),
                "counts": counts,
                "columns_checked": not definitions_only,
                "warnings": warnings,
            }
        )
        return
    for w in loaded.warnings:
        _say(str(w))
    said = (
        ", ".join(_many(n, section.removesuffix("s")) for section, n in counts.items() if n) or "nothing declared yet"
    )
    looked = "definitions only" if definitions_only else "definitions and columns"
    found = _many(len(warnings), "warning") if warnings else "no problem"
    _say(_wrap(f"{spec.project}: {said} in {_many(len(loaded.files), 'file')}. Checked {looked}: {found}."))


@app.command()
def doctor(project: ProjectOption = None, json_: JsonOption = False, quiet: QuietOption = False) -> None:
    """Look at the data: rows, ids, times, NULLs.

    Exits with 1 when something is found that figures should not rest on.
    """
    opened = _load(project)
    with _progress("look at the data", quiet or json_) as tell:
        findings = [finding.to_dict() for finding in opened.doctor(tell)]
    states = [f["status"] for f in findings]
    counts = {status: states.count(status) for status in ("ok", "warn", "fail")}
    if json_:
        _emit({"project": opened.loaded.spec.project, "findings": findings, "counts": counts})
    else:
        for source in dict.fromkeys(f["source"] for f in findings):
            _say(formats.clean(source))
            rows = [f for f in findings if f["source"] == source]
            lines = _table(("", "", ""), [(f["status"], f["column"] or f["check"], f["detail"]) for f in rows])
            _say(textwrap.indent("\n".join(lines.split("\n")[1:]), "  "))
        _say(
            f"{_many(len(opened.loaded.sources()), 'source')}: {counts['ok']} ok, {counts['warn']} warn, {counts['fail']} fail."
        )
    raise typer.Exit(1 if counts["fail"] else 0)


@app.command()
def explain(
    names: NamesArgument = None,
    sql: Annotated[bool, typer.Option("--sql", help="Also the SQL of every statement.")] = False,
    dialect: DialectOption = None,
    project: ProjectOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what a run would read, and its SQL.

    For each statement its source and columns and the figures it serves; for each source the passes over its rows.
    Looks at columns and reads no rows. What only the data can tell is left as $parameters in the SQL.
    """
    del quiet
    opened = _load(project)
    _anything(opened)
    if dialect is not None and not sql:
        raise UsageError("--dialect says how --sql is written; ask for --sql too")
    if dialect is not None:
        planned = [(step.name, step.sql) for step in opened.plan(names)]
        _written(dialect, planned, json_, {"project": opened.loaded.spec.project})
        return
    steps = [step.to_dict() for step in opened.plan(names)]
    passes = _passes(steps)
    apart = [_passes([step.to_dict() for step in opened.plan([name])]) for name in opened.named(names)]
    alone = {
        "passes": sum(p["passes"] for one in apart for p in one.values()),
        "bytes": _total(p["bytes"] for one in apart for p in one.values()),
    }
    if json_:
        told = {key: {source: of[key] for source, of in passes.items()} for key in ("passes", "bytes")}
        _emit(
            {"project": opened.loaded.spec.project, **told, "one_by_one": alone, "stale": opened.stale, "plan": steps}
        )
        return
    _say(f"{_many(len(steps), 'statement')}, {_many(len(passes), 'source')}. Passes over the rows of each:")
    rows = [(source, str(of["passes"]), formats.stored(of["bytes"])) for source, of in passes.items()]
    _say(_table(("source", "passes", "bytes read"), rows))
    if len(apart) > 1:
        together = sum(of["passes"] for of in passes.values()), _total(of["bytes"] for of in passes.values())
        _say(
            f"Together {_many(together[0], 'pass')}, {formats.stored(together[1])}; asked one by one"
            f" {_many(alone['passes'], 'pass')}, {formats.stored(alone['bytes'])}."
        )
    for relation, reason in opened.stale.items():
        _say(
            _wrap(
                f"{relation} is read as it is stored, and not its prepared copy: {reason} (payoff prepare).", "", "  "
            )
        )
    for number, step in enumerate(steps, 1):
        _say()
        _say(_wrap(f"{number}. {step['step']}", "", "   "))
        _say(_wrap(step["purpose"], "   "))
        for label, words in (("reads", [step["source"]]), ("columns", step["columns"]), ("serves", step["serves"])):
            if any(words):
                _say(_wrap(f"{label} {', '.join(words)}", "   ", "  "))
        if sql:
            _sql(textwrap.indent(step["sql"], "   "))


def _passes(steps: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Passes over the rows of each source, and the bytes that they read of it (None where only reading would tell). A text file
    is read once, when it is loaded; a look at rows and time span is answered from statistics where there are any, and is not counted."""
    loaded = {step["source"] for step in steps if step["step"].startswith("load ")}
    out: dict[str, dict[str, Any]] = {}
    for step in steps:
        source = step["source"]
        if source and (step["step"].startswith("load ") or (step["serves"] and source not in loaded)):
            of = out.setdefault(source, {"passes": 0, "bytes": 0})
            of["passes"] += 1
            of["bytes"] = _total((of["bytes"], step["bytes"]))
    return out


def _total(sizes: Iterable[int | None]) -> int | None:
    """Their sum, None where one is not known."""
    known = list(sizes)
    return None if None in known else sum(size or 0 for size in known)


def _anything(opened: Project) -> None:
    spec = opened.loaded.spec
    if not any(getattr(spec, section) for section in ASKED):
        raise UsageError(
            f"the project {spec.project} declares no experiment, no claim and no journey yet; `payoff init DIR` writes an example"
        )


def _tell_stale(opened: Project, quiet: bool) -> None:
    for relation, reason in opened.stale.items():
        _note(f"{relation} was read as it is stored: {reason}; payoff prepare makes its copy anew", quiet)


@app.command()
def prepare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Sources. Default: all with a time and a unit that are read.",
            show_default=False,
            autocompletion=_complete_source,
        ),
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Delete the copies instead.")] = False,
    project: ProjectOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy event sources, clustered by unit and time, for faster runs.

    Runs on DuckDB read the copy under .payoff/prepared while it is fresh, and the stored rows where it is not. Only what
    changed is copied again; the stored rows are never touched. Exits with 1 when a source that was named cannot be
    prepared.
    """
    opened = _load(project)
    if drop:
        reports = opened.drop_prepared(sources or None)
    else:
        with _progress("look at columns", quiet or json_) as tell:
            reports = opened.prepare(sources or None, progress=tell)
    told = [report.to_dict() for report in reports]
    if json_:
        _emit({"project": opened.loaded.spec.project, "prepared": told})
    for report in () if json_ else told:
        of = f" for {', '.join(report['sources'])}" if report["sources"] else ""
        _say(_wrap(f"{report['status']}: {report['relation']}{of}: {report['detail']}.", "", "  "))
        if report["status"] in ("prepared", "fresh"):
            held = (
                f"{_many(report['rows'], 'row')} of {_many(report['units'], report['entity'])} in"
                f" {_many(report['segments'], 'segment')}, {formats.stored(report['bytes'])}"
            )
            _say(_wrap(f"{held}; {report['seconds']:.1f} s", "  ", "  "))
    if not told and not json_:
        _say("There is no copy to drop." if drop else "No source that is read has a time and a unit.")
    raise typer.Exit(1 if sources and any(report["status"] == "refused" for report in told) else 0)


# ---------------------------------------------------------------- before an experiment


@app.command()
def power(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="An experiment; it need not have begun.", autocompletion=_complete_experiment
        ),
    ],
    mde: Annotated[
        float | None,
        typer.Option(
            "--mde",
            metavar="X",
            help="The smallest effect to find, in the primary metric's unit. Default: the experiment's stop.",
            show_default=False,
        ),
    ] = None,
    lift: Annotated[
        str | None,
        typer.Option(metavar="5%", help="The same as a share of what it was before.", show_default=False),
    ] = None,
    weeks: Annotated[
        int | None,
        typer.Option(metavar="N", help="What so many weeks of exposure would find.", show_default=False),
    ] = None,
    power: Annotated[
        float | None,
        typer.Option(
            "--power",
            metavar="0.8",
            help="The chance to find the effect if it is there. Default: the stop's, else 0.8.",
            show_default=False,
        ),
    ] = None,
    history: Annotated[
        str, typer.Option(metavar="28d", help="How long a stretch of the past units are taken from.")
    ] = "28d",
    source: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Where units were seen before. Default: where assignments are recorded, else where the metrics are.",
            show_default=False,
        ),
    ] = None,
    project: ProjectOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """How many units and weeks an experiment takes.

    Before it starts, from what the project's own tables recorded earlier: the level and the spread of each metric, what
    adjustment saves, how many new units come a week. Gives the smallest effect that 1 to 12 weeks find, and for an
    effect asked for the units and weeks; for a guardrail, what it takes to exclude harm beyond its margin. Exits with 1
    when a primary metric cannot be planned for. Nothing is kept in the ledger.
    """
    opened = _load(project)
    with _progress("look at columns", quiet or json_) as tell:
        found = opened.power(
            name, mde=mde, lift=lift, weeks=weeks, power=power, history=history, source=source, progress=tell
        )
    data = found.to_dict()
    if json_:
        _emit(data)
    else:
        _tell_plan(data)
    raise typer.Exit(found.exit_code)


def _tell_plan(plan: Mapping[str, Any]) -> None:
    _say(_wrap(plan["sentence"]))
    for metric in plan["metrics"][:1]:
        unit, name = formats.unit(metric["unit"]), formats.human(metric["metric"])
        rows = []
        for step in metric["steps"]:
            week = "-" if step["week"] is None else f"{step['week']}{' *' if step['extrapolated'] else ''}"
            rows.append((week, formats.count(step["units"]), *_effect(step["mde"], step["relative"], unit)))
        _say()
        _say(
            _table(
                (
                    "weeks of exposure",
                    f"{formats.human(plan['entity'])}s",
                    f"smallest effect on {name}",
                    "of its level",
                ),
                rows,
            )
        )
        if any(step["extrapolated"] for step in metric["steps"]):
            _say(_wrap("* beyond what was recorded: at the rate of the last week that was"))
    lines = []
    for metric in plan["metrics"]:
        unit, asked = formats.unit(metric["unit"]), metric["asked"]
        level = formats.written(metric["value"], metric["low"], metric["high"], unit)
        effect = "-" if asked is None else _effect(asked["effect"], None, unit)[0]
        units = "-" if asked is None else formats.count(asked["units"])
        needed = "-" if asked is None or asked["weeks"] is None else f"{asked['weeks']:.1f}"
        role = "exclude harm" if metric["question"] == "non-inferiority" else metric["role"]
        saves = f"{metric['r2']:.0%}" if metric["covariates"] else "-"
        lines.append((formats.human(metric["metric"]), role, level.range, saves, effect, units, needed))
    _say()
    head = ("metric", "role", f"level, {formats.level(1 - plan['alpha'])} interval", "R2", "effect", "units", "weeks")
    _say(_table(head, lines))
    for metric in plan["metrics"]:
        shape = metric["clusters"]
        if shape is not None:
            alike = "" if shape["icc"] is None else f", intraclass correlation {shape['icc']:.3g}"
            said = f"{formats.human(metric['metric'])}: clusters of {shape['mean_size']:.3g} units{alike}: {shape['design_effect']:.3g} times as many units as without"
            _say(_wrap(said, "  ", "  "))
    notes = [f"{formats.human(m['metric'])}: {note}." for m in plan["metrics"] for note in m["notes"]]
    notes += [f"{r['name']} cannot be planned for: {r['reason']}; {r['remedy']}." for r in plan["refusals"]]
    _say()
    for note in (*notes, *plan["notes"]):
        _say(_wrap(f"- {note}", "", "  "))


def _effect(size: float | None, relative: float | None, unit: formats.Unit) -> tuple[str, str]:
    if size is None:
        return "none", ""
    share = "" if relative is None else formats.rounded(relative, formats.RELATIVE)
    return formats.size(formats.rounded(size, unit, change=True)), share


# ---------------------------------------------------------------- running


@app.command()
def run(
    ctx: typer.Context,
    names: NamesArgument = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of the random draws that carry uncertainty to money.")
    ] = 1,
    no_record: Annotated[bool, typer.Option("--no-record", help="Do not keep the run in the ledger.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Count all of prepared sources again, not only what is new in them.")
    ] = False,
    brief: BriefOption = False,
    today: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="The day against which values expire. Default: today.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Also write the run's JSON to FILE.", show_default=False),
    ] = None,
    project: ProjectOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Answer experiments and journeys, and price claims.

    Prints what was found, and appends it to the ledger. A claim brings the experiments that are its evidence. Exits
    with 1 when a check or a guardrail failed, or a claim's decision rule is not met. With --json the whole run is
    printed.
    """
    opened = _load(project)
    _anything(opened)
    day = _day(today)
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.absolute().parent}; make it first")
    if out is not None and out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file in it")
    asked: _Asked = ctx.obj
    with _progress("look at columns", quiet or json_) as tell:
        found = opened.run(
            names,
            seed=seed,
            record=not no_record,
            full=full,
            today=day,
            progress=tell,
            actor=_user(),
            command=asked.command,
        )
    data = found.to_dict()
    if out is not None:
        _write(out, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if json_:
        _emit(data)
    else:
        _findings(data, brief)
        if data["failures"]:
            _say("\nFailed:")
            for failure in data["failures"]:
                _say(_wrap(failure, "  ", "  "))
        for w in opened.loaded.warnings:
            _note(str(w), quiet)
        kept = "not kept (--no-record)" if no_record else f"kept as run {found.run_id[:8]}; payoff show reads it again"
        _note(kept, quiet)
    _tell_stale(opened, quiet or json_)
    raise typer.Exit(found.exit_code)


# ---------------------------------------------------------------- what was kept


@app.command()
def show(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="An experiment, a claim or the id of a run. Default: the newest run.",
            show_default=False,
            autocompletion=_complete_name,
        ),
    ] = None,
    sql: Annotated[bool, typer.Option("--sql", help="The SQL that gave the figures, as it was executed.")] = False,
    dialect: DialectOption = None,
    brief: BriefOption = False,
    history: Annotated[bool, typer.Option("--history", help="Every stored version of NAME, oldest first.")] = False,
    runs: Annotated[bool, typer.Option("--runs", help="The newest runs.")] = False,
    project: ProjectOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what earlier runs found.

    Reads the ledger and no data. Who looked is noted in the ledger: looking at figures before a test is over is part
    of how far they can be trusted.
    """
    if dialect is not None and not sql:
        raise UsageError("--dialect says how --sql is written; ask for --sql too")
    if sum((sql, history, runs)) > 1:
        raise UsageError("--sql, --history and --runs show different things; ask for one of them")
    if history and name is None:
        raise UsageError("--history needs the NAME of an experiment or a claim")
    if runs and name is not None:
        raise UsageError("--runs lists all runs; it takes no NAME")
    opened = _load(project)
    with opened.ledger(read_only=True) as ledger:
        if runs:
            _show_runs(ledger.runs(project=opened.loaded.spec.project), json_)
            return
        stored, meant = opened.recall(ledger, name)
        whole_run = not any(full == name or full.endswith(f".{name}") for full in meant)
        if history and whole_run:
            raise UsageError(f"--history needs the NAME of an experiment or a claim, which '{name}' is not")
        kinds = ("result", "claim", "refusal") if history else ()
        found = [
            (v, kind) for kind in kinds for v in ledger.history(kind, meant[0], project=opened.loaded.spec.project)
        ]
    data = stored.to_dict() if whole_run else _only(stored.to_dict(), meant)
    if history:
        ordered = sorted(found, key=lambda pair: pair[0].seq)
        versions = [
            {"seq": v.seq, "at": v.at, "run_id": v.run_id, "kind": kind, "figures": dict(v.figures)}
            for v, kind in ordered
        ]
        _show_history(meant[0], versions, json_)
    elif sql:
        _show_sql(data, json_, dialect)
    elif json_:
        _emit(data)
    else:
        _findings(data, brief)
        _note(f"run {stored.run_id[:8]} of {formats.moment(stored.header.at)}", quiet)
    try:
        with opened.ledger() as ledger:
            for full in dict.fromkeys(meant):
                ledger.record_view(full, _user(), project=opened.loaded.spec.project)
    except PayoffError as error:
        _note(f"this look could not be noted in the ledger: {error}", quiet)


def _only(run: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A stored run with nothing but ``names`` in it; a claim keeps the results that are its evidence."""
    wanted = set(names)
    for claim in run["claims"]:
        if claim["name"] in wanted:
            wanted |= {e if "." in e else f"experiments.{e}" for e in claim["evidence"]}
            wanted |= {compared["name"] for compared in claim.get("compare", ())}
    metrics = tuple(f"{name}." for name in wanted)  # a metric without a number is refused under its experiment's name
    lists = {
        section: [item for item in run[section] if item["name"] in wanted or item["name"].startswith(metrics)]
        for section in ("results", "claims", "refusals")
    }
    return {**run, **lists, "reports": {}}


def _show_runs(entries: Sequence[Any], json_: bool) -> None:
    rows: list[dict[str, Any]] = []
    for entry in entries:
        header = entry.payload
        keys = ("counts", "seed", "actor", "command", "definition_hash", "data_fingerprint", "failures")
        rows.append({"run_id": entry.run_id, "at": entry.at, **{key: header.get(key) for key in keys}})
    if json_:
        _emit({"runs": rows})
        return
    if not rows:
        _say("No run of this project is stored yet; make one with: payoff run")
        return
    cells = []
    for row in rows:
        held = ", ".join(_many(n, section[:-1]) for section, n in row["counts"].items() if n) or "nothing"
        failed = f"; {len(row['failures'])} failed" if row["failures"] else ""
        cells.append((row["run_id"][:8], formats.moment(row["at"]), row["actor"] or "-", f"{held}{failed}"))
    _say(_table(("run", "when", "who", "holds"), cells))


def _show_history(name: str, versions: Sequence[Mapping[str, Any]], json_: bool) -> None:
    if json_:
        _emit({"name": name, "versions": list(versions)})
        return
    rows = []
    for version in versions:
        figures = version["figures"]
        group = next((g for g in ("net", "amount", "estimate") if f"{g}.value" in figures), None)
        if group is None:
            shown = figures.get("reason", "no figure")
        else:
            value, low, high = (figures[f"{group}.{key}"] for key in ("value", "low", "high"))
            text = formats.written(value, low, high, formats.unit(figures[f"{group}.unit"]), change=True)
            shown = f"{figures.get('estimate.metric', group)} {text.value} ({text.range})"
        grade = (
            f"{figures.get('verdict', version['kind'])}, {figures['grade']}" if "grade" in figures else version["kind"]
        )
        rows.append((formats.moment(version["at"]), version["run_id"][:8], shown, grade))
    _say(_table(("when", "run", "figure and interval", "verdict, grade"), rows))


def _show_sql(run: Mapping[str, Any], json_: bool, dialect: str | None) -> None:
    found: dict[tuple[str, str], None] = {}
    for result in run["results"]:
        for statement in result["provenance"]["sql"]:
            found[statement["step"], statement["text"]] = None
    if dialect is not None:
        elsewhere = next((name for name in ("postgres", "clickhouse", "spark") if name in run["versions"]), None)
        if elsewhere is not None:
            raise UsageError(
                f"this run was executed on {elsewhere}, and its SQL is kept as it was sent; explain --sql --dialect {dialect} plans it anew"
            )
        _written(dialect, list(found), json_, {"run_id": run["run_id"]})
        return
    if json_:
        _emit({"run_id": run["run_id"], "sql": [{"step": step, "text": text} for step, text in found]})
        return
    if not found:
        _say("No SQL was executed for this.")
    for step, text in found:
        _sql(f"-- {step}\n{text};\n")


def _written(dialect: str, statements: Sequence[tuple[str, str]], json_: bool, about: Mapping[str, Any]) -> None:
    """Statements of ours as they would be written in another dialect; exits with 1 where one has no form there."""
    from payoff.warehouse.engines.rendered import written

    out = written(dialect, statements)
    refused = [s for s in out if s.text is None]
    if json_:
        told = [{"step": s.step, "text": s.text, "refused": s.refused} for s in out]
        _emit({**about, "dialect": dialect, "executed": False, "sql": told})
    else:
        _sql(f"-- rendered for {dialect}, not executed; a file is a table of its name; times are in UTC\n")
        for s in out:
            _sql(f"-- {s.step}\n{s.text};\n" if s.text is not None else f"-- {s.step}: not written, {s.refused}\n")
        if not out:
            _say("No SQL was executed for this.")
    if refused:
        raise typer.Exit(1)


@app.command()
def report(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A report of the project. Default: all figures of the newest run.",
            show_default=False,
            autocompletion=_complete_report,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Default: reports/NAME.html in the project.", show_default=False),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    project: ProjectOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the figures as one HTML file.

    It needs no network and no script, and shows the newest stored run. Where no stored run holds what the report
    shows, it is run first.
    """
    opened = _load(project)
    spec = opened.loaded.spec
    if name is not None and name not in spec.reports:
        raise UsageError(f"'{name}' is not a report of this project{did_you_mean(name, spec.reports)}")
    declared = {key: value.model_dump(mode="json") for key, value in spec.reports.items()}
    wanted = spec.reports[name].show if name is not None else ()
    run = _newest_with(opened, wanted)
    ran = run is None
    if run is None:
        _anything(opened)
        with _progress("look at columns", quiet or json_) as tell:
            run = opened.run(progress=tell, actor=_user(), command="payoff report").to_dict()
    from payoff.report import figures, html

    page = figures.build({**run, "reports": declared}, name)
    path = html.write(page, (out or opened.root / REPORTS / f"{name or 'latest'}.html").absolute())
    changed = run["definition_hash"] != opened.loaded.definition_hash
    if open_:
        typer.launch(path.as_uri())
    if json_:
        _emit({"report": str(path), "name": name, "run_id": run["run_id"], "ran": ran, "definitions_changed": changed})
        return
    if ran:
        _say("No stored run holds these figures, so they were computed now.")
    _say(f"Wrote {path}")
    if not ran:
        _say(f"It shows run {run['run_id'][:8]} of {formats.moment(run['finished'])}.")
    if changed:
        _say("The definitions have changed since; `payoff run` computes the figures anew.")


def _newest_with(opened: Project, wanted: Sequence[str]) -> dict[str, Any] | None:
    """The newest stored run that holds, or refuses, all that a report shows; None where there is none."""
    try:
        ledger = opened.ledger(read_only=True)
    except ConnectionFailed:
        if opened.loaded.spec.ledger is None and not (opened.root / ".payoff" / "ledger.db").exists():
            return None
        raise
    with ledger:
        for header in ledger.runs(limit=50, project=opened.loaded.spec.project):
            stored = ledger.run(header.run_id).to_dict()
            held = {item["name"] for section in ("results", "claims", "refusals") for item in stored[section]}
            held |= {f"metrics.{e['metric']}" for result in stored["results"] for e in result["estimates"]}
            held |= {f"metrics.{r['name'].rpartition('.')[2]}" for r in stored["refusals"]}
            if held and held.issuperset(wanted):
                return stored
    return None


@app.command()
def verify(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|RUN",
            help="An experiment, a claim or the id of a run. Default: the newest run.",
            show_default=False,
            autocompletion=_complete_name,
        ),
    ] = None,
    project: ProjectOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compute a stored run again, and compare.

    With its seed and its day, every figure; and the ledger's chain, whether it was rewritten. Says what changed
    around the figures: definitions, data, versions. Exits with 1 when a figure differs or the ledger's chain is
    broken.
    """
    opened = _load(project)
    with _progress("look at columns", quiet or json_) as tell:
        found = opened.verify(name, progress=tell)
    if json_:
        _emit({"project": opened.loaded.spec.project, **found.to_dict()})
    else:
        _tell_verification(found)
    raise typer.Exit(0 if found.equal else 1)


_HEADLINE = re.compile(r"(net|amount|estimates\[\d+\])\.value$|grade$|verdict$|what it is$")


def _tell_verification(found: Verification, most: int = 8) -> None:
    _say(_wrap(f"The ledger's chain {'holds' if found.chain.ok else 'is BROKEN'}: {found.chain.detail}."))
    if not found.chain.ok:
        _say("Nothing was computed again: a figure from a rewritten ledger is no witness.")
        return
    _say(f"Run {str(found.run_id)[:8]} of {formats.moment(str(found.at))}, computed again with its seed:")
    for figure in found.figures:
        _say(f"  {'different' if figure.differences else 'equal':<10} {formats.clean(figure.name)}")
        first = sorted(figure.differences, key=lambda d: not _HEADLINE.match(d.path))
        for difference in first[:most]:
            _say(_wrap(str(difference), "      ", "  "))
        if len(figure.differences) > most:
            _say(f"      and {len(figure.differences) - most} more; --json shows all")
    if not found.figures:
        _say("  it holds no figure")
    _say("What changed around them: nothing." if not found.context else "What changed around them:")
    for line in found.context:
        _say(_wrap(line, "  ", "  "))


@app.command(hidden=True)
def schema(json_: JsonOption = False) -> None:
    """Print the JSON Schema of project files."""
    del json_
    from payoff.spec.loader import json_schema

    _emit(json_schema())


def main() -> None:
    """The console script."""
    # Closed by whoever started us (`>&-`): without a stand-in the next file opened would be taken for it.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot spell must not end a run
    app(prog_name="payoff")
