"""The page in a headless browser: choose a user, add items, search items, show explanations."""

from __future__ import annotations

import pytest

from recbole_onebp import Recommender
from support.browser import CHROMIUM, Browser
from support.bundles import made_bundle
from support.server import Server

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

TITLES = "[...document.querySelectorAll('#list > li .title')].map(e => e.textContent)"
HISTORY = "[...document.querySelectorAll('#history .title')].map(e => e.textContent)"


@pytest.fixture
def rec(tmp_path):
    return Recommender.load(made_bundle(tmp_path / "bundle", bias=True))


@pytest.fixture
def server(rec):
    server = Server()
    yield server
    server.end()


@pytest.fixture
def browser(server, tmp_path):
    browser = Browser(tmp_path / "profile", server.url)
    yield browser
    browser.close()


def titles(answer):
    return [f"Item {item[1:]}" for item, _ in answer]


def test_a_user_is_chosen_and_an_item_is_added(browser, rec):
    assert browser.until("document.querySelector('#about').textContent") == "20 users, 60 items"
    assert browser.until("document.querySelectorAll('#users option').length") == 20
    browser.type("#user-text", "u4")
    browser.click("#user button")
    browser.until("document.querySelectorAll('#list > li').length === 20")
    first = titles(rec.recommend(["u4"], k=20)[0])
    assert browser.run(TITLES) == first

    browser.click("#list li:nth-child(2) button[aria-label^=Why]")
    explanation = rec.explain("u4", rec.recommend(["u4"], k=2)[0][1][0])
    browser.until("document.querySelectorAll('.why li').length > 0")
    values = browser.run("[...document.querySelectorAll('.why .score')].map(e => Number(e.textContent))")
    assert sum(values) == pytest.approx(explanation.score, abs=0.02)
    assert browser.run("getComputedStyle(document.querySelector('.why li')).counterIncrement") == "none"

    browser.click("#list li:first-child button[aria-label$=history]")
    browser.until(f"document.querySelector('#list .title').textContent !== {first[0]!r}")
    rec.update([("u4", f"i{first[0].split()[1]}")])
    assert browser.run(TITLES) == titles(rec.recommend(["u4"], k=20)[0])
    assert browser.run(HISTORY)[0] == first[0]


def test_a_history_is_built(browser, rec):
    browser.type("#search-text", "item 1")
    browser.until("document.querySelectorAll('#found button').length === 11")
    browser.click("#found li:nth-child(2) button")  # Item 10
    browser.until("document.querySelectorAll('#list > li').length === 20")
    assert browser.run(TITLES) == titles(rec.recommend_history([["i10"]], k=20)[0])
    best = rec.recommend_history([["i10"]], k=1)[0][0][0]
    browser.click("#list li:first-child button[aria-label$=history]")
    browser.until("document.querySelectorAll('#history li').length === 2")
    browser.until(f"document.querySelector('#list .title').textContent !== 'Item {best[1:]}'")
    assert browser.run(TITLES) == titles(rec.recommend_history([["i10", best]], k=20)[0])
    browser.click("#history li:last-child button")  # the oldest item
    browser.until("document.querySelectorAll('#history li').length === 1")
    expected = titles(rec.recommend_history([[best]], k=20)[0])
    browser.until(f"document.querySelector('#list .title').textContent === {expected[0]!r}")
    assert browser.run(TITLES) == expected
    browser.click("#clear")
    browser.until("document.querySelectorAll('#list > li').length === 0")


def test_the_rule_is_chosen(rec, tmp_path):
    """Rules are offered only where they differ: recency needs times, training weights must be unequal."""
    made_bundle(tmp_path / "timed", bias=True, alpha=1.0, rule="mean", ordered=True)
    for folder, texts in (
        ("bundle", ["in order, later ones slightly more"]),
        ("timed", ["all the same", "weighted as in training", "later ones more"]),
    ):
        rec, server = Recommender.load(folder), Server(bundle=folder)
        browser = Browser(tmp_path / f"profile-{folder}", server.url)
        browser.until("document.querySelector('#about').textContent")
        offered = "[...document.querySelector('#rule').options].filter(e => !e.disabled)"
        assert browser.run(f"{offered}.map(e => e.text)") == texts
        assert browser.run("document.querySelector('#how').hidden") == (len(texts) == 1)
        for item in ("Item 10", "Item 20", "Item 30"):
            browser.type("#search-text", item)
            browser.until("document.querySelectorAll('#found li').length === 1")
            browser.click("#found button")
            browser.until("document.querySelectorAll('#found li').length === 0")
        for rule in browser.run(f"{offered}.map(e => e.value)"):
            browser.choose("#rule", rule)
            expected = rec.recommend_history([["i10", "i20", "i30"]], k=20, rule=rule)[0]
            score = f"{expected[0][1]:.3f}"
            browser.until(f"document.querySelector('#list .score').textContent === '{score}'")
            assert browser.run(TITLES) == titles(expected)
        browser.close()
        server.end()


def test_unknown_users_and_titles_are_reported(browser):
    browser.type("#user-text", "<img src=x onerror=alert(1)>")
    browser.click("#user button")
    browser.until("document.querySelector('#status').textContent.startsWith('User <img')")
    assert browser.run("document.images.length") == 0
    browser.type("#search-text", "nothing like it")
    browser.until("document.querySelector('#status').textContent.startsWith('No title contains')")


def test_controls_have_labels_and_the_page_fits_a_phone(server, tmp_path):
    browser = Browser(tmp_path / "phone", server.url, width=360, height=740, mobile=True)
    browser.type("#user-text", "u4")
    browser.click("#user button")
    browser.until("document.querySelectorAll('#list > li').length === 20")
    assert browser.run("document.documentElement.scrollWidth") <= 360
    nameless = (
        "[...document.querySelectorAll('button, input')].filter(e => !e.textContent.trim() "
        "&& !e.getAttribute('aria-label') && !(e.labels && e.labels.length)).length"
    )
    assert browser.run(nameless) == 0
    assert browser.run("document.documentElement.lang") == "en"
    browser.close()


def test_the_key_is_entered(rec, tmp_path):
    server = Server(RECBOLE_ONEBP_API_KEY="secret")
    browser = Browser(tmp_path / "profile", server.url)
    browser.until("!document.querySelector('#key').hidden")
    browser.type("#key-text", "secret")
    browser.click("#key button")
    browser.until("document.querySelectorAll('#users option').length === 20")
    browser.close()
    server.end()
