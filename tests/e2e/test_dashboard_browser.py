"""The dashboard in a real browser: narrow and wide, light and dark, by keyboard, with and without
its script.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

pytest.importorskip("playwright.sync_api", reason="browser tests need the extra 'browser'")

from flask import Flask
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.integration.dashboard_rig import (
    OPERATOR,
    SIGN,
    VERIFY,
    Service,
    exceeded,
    healthy,
    new,
    service,
    serving,
)

pytestmark = pytest.mark.browser

#: A name that is not loopback, so that the browser treats it as any site on plain http.
PLAIN_HTTP = "app.example"

#: The text whose contrast is below AA's, with what it is.
FAINT = """() => {
    const channels = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
    const light = (text) => channels(text).slice(0, 3)
        .map((value) => value / 255)
        .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (channels(colour)[3] !== 0) return colour;
        }
    };
    const faint = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !element.checkVisibility()) continue;
        const style = getComputedStyle(element);
        const colour = element.closest("svg") ? style.fill : style.color;
        const [high, low] = [light(colour), light(ground(element))].sort((a, b) => b - a);
        if ((high + 0.05) / (low + 0.05) < 4.5) faint.push(element.outerHTML.slice(0, 100));
    }
    return faint;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH (Debian: apt-get install chromium)")
    # Chromium refuses its sandbox to root, which is who runs tests in a container.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    arguments = [*sandbox, "--disable-gpu", f"--host-resolver-rules=MAP {PLAIN_HTTP} 127.0.0.1"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Service]:
    caplog.set_level(logging.WARNING, logger="werkzeug")
    with service(tmp_path / "instance") as made:
        yield made


@pytest.fixture
def url(made: Service) -> Iterator[str]:
    with serving(made.app) as url:
        yield url


Opener = Callable[..., Page]


@pytest.fixture
def opener(browser: Browser, url: str) -> Iterator[Opener]:
    """Opens pages; nothing in them may fail or be refused by their own policy."""
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def note(line: Any) -> None:
        # What the browser says of each answer that is no 200 is no fault of the page.
        if line.type == "error" and not line.text.startswith("Failed to load resource"):
            problems.append(line.text)

    def opened(path: str, who: str, *, at: str = url, **settings: Any) -> Page:
        context = browser.new_context(**settings)
        contexts.append(context)
        context.set_default_timeout(10_000)
        context.add_cookies([{"name": "who", "value": who, "url": at}])
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", note)
        # Timers are ours to advance, so that nobody waits ten seconds.
        page.clock.install()
        page.goto(f"{at}/billing/{path}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def ten_seconds_later(page: Page) -> None:
    with page.expect_response(re.compile("/billing/usage")):
        page.clock.fast_forward(10_000)


def total(page: Page, meter: str = VERIFY) -> Any:
    return page.locator(f"#meter-{meter} .figure")


# -- looks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 820, 1280, 1600])
def test_every_page_fits_and_can_be_read(
    made: Service, opener: Opener, width: int, scheme: Literal["light", "dark"]
) -> None:
    pages = [(healthy(made), "usage"), (exceeded(made), "usage"), (new(made), "usage")]
    pages += [(OPERATOR, f"usage?customer={pages[1][0]}"), (OPERATOR, "customers")]
    pages += [(pages[0][0], "usage?customer=cus_unknown")]
    for who, path in pages:
        page = opener(path, who, viewport={"width": width, "height": 844}, color_scheme=scheme)
        for summary in page.locator("summary").all():
            summary.click()
        assert page.evaluate("document.documentElement.scrollWidth") == width, (who, path)
        assert page.evaluate(FAINT) == []


def test_both_schemes_have_colours_of_their_own(made: Service, opener: Opener) -> None:
    customer = healthy(made)
    grounds = {
        opener("usage", customer, color_scheme=scheme).evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        for scheme in ("light", "dark")
    }
    assert len(grounds) == 2


def test_on_paper_there_is_nothing_to_press(made: Service, opener: Opener) -> None:
    page = opener("usage", exceeded(made))
    page.emulate_media(media="print")
    expect(total(page)).to_be_visible()
    assert page.locator("button:visible, summary:visible").count() == 0


# -- by keyboard -----------------------------------------------------------------------------------


def focused(page: Page) -> str:
    found: str = page.evaluate("document.activeElement.id || document.activeElement.className")
    return found


def test_the_keyboard_reaches_everything_in_order_and_sees_where_it_is(
    made: Service, opener: Opener
) -> None:
    page = opener("usage", exceeded(made))
    walk = []
    for _ in range(40):
        page.keyboard.press("Tab")
        walk.append(focused(page))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", walk[-1]
        if walk[-1] == "as-json":
            break
    kinds = [re.sub(r"-[0-9a-f]{8}-.*", "", name) for name in walk]
    meters = (VERIFY, SIGN, "storage_gb", "active_sites")
    assert kinds == [
        "skip",
        "read-all",
        *["to", "read"] * 3,
        *(f"{part}-{meter}" for meter in meters for part in ("plot", "open")),
        "as-json",
    ]


def test_the_skip_link_leads_past_the_hosts_header(made: Service, opener: Opener) -> None:
    page = opener("usage", healthy(made))
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert focused(page) == "content"


def test_the_days_of_a_chart_are_read_with_the_arrow_keys(made: Service, opener: Opener) -> None:
    page = opener("usage", healthy(made))
    plot, readout = page.locator(f"#plot-{VERIFY}"), page.locator(f"#days-{VERIFY} .readout")
    expect(readout).to_contain_text("Most on")
    plot.focus()
    expect(readout).to_contain_text("Thu 19 Mar: ")
    page.keyboard.press("ArrowLeft")
    expect(readout).to_contain_text("Wed 18 Mar: ")
    expect(plot).to_have_attribute("aria-valuetext", re.compile(r"Wed 18 Mar: \d+"))
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    expect(readout).to_contain_text("Sun 1 Mar: ")
    page.keyboard.press("End")
    expect(readout).to_contain_text("Tue 31 Mar: ")
    page.keyboard.press("Tab")
    expect(readout).to_contain_text("Most on")


def test_the_days_of_a_chart_are_read_with_the_pointer(made: Service, opener: Opener) -> None:
    page = opener("usage", healthy(made))
    plot, readout = page.locator(f"#plot-{VERIFY}"), page.locator(f"#days-{VERIFY} .readout")
    box = plot.bounding_box()
    assert box
    plot.hover(position={"x": box["width"] / 31 * 4.5, "y": 60})
    expect(readout).to_contain_text("Thu 5 Mar: ")
    page.mouse.move(0, 0)
    expect(readout).to_contain_text("Most on")


def test_alerts_lead_to_their_meter_and_are_marked_as_read(made: Service, opener: Opener) -> None:
    page = opener("usage", exceeded(made))
    page.get_by_role("link", name="Storage (GB) usage at 98%").click()
    expect(page.locator("#meter-storage_gb")).to_be_in_viewport()
    page.get_by_role("button", name="Mark as read: Storage (GB) usage at 98%").click()
    expect(page.get_by_role("heading", name="2 unread alerts")).to_be_visible()
    page.get_by_role("button", name="Mark all as read").click()
    expect(page.locator("#notices h2")).to_have_count(0)


def test_on_plain_http_where_browsers_say_less_alerts_are_marked_all_the_same(
    made: Service, opener: Opener, url: str
) -> None:
    page = opener("usage", exceeded(made), at=url.replace("127.0.0.1", PLAIN_HTTP))
    with page.expect_request("**/notifications/read") as sent:
        page.get_by_role("button", name="Mark all as read").click()
    assert "sec-fetch-site" not in sent.value.all_headers()
    expect(page.locator("#notices h2")).to_have_count(0)


def test_a_form_on_another_origin_changes_nothing(made: Service, opener: Opener, url: str) -> None:
    customer = exceeded(made)
    page = opener("usage", customer)
    other = Flask("other")
    form = f'<form method="post" action="{url}/billing/notifications/read"><button>Win</button>'
    other.add_url_rule("/", view_func=lambda: f"<!doctype html><link rel=icon href=data:,>{form}")
    with serving(other) as elsewhere:
        page.goto(elsewhere)
        with page.expect_response("**/notifications/read") as answer:
            page.get_by_role("button", name="Win").click()
        assert "who=" in answer.value.request.all_headers()["cookie"]  # it was signed in
        assert answer.value.status == 403
    assert made.metering.store.announcements.unread(customer) == 3


# -- live ------------------------------------------------------------------------------------------


def test_new_usage_appears_by_itself_and_a_new_level_is_announced(
    made: Service, opener: Opener
) -> None:
    customer = healthy(made)
    page = opener("usage", customer)
    before = total(page).inner_text()
    made.use(customer, VERIFY, 700, made.clock.advance(timedelta(minutes=1)))
    ten_seconds_later(page)
    expect(total(page)).not_to_have_text(before)
    expect(page.locator("#made")).to_contain_text("14:06:00 UTC")
    expect(page.locator(f"#meter-{VERIFY} .badge")).to_have_text("Warning")
    expect(page.locator("#news")).to_contain_text(re.compile("Verify Operations: .*warning"))
    expect(page.get_by_role("heading", name="1 unread alert")).to_be_visible()


def test_what_a_person_is_doing_is_left_alone_by_a_refresh(made: Service, opener: Opener) -> None:
    customer = healthy(made)
    page = opener("usage", customer)
    page.locator(f"#open-{VERIFY}").click()
    page.locator(f"#plot-{SIGN}").focus()
    page.keyboard.press("ArrowLeft")
    page.mouse.wheel(0, 200)
    page.wait_for_function("scrollY > 100")
    scrolled = page.evaluate("scrollY")
    page.evaluate("document.querySelector('#history').mark = 'the same'")
    made.use(customer, SIGN, 5, made.clock.advance(timedelta(minutes=1)))
    ten_seconds_later(page)
    expect(page.locator("#made")).to_contain_text("14:06:00 UTC")

    expect(page.locator(f"#table-{VERIFY}")).to_have_attribute("open", "")
    expect(page.locator(f"#plot-{SIGN}")).to_be_focused()
    expect(page.locator(f"#days-{SIGN} .readout")).to_contain_text("Wed 18 Mar: ")
    assert page.evaluate("scrollY") == scrolled
    # What has not changed is not even replaced.
    assert page.evaluate("document.querySelector('#history').mark") == "the same"
    expect(page.locator("#news")).to_have_text("")


def test_a_lost_connection_is_said_until_it_is_back(
    made: Service, opener: Opener, url: str
) -> None:
    page = opener("usage", healthy(made))
    lost = page.get_by_text("The connection is lost: these numbers may be old.")
    made.metering.store.close()
    path = Path(made.app.instance_path, "c2meter.sqlite")
    away = path.rename(path.with_suffix(".away"))
    ten_seconds_later(page)
    expect(lost).to_be_visible()
    expect(total(page)).to_be_visible()
    away.rename(path)
    ten_seconds_later(page)
    expect(lost).to_be_hidden()


def test_who_is_signed_out_meanwhile_is_told(made: Service, opener: Opener) -> None:
    page = opener("usage", healthy(made))
    made.meter.dashboard_auth(lambda: None)
    ten_seconds_later(page)
    expect(page.get_by_text("You are signed out")).to_be_visible()


def test_a_page_that_nobody_sees_does_not_ask(made: Service, opener: Opener) -> None:
    page = opener("usage", healthy(made))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    hide = """(hidden) => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    page.clock.fast_forward(60_000)
    assert asked == []
    with page.expect_response(re.compile("/billing/usage")):
        page.evaluate(hide, False)
        page.clock.run_for(100)
    assert len(asked) == 1


def test_without_its_script_the_page_says_all_and_can_be_used(
    made: Service, opener: Opener
) -> None:
    page = opener("usage", exceeded(made), java_script_enabled=False)
    expect(total(page, SIGN)).to_have_text("1,438")
    expect(page.get_by_text("For newer numbers, load the page again.")).to_be_visible()
    expect(page.get_by_text("New numbers appear by themselves.")).to_be_hidden()
    page.locator(f"#open-{VERIFY}").click()
    expect(page.locator(f"#table-{VERIFY} table")).to_be_visible()
    page.get_by_role("button", name="Mark all as read").click()
    expect(page.locator("#notices h2")).to_have_count(0)


# -- for operators ---------------------------------------------------------------------------------


def test_an_operator_finds_a_customer_and_comes_back(made: Service, opener: Opener) -> None:
    customer = exceeded(made)
    healthy(made)
    page = opener("usage", OPERATOR)
    expect(page.get_by_role("row")).to_have_count(3)
    page.get_by_label("Part of a customer's id").fill("r8swnk")
    page.keyboard.press("Enter")
    expect(page.get_by_role("row")).to_have_count(2)
    page.get_by_role("link", name=customer).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(
        "Sign Operations is above what the plan includes"
    )
    assert page.locator("form").count() == 0
    page.get_by_role("link", name="Customers").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Customers")
