"""The example's page in a real browser, as a person uses it."""

from __future__ import annotations

import base64
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("c2pa", reason="the example app needs the extra 'example'")
pytest.importorskip("playwright.sync_api", reason="browser tests need the extra 'browser'")

from playwright.sync_api import Browser, Page, expect, sync_playwright
from werkzeug.serving import make_server

from example_app import create_app
from flask_c2meter.emulator import StripeEmulator

pytestmark = pytest.mark.browser

#: A photo-like JPEG, encoded by the browser itself.
DRAW = """async () => {
    const canvas = Object.assign(document.createElement("canvas"), {width: 640, height: 480});
    const context = canvas.getContext("2d");
    const sky = context.createLinearGradient(0, 0, 640, 480);
    sky.addColorStop(0, "#0ea5e9");
    sky.addColorStop(1, "#f59e0b");
    context.fillStyle = sky;
    context.fillRect(0, 0, 640, 480);
    return canvas.toDataURL("image/jpeg", 0.9).split(",")[1];
}"""


# Our own two fixtures, not pytest-playwright's: those raise a deprecation warning of pytest 9, and
# warnings are errors here.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH (Debian: apt-get install chromium)")
    # Chromium refuses its sandbox to root, which is who runs tests in a container.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        arguments = [*sandbox, "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context() as context:
        context.set_default_timeout(10_000)
        yield context.new_page()


@pytest.fixture
def stripe() -> Iterator[StripeEmulator]:
    with StripeEmulator() as emulator:
        yield emulator


@pytest.fixture
def url(tmp_path: Path, stripe: StripeEmulator, caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    """The example app on a real socket, delivering to the emulator."""
    caplog.set_level(logging.WARNING, logger="werkzeug")
    settings = {
        "TESTING": True,
        "C2METER_STRIPE_BASE_URL": stripe.url,
        "C2METER_STRIPE_SECRET_KEY": "sk_test_emulator",
    }
    app = create_app(settings, instance_path=str(tmp_path / "instance"))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def opened(page: Page, url: str) -> Iterator[Page]:
    """The page, with its counts drawn; nothing in it may fail or be refused by its own policy."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.goto(url)
    expect(page.locator(".meters li")).to_have_count(4)
    yield page
    assert not [line for line in problems if "status of 4" not in line]


@pytest.fixture
def photo(page: Page, tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(base64.b64decode(page.evaluate(DRAW)))
    return path


def count(page: Page, meter: str) -> Any:
    return page.locator(f"#meter-{meter} .value")


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def test_a_person_signs_downloads_and_verifies(
    opened: Page, photo: Path, tmp_path: Path, stripe: StripeEmulator
) -> None:
    opened.set_input_files("#file", photo)
    press(opened, "Sign")
    expect(opened.locator("#manifest")).to_have_text(re.compile(r"urn:c2pa:[0-9a-f-]{36}"))
    expect(count(opened, "sign_operations")).to_have_text("1", timeout=1000)

    with opened.expect_download() as started:
        opened.get_by_role("link", name="Download").click()
    assert started.value.suggested_filename == "photo-signed.jpeg"
    started.value.save_as(tmp_path / "signed.jpeg")

    opened.set_input_files("#file", tmp_path / "signed.jpeg")
    press(opened, "Verify")
    expect(opened.locator("#result")).to_contain_text("Authentic")
    expect(count(opened, "verify_operations")).to_have_text("1", timeout=1000)
    assert stripe.wait_for(
        lambda stripe: stripe.meter_total("verify_operations", "cus_demo_starter") == 1, timeout=10
    )


def test_a_changed_byte_is_found_and_costs_nothing(opened: Page, photo: Path) -> None:
    opened.set_input_files("#file", photo)
    press(opened, "Sign")
    press(opened, "Verify the signed copy")
    expect(opened.locator("#result")).to_contain_text("Authentic")
    press(opened, "Change one byte, then verify")
    expect(opened.locator("#result")).to_contain_text("Changed after signing")
    expect(opened.locator("#billed")).to_have_text("not counted")
    expect(count(opened, "verify_operations")).to_have_text("1")


def test_an_image_can_be_dropped(opened: Page, photo: Path) -> None:
    encoded = base64.b64encode(photo.read_bytes()).decode()
    dropped = opened.evaluate_handle(
        """encoded => {
            const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.jpg", {type: "image/jpeg"}));
            return transfer;
        }""",
        encoded,
    )
    opened.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    expect(opened.locator("#file-name")).to_have_text("dropped.jpg")
    press(opened, "Verify")
    expect(opened.locator("#result")).to_contain_text("No credentials")


def test_what_is_no_image_is_refused_in_words(opened: Page, tmp_path: Path) -> None:
    (tmp_path / "fake.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    opened.set_input_files("#file", tmp_path / "fake.png")
    press(opened, "Sign")
    expect(opened.locator("#result")).to_contain_text("The image cannot be read")
    expect(count(opened, "sign_operations")).to_have_text("0")


def test_the_keyboard_is_enough(opened: Page, photo: Path) -> None:
    opened.set_input_files("#file", photo)
    opened.locator("#file").focus()
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    expect(opened.locator("#verdict")).to_have_text("Signed")
    expect(opened.get_by_role("button", name="Sign", exact=True)).to_be_focused()

    opened.get_by_role("textbox", name="Activate a site").focus()
    opened.keyboard.type("not a domain")
    opened.keyboard.press("Enter")
    expect(opened.locator("#site-answer")).to_contain_text("must be a domain")
    expect(opened.get_by_role("textbox", name="Activate a site")).to_be_focused()
    opened.keyboard.press("Control+a")
    opened.keyboard.type("shop.example.com")
    opened.keyboard.press("Enter")
    expect(opened.locator("#site-answer")).to_have_text("shop.example.com is active.")
    expect(count(opened, "active_sites")).to_have_text("1", timeout=1000)


def test_customers_have_their_own_counts_and_commands(opened: Page, photo: Path) -> None:
    opened.set_input_files("#file", photo)
    press(opened, "Sign")
    expect(count(opened, "sign_operations")).to_have_text("1")
    opened.get_by_role("radio", name="Growth").check()
    expect(count(opened, "sign_operations")).to_have_text("0")
    expect(opened.locator("#meter-sign_operations .of")).to_have_text("of 1,000")
    expect(opened.locator(".commands code").first).to_contain_text("demo-growth-key")


def test_a_count_made_elsewhere_appears_by_itself(opened: Page, url: str) -> None:
    answer = opened.request.post(
        f"{url}/api/sites",
        headers={"X-API-Key": "demo-starter-key"},
        data={"domain": "elsewhere.example"},
    )
    assert answer.ok
    expect(count(opened, "active_sites")).to_have_text("1", timeout=3000)


def test_a_command_can_be_copied(opened: Page) -> None:
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    press(opened, "Copy: Sign")
    copied = opened.evaluate("navigator.clipboard.readText()")
    assert copied.startswith('curl -H "Authorization: Bearer demo-starter-key" -F file=@photo.jpg')


def test_many_at_once_are_counted_and_told(opened: Page, photo: Path) -> None:
    opened.set_input_files("#file", photo)
    opened.get_by_label("times").select_option("5")
    press(opened, "Sign")
    expect(opened.locator("#billed")).to_have_text("counted as 5 signs")
    expect(count(opened, "sign_operations")).to_have_text("5")


def test_an_alert_appears_with_where_it_arrived(opened: Page) -> None:
    for number in (1, 2):
        opened.get_by_role("textbox", name="Activate a site").fill(f"shop{number}.example.com")
        press(opened, "Activate")
        expect(count(opened, "active_sites")).to_have_text(str(number))
    alert = opened.locator(".alerts > li")
    expect(alert).to_have_count(1)
    expect(alert).to_contain_text("exceeded")
    expect(alert.locator(".came")).to_have_count(2)  # in the app and by signal: no mail server here
    expect(alert.locator(".came", has_text="Signal")).to_be_visible()


def test_a_person_opens_the_dashboard_and_comes_back(opened: Page, photo: Path) -> None:
    opened.set_input_files("#file", photo)
    press(opened, "Sign")
    expect(count(opened, "sign_operations")).to_have_text("1")
    press(opened, "Open your dashboard")
    expect(opened).to_have_url(re.compile("/billing/usage$"))
    expect(opened.get_by_role("meter", name="Sign Operations")).to_be_visible()
    opened.get_by_role("link", name="Concierge").click()
    press(opened, "or everyone's, as the operator")
    expect(opened.get_by_role("link", name="cus_demo_starter")).to_be_visible()
    press(opened, "Log out")
    expect(opened.locator(".meters li")).to_have_count(4)


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_window(opened: Page, photo: Path, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 844})
    opened.set_input_files("#file", photo)
    press(opened, "Sign")
    expect(opened.locator("#signed")).to_be_visible()
    assert opened.evaluate("document.documentElement.scrollWidth") == width
