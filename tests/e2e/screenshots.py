"""Screenshots of the dashboard for the docs: ``python -m tests.e2e.screenshots [FOLDER]``.

Each at phone and desktop width, light and dark: the upper part of the page, in PNG files of at most
250 KB. In another FOLDER, the whole page.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, sync_playwright

from tests.integration.dashboard_rig import (
    OPERATOR,
    Service,
    exceeded,
    healthy,
    new,
    service,
    serving,
)

FOLDER = Path(__file__).parents[2] / "docs" / "images"
#: Width of the window -> most of the page that is shown.
HEIGHTS = {390: 1700, 1280: 1500}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
MAX_BYTES = 250_000

_MAIL: Mapping[str, Any] = {
    "C2METER_MAIL_SERVER": "mail.example.com",
    "C2METER_MAIL_SENDER": "billing@example.com",
    "C2METER_ALERT_WEBHOOK_URL": "https://hooks.example.com/usage",
    "C2METER_ALERT_WEBHOOK_SECRET": "whsec_dGhpcyBpcyBhIHNlY3JldCBvZiB0aGUgdGVzdHM=",
}


@contextmanager
def chromium() -> Iterator[Browser]:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*sandbox, "--disable-gpu"]
        )
        yield browser
        browser.close()


def crowd(made: Service) -> None:
    """Enough customers for a list."""
    for number, (plan, status) in enumerate(
        (
            ("starter", "active"),
            ("growth", "past_due"),
            ("scale", "active"),
            ("starter", "trialing"),
        )
        * 3
    ):
        customer = (
            f"cus_{'SXMBKDQWPCLV'[number]}{number * 7919 % 97:02}hd{'fkzrwnbtxqmj'[number]}8L"
        )
        made.subscribe(customer, plan, status=status)
        made.use(customer, "verify_operations", 320 * (number % 7 + 1), "03-09 10:00")
        made.use(customer, "sign_operations", 22 * (number % 9 + 1), "03-12 10:00")


def shoot(browser: Browser, folder: Path, made: Service, url: str) -> None:
    pages = {
        "healthy": (healthy(made), "usage"),
        "exceeded": (exceeded(made), "usage"),
        "first-day": (new(made), "usage"),
    }
    crowd(made)
    made.settle_alerts("signal", "delivered")
    made.settle_alerts("webhook", "failed")
    pages["customers"] = (OPERATOR, "customers")
    for name, (who, path) in pages.items():
        _shoot(browser, folder, name, f"{url}/billing/{path}", who)


def _shoot(browser: Browser, folder: Path, name: str, url: str, who: str) -> None:
    for width, height in HEIGHTS.items():
        for scheme in SCHEMES:
            context = browser.new_context(
                viewport={"width": width, "height": 844}, color_scheme=scheme
            )
            context.add_cookies([{"name": "who", "value": who, "url": url}])
            page = context.new_page()
            page.goto(url)
            whole = page.evaluate("document.documentElement.scrollHeight")
            path = folder / f"dashboard-{name}-{width}-{scheme}.png"
            shown = whole if folder != FOLDER else min(whole, height)
            page.screenshot(
                path=path,
                full_page=True,
                clip={"x": 0, "y": 0, "width": width, "height": shown},
            )
            if folder == FOLDER and path.stat().st_size > MAX_BYTES:
                raise SystemExit(f"{path.name} has {path.stat().st_size} bytes")
            context.close()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as instance, chromium() as browser:
        with service(Path(instance), **_MAIL) as made, serving(made.app) as url:
            shoot(browser, folder, made, url)
            made.metering.store.close()
            Path(instance, "c2meter.sqlite").rename(Path(instance, "elsewhere"))
            _shoot(browser, folder, "unavailable", f"{url}/billing/usage", "cus_1")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
