"""The page at ``/`` in a real browser: by keyboard, in two languages, in light and dark, wide and narrow."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.keys import Keys
from serving.recipe import Serve
from tests.serving import test_tables
from tests.serving.browser import CHROMIUM, CONTROL, Page, browser
from tests.serving.conftest import LABELS, Running, entry
from tests.serving.test_completions import writers
from tests.serving.test_search import written
from training.bundle import Bundle
from training.tasks.sentence_similarity import SentenceSimilarity
from training.tasks.text_ranking import TextRanking

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed; on Debian: apt-get install chromium")

SHOWN = "document.querySelector('#model') && !document.querySelector('#model').hidden"
ANSWERED = "!document.querySelector('#result').hidden"
FOCUS = "document.activeElement?.id"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def edge(
    edge_of: Callable[..., Any],
    bundle: Bundle,
    pair_bundle: Bundle,
    tiny_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("page")
    bundles = {
        "intent": bundle,
        "pair": pair_bundle,
        "find": written(folder / "find", SentenceSimilarity, tiny_base, "find"),
        "rank": written(folder / "rank", TextRanking, tiny_base, "rank"),
        **writers(folder, {"writer": "prompt"}),
        "price": test_tables.made(folder)["price"],
    }
    with edge_of({name: entry(one, 3) for name, one in bundles.items()}, Serve()) as running:
        yield running


@pytest.fixture
def shown(page: Page, edge: Running) -> Iterator[Callable[[str], Page]]:
    """``shown("intent")``: the page of a model; afterwards nothing may have gone wrong on it."""
    page.complaints.clear()

    def show(name: str) -> Page:
        page.open(f"{edge.address}/#{name}")
        page.until(f"{SHOWN} && document.querySelector('h1').textContent === {json.dumps(name)}")
        return page

    yield show
    page.value("0")  # brings what it has said since
    assert page.complaints == []


def text(page: Page, selector: str) -> str:
    return str(page.value(f"document.querySelector({json.dumps(selector)}).textContent"))


def texts(page: Page, selector: str) -> list[str]:
    every = f"document.querySelectorAll({json.dumps(selector)})"
    return list(page.value(f"Array.from({every}, one => one.textContent)"))


def test_by_keyboard_alone_a_text_is_answered_and_explained(shown: Callable[[str], Page]) -> None:
    page = shown("intent")
    assert page.value(FOCUS) == "field0"
    page.type("where is my card 😀 and 我的包裹")
    page.press("Enter", CONTROL)
    page.until(ANSWERED)
    labels = texts(page, "#answer .entry > span:first-child")
    assert len(labels) == 5 and set(labels) <= set(LABELS)
    assert page.value("document.querySelector('#why').hidden")
    assert "version 3" in text(page, "#about") and "torch-fp32" in text(page, "#about")

    page.press("Tab")
    assert page.value(FOCUS) == "ask"
    page.press("Tab")
    assert page.value(FOCUS) == "explain"
    page.press(" ")
    page.value("document.querySelector('#ask').focus()")
    page.press("Enter")
    page.until("!document.querySelector('#why').hidden")
    assert texts(page, "#words mark") == ["where", "is", "my", "card", "😀", "and", *"我的包裹"]
    assert text(page, "#words") == "where is my card 😀 and 我的包裹"
    tints = "Array.from(document.querySelectorAll('#words mark'), one => getComputedStyle(one).backgroundColor)"
    assert len(set(page.value(tints))) > 3, "each word is as deep in colour as it weighs"
    assert labels[0] in text(page, "#why-title") and "Most of all: " in text(page, "#spoken")
    assert '"explain":true' in text(page, "#curl") and '"explain":True' in text(page, "#python")


def test_the_language_is_switched_and_what_is_typed_stays(shown: Callable[[str], Page]) -> None:
    page = shown("intent")
    assert page.value("document.documentElement.lang") == "en"
    page.type("my card")
    page.press("Enter", CONTROL)
    page.until(ANSWERED)
    labels = texts(page, "#answer .entry > span:first-child")
    page.value("document.querySelector('#language').click()")
    assert page.value("document.documentElement.lang") == "zh-CN"
    assert (text(page, "#ask"), text(page, "#fields label"), text(page, "#language")) == ("提问", "文本", "English")
    assert "版本 3" in text(page, "#about")
    assert page.value("document.querySelector('#field0').value") == "my card"
    assert texts(page, "#answer .entry > span:first-child") == labels
    page.value("document.querySelector('#language').click()")
    assert text(page, "#ask") == "Ask"


def test_both_languages_say_everything(shown: Callable[[str], Page]) -> None:
    page = shown("intent")
    assert page.value("Object.keys(SAID.en).sort().join() === Object.keys(SAID.zh).sort().join()")
    assert page.value("Array.from(document.querySelectorAll('[data-say]')).every(one => one.textContent)")


@pytest.mark.parametrize(
    ("name", "typed", "expected"),
    [
        ("pair", ["card", "it is late"], 5),
        ("find", ["my card", "the card\nthe parcel is late"], 2),
        ("rank", ["my card", "the card\nthe parcel\nthe bill"], 3),
    ],
)
def test_each_task_has_its_fields_and_bars(
    shown: Callable[[str], Page], name: str, typed: list[str], expected: int
) -> None:
    page = shown(name)
    for index, part in enumerate(typed):
        page.value(f"document.querySelector('#field{index}').focus()")
        page.type(part)
    assert page.value("document.querySelector('#explains').hidden") == (name != "pair")
    page.press("Enter", CONTROL)
    page.until(ANSWERED)
    assert len(texts(page, "#answer .entry")) == expected
    assert set(texts(page, "#answer .entry > span:first-child")) <= {*LABELS, *typed[-1].splitlines()}


def test_a_text_is_written_as_it_comes(shown: Callable[[str], Page]) -> None:
    page = shown("writer")
    page.type("card")
    page.press("Enter", CONTROL)
    page.until(f"{ANSWERED} && document.querySelector('#took').textContent")
    assert text(page, "#answer .read")


@pytest.mark.parametrize("name", ["writer", "intent"])
def test_an_answer_is_not_shown_under_another_model(shown: Callable[[str], Page], name: str) -> None:
    """Whoever looks at another model before the answer is there sees nothing of it, and asks that one as ever."""
    page = shown(name)
    page.type("card")
    page.value("(async () => { const asked = ask(new Event('submit')); show(models[1]); await asked; })()")
    assert (text(page, "h1"), text(page, "#took")) == ("pair", "")
    assert page.value("document.querySelector('#result').hidden && last === null && version === models[1].version")
    page.value("(async () => { await ask(new Event('submit')); })()")
    assert not page.value("document.querySelector('#result').hidden")


def test_a_number_is_no_share_of_anything(shown: Callable[[str], Page]) -> None:
    drawn = "drawn([{ label: 'price', score: 0.37 }], {}).querySelector('.share').textContent"
    assert shown("price").value(drawn) == "0.3700"
    assert shown("intent").value(drawn) == "37.0 %"


def test_what_was_not_measured_is_not_shown(shown: Callable[[str], Page]) -> None:
    page = shown("intent")
    page.value(
        "model.metrics = { 'test/accuracy': null, 'test/f1': 0.5 };"
        "model.baselines = { majority: { 'test/f1': null }, tfidf: { 'test/f1': 0.25 } }; measured()"
    )
    assert (texts(page, "#metrics dt"), texts(page, "#metrics dd")) == (["f1"], ["0.500  (baselines: tfidf 0.250)"])


def test_an_address_that_names_no_model_shows_the_first(page: Page, edge: Running) -> None:
    for name in ("%", "nobody", ""):
        page.open(f"{edge.address}/#{name}")
        page.until(SHOWN)
        assert (text(page, "h1"), text(page, "#problem")) == ("intent", "")


def test_live_figures_come_from_the_metrics(shown: Callable[[str], Page]) -> None:
    page = shown("intent")
    page.until("document.querySelector('#live-title').textContent === 'Live: all requests'")
    assert page.value("document.querySelectorAll('#charts svg[role=img][aria-label]').length") == 2


UNNAMED = """Array.from(document.querySelectorAll("input, textarea, button, a, [tabindex], svg, nav")).filter(one =>
  one.checkVisibility() && !((one.labels && one.labels.length && one.labels[0].textContent.trim()) ||
  one.getAttribute("aria-label") || one.textContent.trim() || (!one.children.length && one.matches("nav:empty"))))
  .map(one => one.outerHTML.slice(0, 80))"""

PALE = """(() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const over = layers => {  // the colour that a stack of them gives, the lowest first
    context.clearRect(0, 0, 1, 1);
    for (const layer of layers) { context.fillStyle = layer; context.fillRect(0, 0, 1, 1); }
    return Array.from(context.getImageData(0, 0, 1, 1).data.slice(0, 3), one => one / 255);
  };
  const light = colour => {
    const [red, green, blue] = colour.map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = Array.from(one.childNodes).some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !one.checkVisibility() || one.closest(".unseen, script, style")) continue;
    const grounds = [];
    for (let at = one; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const ground = light(over(grounds)), ink = light(over([...grounds, getComputedStyle(one).color]));
    const contrast = (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
    if (contrast < 4.5) found.push(`${one.tagName} ${one.className} ${contrast.toFixed(2)}`);
  }
  return found;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_stands_out(shown: Callable[[str], Page], scheme: str) -> None:
    """Contrast as WCAG 2.2 computes it (1.4.3), at least 4.5 to 1; words too that an explanation colours."""
    page = shown("intent")
    page.prefer(color_scheme=scheme)
    page.value("document.querySelector('#explain').checked = true")
    page.type("please refund my card, the parcel is late")
    page.press("Enter", CONTROL)
    page.until(f"{ANSWERED} && !document.querySelector('#why').hidden")
    dark = page.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 26)"
    assert dark == (scheme == "dark")
    assert page.value(UNNAMED) == []
    assert page.value(PALE) == []
    page.value("document.body.insertAdjacentHTML('beforeend', '<input><p style=color:#777>pale</p>')")
    assert page.value(UNNAMED) == ["<input>"] and len(page.value(PALE)) == 1, "what looks for faults finds them"


def test_it_fits_a_phone(shown: Callable[[str], Page]) -> None:
    page = shown("intent")
    page.resize(360, 740)
    page.type("card " * 60)
    page.press("Enter", CONTROL)
    page.until(ANSWERED)
    assert page.value("document.documentElement.scrollWidth") <= 360
    for lines in ("#curl", "#python"):
        fits = f"(one => one.scrollWidth <= one.clientWidth)(document.querySelector('{lines}'))"
        assert page.value(fits), "what is to be copied can be read without scrolling sideways"
    page.call("Emulation.clearDeviceMetricsOverride")


def test_who_prefers_less_motion_gets_none(shown: Callable[[str], Page]) -> None:
    page = shown("intent")
    for wanted, expected in (("reduce", "0s"), ("no-preference", "0.35s")):
        page.prefer(reduced_motion=wanted)
        page.value("document.querySelector('#field0').focus()")
        page.type("card")
        page.press("Enter", CONTROL)
        page.until(ANSWERED)
        assert page.value("getComputedStyle(document.querySelector('.bar i')).transitionDuration") == expected


def test_what_goes_wrong_is_said(shown: Callable[[str], Page], edge: Running) -> None:
    page = shown("rank")
    page.type("a query without texts")
    page.press("Enter", CONTROL)
    page.until("document.querySelector('#problem').textContent")
    assert "texts" in text(page, "#problem")
    assert page.value("document.querySelector('#result').hidden")
    assert [told for told in page.complaints if "422" not in told] == []
    page.complaints.clear()  # a browser logs every answer that is a refusal


def test_a_key_is_asked_for_and_metrics_only_of_who_may_read_them(
    page: Page, edge_of: Callable[..., Any], bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"desk:{hashlib.sha256(b'right').hexdigest()} actions=predict\n")
    with edge_of({"intent": entry(bundle)}, Serve(), Keys(path)) as running:
        page.open(running.address)
        page.until("document.activeElement?.id === 'key'")
        page.type("right")
        page.press("Enter")
        page.until(SHOWN)
        page.type("card")
        page.press("Enter", CONTROL)
        page.until(ANSWERED)
        assert text(page, "#live-title") == "Live: your requests"
        assert "Bearer KEY" in text(page, "#curl") and "right" not in text(page, "body")
    page.complaints.clear()  # 401 for what was asked without a key, 403 for the metrics


def test_a_key_that_is_known_and_may_not_ask_is_told_so(
    page: Page, edge_of: Callable[..., Any], bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"watch:{hashlib.sha256(b'right').hexdigest()} actions=admin\n")
    with edge_of({"intent": entry(bundle)}, Serve(), Keys(path)) as running:
        page.open(running.address)
        page.until("document.activeElement?.id === 'key'")
        for key, told in (("wrong", "not known here"), ("right", "may not ask models")):
            page.value("document.querySelector('#key').value = ''; document.querySelector('#key').focus()")
            page.type(key)
            page.press("Enter")
            page.until(f"document.querySelector('#problem').textContent.includes({json.dumps(told)})")
            assert not page.value("document.querySelector('#door').hidden")
    page.complaints.clear()
