"""The same objects from Python: a project, what it can be asked, and answers that show themselves."""

from __future__ import annotations

import json

import pytest

import payoff
from payoff.errors import UsageError
from payoff.run import Answer, Project
from tests.methods.test_experiment import DECISIONS, decisions_project

CLAIM = """
    values:
      click: {value: 0.02, low: 0.01, high: 0.03, per: click, source: s, owner: o, expires: 2099-01-01}
    claims:
      worth:
        statement: "Ranking pays"
        evidence: [ranking]
        amount: "(effect(revenue) + effect(clicks) * value(click)) * population(visitor, 365d)"
        less: {run: 100}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("api")
    decisions_project(folder, definitions=DECISIONS + CLAIM)
    return payoff.load(str(folder))


@pytest.fixture(scope="module")
def answer(project: Project) -> Answer:
    return project.experiments["ranking"].run(record=False)


def test_an_answer_is_data(answer: Answer) -> None:
    told = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert told["name"] == "experiments.ranking"
    table = answer.to_arrow()
    assert table.num_rows == len(told["estimates"])
    assert {"metric", "contrast", "estimand", "value", "low", "high"} <= set(table.column_names)
    assert list(answer.to_frame()["value"]) == [e["value"] for e in told["estimates"]]


def test_an_answer_shows_itself(answer: Answer) -> None:
    text, page, picture = str(answer), answer._repr_html_(), answer.plot()
    assert "Bought" in text
    assert "<script" not in page.lower()
    assert picture.lstrip().startswith("<svg")
    assert "<title" in picture


def test_an_answer_shows_what_was_executed(answer: Answer, project: Project) -> None:
    assert "GROUP BY" in answer.sql()
    assert "table main.events" in answer.explain()
    assert "table main.events" in project.experiments["ranking"].explain()


def test_a_claim_is_asked_like_an_experiment(project: Project) -> None:
    claim = project.claims["worth"].run(record=False)
    assert claim.to_dict()["name"] == "claims.worth"
    assert claim.to_arrow().num_rows == len(claim.to_dict()["inputs"])
    assert claim.plot().lstrip().startswith("<svg")
    assert "Ranking pays" in str(claim)
    # effects measured on the same visitors are drawn together
    (result,) = claim.run.results
    assert (("clicks", "new vs old"), ("revenue", "new vs old")) in result.correlations


def test_runs_are_kept_and_numbered(project: Project) -> None:
    first, second = project.run(["ranking"]), project.run(["ranking"])
    with project.ledger(read_only=True) as ledger:
        kept = [entry.run_id for entry in ledger.runs()]
        assert kept[:2] == [second.run_id, first.run_id]
        assert ledger.verify_chain().ok


def test_unknown_names_are_answered_with_the_nearest(project: Project) -> None:
    with pytest.raises(UsageError, match="did you mean 'ranking'"):
        project.run(["rankin"])
