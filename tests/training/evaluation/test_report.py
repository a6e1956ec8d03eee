"""The report as a browser gets it: what it says, that it loads nothing, and that no text becomes markup."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data.fuse import fuse
from training.evaluation import metrics
from training.evaluation.charts import curve
from training.evaluation.report import Fragment, ReportData, write_report
from training.evaluation.sections import CLASSIFICATION, comparison, sources, verdict
from training.recipe import Recipe

LABELS = ["billing", "delivery", "account"]
VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}


class Page(HTMLParser):
    """Checks that elements close in order, and keeps what they are and say."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.words.append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.words).split())

    def headings(self) -> int:
        return sum(tag == "h2" for tag, _ in self.elements)


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the data stage tells of a hundred tickets: a broken line, two empty texts, three copies, lost customers."""
    folder = tmp_path_factory.mktemp("tickets")
    tickets = [
        {"customer_id": number, "text": f"{LABELS[number % 3]} matter {number} of {number * 7919}"}
        | {"topic": LABELS[number % 3]}
        for number in range(95)
    ]
    tickets += [{"customer_id": 1, "text": "", "topic": "billing"}] * 2 + [tickets[0], tickets[1], tickets[2]]
    lines = [json.dumps(ticket) for ticket in tickets]
    (folder / "a.jsonl").write_text("\n".join(lines[:50]) + "\n{broken\n", encoding="utf-8")
    (folder / "b.jsonl").write_text("\n".join(lines[50:]) + "\n", encoding="utf-8")
    customers = [f"{number},plan" for number in range(60, 100)]
    (folder / "customers.csv").write_text("\n".join(["customer_id,plan", *customers]) + "\n", encoding="utf-8")
    tree = {
        "name": "tickets",
        "data": {
            "sources": {"tickets": {"read": "*.jsonl"}, "customers": {"read": "customers.csv"}},
            "fuse": "SELECT t.*, c.plan FROM tickets t LEFT JOIN customers c ON t.customer_id = c.customer_id",
            "clean": {"drop_empty": ["text"], "drop_duplicates": ["text"]},
            "split": {"validation": 0.2, "test": 0.2, "stratify": "topic"},
        },
        "model": {"task": "text-classification", "base": "unused", "inputs": {"text": "text"}, "target": "topic"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(folder / "home"))
        return fuse(Recipe.model_validate(tree, context={"folder": folder})).report


@pytest.fixture
def data(fused: dict[str, Any]) -> ReportData:
    chance = np.random.default_rng(1)
    targets = chance.integers(0, 3, 200)
    outputs = chance.normal(0, 1, (200, 3)).astype(np.float32)
    outputs[np.arange(200), targets] += 3
    measured = metrics.classification(outputs, targets, LABELS)
    rival = dict.fromkeys(measured, 0.4)
    return ReportData(
        name="support-intent",
        description="Which team should handle this ticket?",
        task="text-classification",
        version=3,
        created="2026-11-21T22:41:03+00:00",
        metrics={f"test/{name}": value for name, value in measured.items()}
        | {f"validation/{name}": value for name, value in measured.items()},
        baselines={
            "majority": {f"test/{name}": value / 2 for name, value in rival.items()},
            "tfidf": {"test/accuracy": 0.55, "test/macro_f1": 0.5},
        },
        headline="accuracy",
        titles={"majority": "Most frequent label", "tfidf": "TF-IDF + linear SVM"},
        labels=LABELS,
        outputs=list(outputs),
        targets=targets.tolist(),
        texts=[f"ticket number {place}" for place in range(200)],
        history=[
            {
                "step": step,
                "epoch": step // 20,
                "loss": 3 / step,
                "learning_rate": 1e-4 / step,
                "validation": {"accuracy": step / 100, "loss": 1.0} if step % 20 == 0 else None,
            }
            for step in range(1, 61)
        ],
        data=fused,
        recipe="name: support-intent\ndata: {sources: {tickets: {database: 'postgresql://me:***@db/shop'}}}\n",
        versions={"headrace": "0.1.0"},
        seconds=193.2,
    )


def test_it_says_first_whether_the_model_beats_its_baselines(tmp_path: Path, data: ReportData) -> None:
    write_report(tmp_path / "report.html", data, CLASSIFICATION)
    said = read(tmp_path / "report.html").said
    accuracy = data.metrics["test/accuracy"]
    expected = f"right on {accuracy:.1%} of 200 test rows, {100 * (accuracy - 0.55):.1f} points more than TF-IDF"
    assert f"It earns its keep: {expected}" in said
    assert said.index("It earns its keep") < said.index("Against the baselines") < said.index("How it learned")
    assert "21 November 2026, 22:41 UTC" in said
    assert "3 min 13 s" in said


@pytest.mark.parametrize(
    ("rival", "lead"),
    [(0.5, "It earns its keep"), (0.79, "No clear gain"), (0.81, "No clear gain"), (0.97, "It does not")],
)
def test_the_verdict_is_as_sure_as_the_rows_allow(data: ReportData, rival: float, lead: str) -> None:
    judged = replace(data, metrics={"test/accuracy": 0.8}, baselines={"rival": {"test/accuracy": rival}})
    fragment = verdict(judged)
    assert fragment
    assert lead in fragment.html


@pytest.mark.parametrize(
    ("rival", "said"),
    [
        (0.5, '<span class="gain">30.0 points more</span> than rival'),
        (0.79, '<span class="">1.0 points more</span> than rival'),
        (0.8, '<span class="">as many</span> as rival'),
        (0.81, '<span class="">1.0 points less</span> than rival'),
        (0.97, '<span class="gain wrong">17.0 points less</span> than rival'),
    ],
)
def test_what_may_be_chance_is_not_coloured(data: ReportData, rival: float, said: str) -> None:
    judged = replace(data, metrics={"test/accuracy": 0.8}, baselines={"rival": {"test/accuracy": rival}})
    fragment = verdict(judged)
    assert fragment
    assert said in fragment.html


def test_no_axis_of_shares_goes_beyond_all() -> None:
    for share in (0.0, 0.62, 1.0):
        drawn = str(curve([(1, share), (2, share), (3, share)], "accuracy", "flat", dots=True, best=True, percent=True))
        ticks = [float(one) for one in re.findall(r">\s*(-?[\d.]+)%\s*<", drawn)]
        assert len(ticks) > 1, share
        assert all(0 <= one <= 100 for one in ticks), share


def test_every_part_is_there_and_every_chart_is_told_in_words(tmp_path: Path, data: ReportData) -> None:
    write_report(tmp_path / "report.html", data, CLASSIFICATION)
    page = read(tmp_path / "report.html")
    assert page.headings() == 9
    charts = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(charts) == 7
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in charts)
    assert sum(tag == "h1" for tag, _ in page.elements) == 1


def test_it_shows_what_became_of_the_rows(tmp_path: Path, data: ReportData) -> None:
    write_report(tmp_path / "report.html", data, CLASSIFICATION)
    said = read(tmp_path / "report.html").said
    assert "tickets jsonl, 2 files 101 1 100" in said
    assert "t.customer_id = c.customer_id tickets 100 35 65 60 customers 40 35 5 5" in said
    assert "From fused to kept Fused 100 empty text −2 exact copies text −3 Kept 95" in said
    assert "train 57 validation 19 test 19" in said
    assert "What deserves a look tickets: 1 rows rejected tickets with customers" in said
    assert "65 of 100 rows of tickets find no partner" in said
    assert "a join found several partners" not in said
    assert "Split so that every part has the same shares of topic. 1 rows were rejected" in said


def test_it_loads_nothing_from_anywhere(tmp_path: Path, data: ReportData) -> None:
    write_report(tmp_path / "report.html", data, CLASSIFICATION)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?(?!#)[^"'#\s>]*//""", html)
    assert not re.search(r"url\((?!#)|@import", html)
    assert "http://" not in html
    assert "default-src 'none'" in html


def test_no_text_becomes_markup(tmp_path: Path, data: ReportData) -> None:
    hostile = "<script>alert(1)</script>"
    labels = ["<img src=x onerror=alert(2)>", "\"'><b>bold</b>", "$x_1$ & {{ 7 * 7 }}"]
    data = replace(
        data,
        name=hostile,
        description=hostile,
        labels=labels,
        texts=[hostile + str(place) for place in range(200)],
        baselines={hostile: {"test/accuracy": 0.5}},
        recipe=f"name: '{hostile}'",
        versions={hostile: hostile},
        data={
            **data.data,
            "sources": {hostile: {"kind": hostile, "read": 1}},
            "split": {"by": f"group {hostile}"},
            "notes": [hostile],
        },
    )
    write_report(tmp_path / "report.html", data, CLASSIFICATION)
    page = read(tmp_path / "report.html")
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not {"img", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert hostile + "1" in page.said
    assert "$x_1$ & {{ 7 * 7 }}" in page.said


def test_the_policy_allows_the_page_its_own_script(tmp_path: Path, data: ReportData) -> None:
    import base64
    import hashlib

    write_report(tmp_path / "report.html", data, CLASSIFICATION)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html


def test_equal_runs_have_equal_reports(tmp_path: Path, data: ReportData) -> None:
    write_report(tmp_path / "one.html", data, CLASSIFICATION)
    write_report(tmp_path / "other.html", data, CLASSIFICATION)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "other.html").read_bytes()


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    write_report(
        tmp_path / "report.html", ReportData(name="bare", task="text-classification", metrics={}), CLASSIFICATION
    )
    page = read(tmp_path / "report.html")
    assert "Nothing was held out so nothing was measured." in page.said
    assert page.headings() == 0


def test_a_run_without_baselines_or_with_few_facts_still_has_a_report(tmp_path: Path, data: ReportData) -> None:
    data = replace(data, baselines={}, history=data.history[:1], data={"splits": {"test": 200}}, texts=())
    write_report(tmp_path / "report.html", data, CLASSIFICATION)
    said = read(tmp_path / "report.html").said
    assert "there is no baseline to beat" in said
    assert "Wrong and certain" not in said


def test_the_validation_split_is_judged_where_there_is_no_test(tmp_path: Path, data: ReportData) -> None:
    alone = {name: value for name, value in data.metrics.items() if name.startswith("validation/")}
    write_report(
        tmp_path / "report.html", replace(data, judged="validation", metrics=alone, baselines={}), CLASSIFICATION
    )
    assert "of 200 validation rows" in read(tmp_path / "report.html").said


def test_a_model_without_errors_has_no_part_on_them(tmp_path: Path, data: ReportData) -> None:
    perfect = replace(data, outputs=list(np.eye(3)[data.targets] * 9))
    write_report(tmp_path / "report.html", perfect, CLASSIFICATION)
    assert "What it mixes up" not in read(tmp_path / "report.html").said


def test_chinese_stays_text(tmp_path: Path, data: ReportData) -> None:
    write_report(
        tmp_path / "report.html",
        replace(data, labels=["差评", "好评", "一般"], texts=["房间很脏"] * 200),
        CLASSIFICATION,
    )
    page = read(tmp_path / "report.html")
    assert "差评" in page.said
    assert "房间很脏" in page.said


def test_another_task_brings_its_own_sections(tmp_path: Path, data: ReportData) -> None:
    from markupsafe import Markup

    def found(data: ReportData) -> Fragment:
        return Fragment("What it found", Markup("<p>entities</p>"))

    write_report(tmp_path / "report.html", data, [verdict, found])
    page = read(tmp_path / "report.html")
    assert page.headings() == 1
    assert "What it found entities" in page.said


def test_another_task_names_its_headline_its_baselines_and_its_sections(tmp_path: Path, fused: dict[str, Any]) -> None:
    """What a run knows of a task without labels, in the parts that suit any task."""
    data = ReportData(
        name="ranker",
        task="sentence-similarity",
        headline="recall_at_10",
        metrics={"test/recall_at_10": 0.9, "test/loss": 0.2, "validation/recall_at_10": 0.8},
        baselines={"words": {"test/recall_at_10": 0.6}},
        titles={"words": "Words in common"},
        data=fused,
    )
    write_report(tmp_path / "report.html", data, [verdict, comparison, sources])
    page = read(tmp_path / "report.html")
    assert page.headings() == 2
    assert "It earns its keep: Recall@10 of 90.0% on 19 test rows, against 60.0% of Words in common" in page.said
    assert "points" not in page.said, "no interval follows from the rows of what is no share of them"
    assert "Recall@10 90.0% Loss 0.200" in page.said
    assert "On validation Model Recall@10 Loss" in page.said
    assert "Accuracy" not in page.said


def test_less_can_be_better(tmp_path: Path, data: ReportData) -> None:
    measured = {"test/mae": 0.4, "test/loss": 0.3}
    rivals = {"mean": {"test/mae": 0.9, "test/loss": 1.0}, "trees": {"test/mae": 0.5, "test/loss": 0.2}}
    judged = replace(data, headline="mae", direction="min", metrics=measured, baselines=rivals, titles={})
    write_report(tmp_path / "report.html", judged, [verdict, comparison])
    said = read(tmp_path / "report.html").said
    assert "It earns its keep: MAE of 0.400 on 200 test rows, against 0.500 of trees" in said
    assert "less is better" in said


def test_pictures_and_sounds_are_in_the_page_itself(tmp_path: Path, data: ReportData) -> None:
    known = {"image": "data:image/png;base64,iVBORw0KGgo=", "sound": "data:audio/wav;base64,UklGRg=="}
    write_report(tmp_path / "report.html", replace(data, shown=lambda index: known), CLASSIFICATION)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "img-src data:; media-src data:;" in html
    elements = read(tmp_path / "report.html").elements
    sources = {tag: attributes["src"] for tag, attributes in elements if tag in ("img", "audio")}
    assert sources == {"img": known["image"], "audio": known["sound"]}
    assert all("alt" in attributes for tag, attributes in elements if tag == "img")
