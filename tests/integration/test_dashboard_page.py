"""What the page says: plan, bill, gauges, days and alerts, in every state a customer can be in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal, localcontext
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dashboard_rig import (
    OPERATOR,
    SIGN,
    SITES,
    STORAGE,
    VERIFY,
    Service,
    at,
    exceeded,
    healthy,
    new,
    service,
)

from flask_c2meter import Period, Subscription, SubscriptionItem

ALICE = "cus_alice"
DASH = "\N{EN DASH}"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path / "instance") as made:
        yield made


class Page:
    """A page of the dashboard, and the same as JSON."""

    def __init__(self, made: Service, customer: str, who: str | None = None) -> None:
        client, query = made.client(who or customer), {"customer": customer}
        self.html = client.get("/billing/usage", query_string=query).text
        self.json: dict[str, Any] = client.get("/billing/usage.json", query_string=query).get_json()

    def section(self, name: str) -> str:
        """The markup of one part."""
        found = re.search(rf'<(\w+) id="{name}" data-live.*?(?=<\w+ id="\w+" data-live|\Z)',
                          self.html, re.DOTALL)  # fmt: skip
        assert found, name
        return found[0]

    def text(self, name: str) -> str:
        """What a person reads there, in one line."""
        return plain(self.section(name))

    def meter(self, name: str) -> str:
        """What a person reads at one gauge."""
        parts = re.split(r'<li id="meter-', self.section("meters"))
        return plain(next(part for part in parts if part.startswith(f'{name}"')).partition(">")[2])

    def line(self, title: str) -> list[str]:
        """The cells of a line of the bill."""
        rows = re.findall(r"<tr role=.*?</tr>", self.section("bill"), re.DOTALL)
        found = [row for row in rows if f">{title}</th>" in row]
        return [plain(cell) for cell in re.findall(r"<t[hd][^>]*>.*?</t[hd]>", found[-1])]

    @property
    def headline(self) -> str:
        found = re.search(r"<h1>(.*?)</h1>", self.html)
        assert found
        return unescape(found[1])


def plain(markup: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", markup)).split())


# -- am I fine -------------------------------------------------------------------------------------


def test_a_healthy_customer_reads_so_at_once(made: Service) -> None:
    page = Page(made, healthy(made))
    assert page.headline == "Everything is within the plan"
    top = page.text("top")
    assert "Plan Starter" in top
    assert "Active Overage is billed when the period ends." in top
    assert f"1 {DASH} 31 March 2026 12 days left · ends 1 Apr, 00:00 UTC" in top
    assert page.text("notices") == ""
    assert "So far $0.00" in page.text("bill")


@pytest.mark.parametrize(
    ("use", "headline"),
    [
        ([], "Nothing used yet in this period"),
        ([(VERIFY, 1500)], "Within the plan so far; Verify Operations is on course to go above it"),
        ([(VERIFY, 2000)], "Verify Operations is close to what the plan includes"),
        ([(VERIFY, 2001)], "Verify Operations is above what the plan includes"),
        (
            [(VERIFY, 2001), (SIGN, 201)],
            "Verify Operations and Sign Operations are above what the plan includes",
        ),
        (
            [(VERIFY, 2001), (SIGN, 201), (SITES, "a.example.com")],
            "3 of 4 meters are above what the plan includes",
        ),
    ],
)
def test_the_headline_says_what_matters_most(
    made: Service, use: list[tuple[str, Any]], headline: str
) -> None:
    made.subscribe(ALICE, "starter")
    for meter, value in use:
        made.use(ALICE, meter, value, "03-10 10:00")
    assert Page(made, ALICE).headline == headline


# -- plan, subscription, period --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("active", "Active Overage is billed when the period ends."),
        ("trialing", "Trial Usage during the trial is not billed."),
        ("past_due", "Payment overdue The last payment has failed. Usage is still counted"),
        ("unpaid", "Unpaid Invoices are still made, but not collected"),
        ("paused", "Paused No invoice is made while the subscription is paused."),
        ("incomplete", "Incomplete The first payment is still to be made"),
        ("on_the_moon", "On the moon"),
    ],
)
def test_the_subscription_is_said_in_words(made: Service, status: str, words: str) -> None:
    made.subscribe(ALICE, "starter", status=status)
    page = Page(made, ALICE)
    assert words in page.text("top")
    assert page.json["status"] == status


def test_without_a_subscription_the_month_is_counted_and_not_billed(made: Service) -> None:
    made.use(ALICE, VERIFY, 7, "03-10 10:00")
    page = Page(made, ALICE)
    assert "Plan None known" in page.text("top")
    assert "counted by calendar month and not billed" in page.text("top")
    assert "No plan is known, so nothing counts as above it." in page.text("bill")
    assert page.meter(VERIFY).startswith("Verify Operations 7 no plan is known")
    assert page.headline == "Usage so far"


def test_a_canceled_subscription_says_when_it_ended(made: Service) -> None:
    made.subscribe(ALICE, "starter")
    made.use(ALICE, VERIFY, 2500, "03-10 10:00")
    made.subscribe(ALICE, "starter", status="canceled", ended="03-12 09:00", when="03-12 09:00")
    page = Page(made, ALICE)
    assert "Canceled It ended on 12 March 2026: usage since then is not billed." in page.text("top")
    assert (page.json["status"], page.json["ended_at"]) == ("canceled", "2026-03-12T09:00:00+00:00")
    made.clock.now = at("05-02")  # two calendar months later it still is
    assert Page(made, ALICE).json["status"] == "canceled"


def test_a_plan_that_was_changed_has_its_lines_apart(made: Service) -> None:
    page = Page(made, exceeded(made))
    assert "Plan Growth Changed from Starter on 9 March 2026" in page.text("top")
    bill = page.text("bill")
    before, _, after = bill.partition("Growth, since 9 March")
    assert "Starter, until 9 March" in before
    assert "Sign Operations 5 $0.63 $0.63" in before
    assert "Sign Operations 438 $54.75" in after
    assert "So far $55.38" in bill
    assert "1,438 of 1,000, since 9 March 144%" in page.meter(SIGN)


def test_a_first_day_shared_with_the_period_before_counts_only_its_own_usage(
    made: Service,
) -> None:
    made.subscribe(ALICE, "starter")
    made.use(ALICE, VERIFY, 100, "03-09 08:00")
    made.subscribe(ALICE, "growth", when="03-09 10:30")
    made.use(ALICE, VERIFY, 7, "03-09 12:00")
    made.use(ALICE, VERIFY, 1, "03-10 12:00")
    days = Page(made, ALICE).json["meters"][0]["days"]
    assert (days["2026-03-09"], days["2026-03-10"]) == ("7", "1")


def test_a_meter_with_a_period_of_its_own_says_which(made: Service) -> None:
    month, year = Period(at("03-01"), at("04-01")), Period(at("01-01"), at("12-31"))
    made.metering.store.subscriptions.learn(
        ALICE,
        [Subscription("starter", month, items={STORAGE: SubscriptionItem(year)}, id="sub_1")],
        at("03-01"),
        source="stripe",
        finding="known",
        look_again=None,
    )
    page = Page(made, ALICE)
    assert f"of 10, 1 January {DASH} 30 December 2026" in page.meter(STORAGE)
    assert page.meter(VERIFY).startswith("Verify Operations 0 of 2,000 0%")


# -- what will it cost -----------------------------------------------------------------------------


def test_the_documents_own_case_costs_twenty_dollars(made: Service) -> None:
    """2,500 used, 2,000 included, 4 cents flat."""
    made.subscribe(ALICE, "starter")
    made.use(ALICE, VERIFY, 2500, "03-10 10:00")
    page = Page(made, ALICE)
    assert page.line("Verify Operations")[:3] == ["Verify Operations", "500", "$20.00"]
    assert "So far $20.00" in page.text("bill")
    assert re.search(rf"likely \$\d+\.\d\d {DASH} \$\d+\.\d\d", page.text("bill"))


def test_a_meter_without_a_price_has_overage_and_says_so(made: Service) -> None:
    made.subscribe(ALICE, "starter")
    made.use(ALICE, SITES, "shop.example.com", "03-10 10:00")
    assert Page(made, ALICE).line("Active Sites") == ["Active Sites", "1", "no price", DASH, DASH]


def test_without_any_price_there_are_only_quantities(made: Service, tmp_path: Path) -> None:
    only = {"calls": {"event_type": "c", "unit": "c", "aggregation": "sum"}}
    with service(tmp_path / "plain", C2METER_CATALOGUE={"meters": only}) as plain_service:
        page = Page(plain_service, ALICE)
    assert "No meter has a price, so there are quantities and no amount." in page.text("bill")
    assert page.json["bill"] == []


def test_on_the_first_day_it_is_too_early_to_say(made: Service) -> None:
    page = Page(made, new(made))
    assert "Too early to say from 20 Mar, 06:40 UTC on" in page.text("bill")
    assert f"19 March {DASH} 19 April 2026 30 days left" in page.text("top")
    assert "too early to project" in page.meter(VERIFY)
    assert page.json["bill"][0]["projected"] is None


def test_a_trial_is_free(made: Service) -> None:
    made.subscribe(ALICE, "starter", status="trialing")
    made.use(ALICE, VERIFY, 5000, "03-10 10:00")
    page = Page(made, ALICE)
    assert "which is free during the trial" in page.text("bill")
    assert page.line("Verify Operations")[1:3] == ["3,000", "$0.00"]


def test_the_page_and_the_json_say_the_same(made: Service) -> None:
    for customer in (healthy(made), exceeded(made), new(made)):
        page = Page(made, customer)
        shown = set(re.findall(r'<data value="([^"]*)">', page.html))
        for line in page.json["bill"]:
            assert line["amount"] in shown
        for meter in page.json["meters"]:
            assert meter["total"] in shown
            for charge in meter["charges"]:
                assert {charge["units"], charge["amount"] or charge["units"]} <= shown
            if meter["billable"] and Decimal(meter["total"]):
                table = page.section("days").partition(f'id="table-{meter["meter"]}"')[2]
                table = table.partition("</table>")[0]
                rows = re.findall(r'datetime="([\d-]+)".*?<data value="([^"]*)">', table)
                assert dict(rows) == meter["days"]
        assert page.html.count('class="meter ') == sum(m["billable"] for m in page.json["meters"])


def test_the_hosts_decimal_context_touches_no_number(made: Service) -> None:
    customer = exceeded(made)
    usual = Page(made, customer)
    with localcontext(prec=3):
        odd = Page(made, customer)
    assert odd.json == usual.json
    assert all(odd.text(name) == usual.text(name) for name in ("bill", "meters", "days"))


# -- gauges ----------------------------------------------------------------------------------------


def gauge(page: Page, meter: str) -> dict[str, str]:
    found = re.search(rf'<div class="gauge"[^>]*name-{meter}"[^>]*>', page.html)
    assert found
    return dict(re.findall(r'([\w-]+)="([^"]*)"', found[0]))


def test_a_gauge_says_all_of_itself_to_assistive_technology(made: Service) -> None:
    page = Page(made, exceeded(made))
    found = gauge(page, SIGN)
    assert (found["role"], found["aria-valuemin"], found["aria-valuenow"]) == ("meter", "0", "1438")
    assert Decimal(found["aria-valuemax"]) >= Decimal(found["aria-valuenow"])
    assert found["aria-valuetext"].startswith("1,438 of 1,000, 144%, 438 above, exceeded")
    assert "projected" in found["aria-valuetext"]
    assert gauge(page, STORAGE)["aria-valuetext"].startswith("48.9 of 50, 98%, 1.1 left, critical")


def test_what_is_unlimited_has_no_gauge_and_no_percentage(made: Service) -> None:
    made.subscribe(ALICE, "scale")
    made.use(ALICE, VERIFY, 12345, "03-10 10:00")
    page = Page(made, ALICE)
    assert page.meter(VERIFY).startswith("Verify Operations 12,345 unlimited on this plan")
    assert "%" not in page.meter(VERIFY) and f'aria-labelledby="name-{VERIFY}"' not in page.html


def test_nothing_included_is_said_before_and_after_the_first_unit(made: Service) -> None:
    made.subscribe(ALICE, "starter")
    assert "0 nothing included any use is overage" in Page(made, ALICE).meter(SITES)
    made.use(ALICE, SITES, "shop.example.com", "03-10 10:00")
    page = Page(made, ALICE)
    assert page.meter(SITES).startswith("Active Sites Exceeded 1 nothing included 1 above")
    assert gauge(page, SITES)["aria-valuemax"] == "1"


def test_full_is_only_said_when_it_is(made: Service) -> None:
    made.subscribe(ALICE, "growth")
    made.use(ALICE, VERIFY, 14_999, "03-10 10:00")
    assert "99%" in Page(made, ALICE).meter(VERIFY)
    made.use(ALICE, VERIFY, 1, "03-10 11:00")
    assert "100%" in Page(made, ALICE).meter(VERIFY)


# -- days ------------------------------------------------------------------------------------------


def test_a_chart_has_a_bar_for_each_day_and_a_table_that_says_the_same(made: Service) -> None:
    page = Page(made, healthy(made))
    chart = page.section("days").partition(f'id="plot-{VERIFY}"')[2].partition("</figure>")[0]
    labels = re.findall(r"<title>(.*?)</title>", chart)
    assert len(labels) == 31
    assert re.fullmatch(r"Mon 2 Mar: \d+", labels[1])
    assert re.fullmatch(r"Thu 19 Mar: \d+ so far, \d+ more projected", labels[18])
    assert re.fullmatch(r"Tue 31 Mar: \d+ projected", labels[30])
    assert '<th scope="row"><time datetime="2026-03-19">Thu 19 Mar</time></th>' in chart
    assert chart.count("<tr>") == 1 + 19
    assert "even pace: 65" in chart


def test_a_maximum_is_drawn_as_what_had_been_reached(made: Service) -> None:
    page = Page(made, healthy(made))
    chart = page.section("days").partition(f'id="plot-{STORAGE}"')[2].partition("</figure>")[0]
    labels = re.findall(r"<title>(.*?)</title>", chart)
    assert (labels[0], labels[10], labels[11]) == (
        "Sun 1 Mar: 6.214",
        "Wed 11 Mar: 6.214",
        "Thu 12 Mar: 7.105",
    )
    assert labels[30] == "Tue 31 Mar: 7.105 projected"
    assert "included: 10" in chart


def test_what_is_only_counted_is_shown_small(made: Service) -> None:
    assert page_counts(Page(made, healthy(made))) == "API Calls 14,356 Support Requests 2"


def page_counts(page: Page) -> str:
    return page.text("counts").partition("Never billed. ")[2]


# -- alerts ----------------------------------------------------------------------------------------


def test_unread_alerts_stand_above_and_lead_to_their_meter(made: Service) -> None:
    page = Page(made, exceeded(made))
    banner = page.text("notices")
    assert banner.startswith("3 unread alerts")
    assert "Critical Storage (GB) usage at 98% 17 Mar, 02:00 UTC Mark as read" in banner
    assert banner.count("Mark as read") == 3 and "Mark all as read" in banner
    assert re.search(r'href="#meter-storage_gb">Storage \(GB\) usage at 98%', page.html)
    assert 'id="meter-storage_gb"' in page.html
    assert page.json["unread"] == 3


def test_many_unread_alerts_do_not_fill_the_page(made: Service) -> None:
    made.subscribe(ALICE, "starter")
    for meter, values in ((VERIFY, (1600, 300, 100)), (SIGN, (160, 30, 10))):
        for day, value in enumerate(values):
            made.use(ALICE, meter, value, f"03-1{day} 10:00")
    banner = Page(made, ALICE).text("notices")
    assert banner.startswith("6 unread alerts")
    assert banner.count("Mark as read") == 3
    assert banner.endswith("And 3 more.")


def test_the_history_goes_back_thirty_days(made: Service) -> None:
    made.subscribe(ALICE, "starter", ("02-01", "03-01"))
    made.use(ALICE, SIGN, 170, "02-16 10:00")
    made.use(ALICE, SIGN, 25, "02-18 10:00")
    history = Page(made, ALICE).text("history")
    assert "Sign Operations usage at 98%" in history
    assert "usage at 85%" not in history
    made.clock.now = at("03-21")
    assert "No alerts." in Page(made, ALICE).text("history")


def test_what_became_of_an_alert_on_each_channel_is_for_operators(tmp_path: Path) -> None:
    config = {
        "C2METER_MAIL_SERVER": "mail.example.com",
        "C2METER_MAIL_SENDER": "billing@example.com",
        "C2METER_ALERT_WEBHOOK_URL": "https://hooks.example.com/usage",
        "C2METER_ALERT_WEBHOOK_SECRET": "whsec_dGhpcyBpcyBhIHNlY3JldCBvZiB0aGUgdGVzdHM=",
    }
    with service(tmp_path / "instance", **config) as made:
        made.subscribe(ALICE, "starter")
        made.use(ALICE, SIGN, 170, "03-10 10:00")
        made.settle_alerts("webhook", "failed")
        operators, own = Page(made, ALICE, OPERATOR), Page(made, ALICE)
        assert "In the app: unread Signal: waiting Webhook: failed" in operators.text("history")
        made.settle_alerts("signal", "delivered")
        made.read_alerts(ALICE, "03-11")
        later = Page(made, ALICE, OPERATOR)
        assert "In the app: read Signal: delivered Webhook: failed" in later.text("history")
    assert operators.json["alerts"][0]["channels"]["webhook"]["reason"] == "http_500"
    assert "unread alert" not in operators.html.partition("</main>")[0].split('id="bill"')[0]
    for internal in ("Webhook", "webhook", "http_500", "Signal"):
        assert internal not in own.html.partition("<script")[0] and internal not in str(own.json)
    assert own.json["alerts"][0]["unread"] is True
    assert own.text("history").endswith("170 of 200 not yet")


def test_an_alert_of_a_meter_that_is_no_more_is_still_told(tmp_path: Path) -> None:
    with service(tmp_path / "instance") as made:
        made.subscribe(ALICE, "starter")
        made.use(ALICE, SIGN, 170, "03-10 10:00")
    only = {VERIFY: {"event_type": "v", "unit": "v", "aggregation": "sum"}}
    with service(tmp_path / "instance", C2METER_CATALOGUE={"meters": only}) as made:
        page = Page(made, ALICE)
    assert "sign_operations usage" in page.text("notices")
    assert "#meter-sign_operations" not in page.html
    assert page.json["alerts"][0]["message"] == "sign_operations usage"


# -- for everybody ---------------------------------------------------------------------------------


def test_every_time_is_machine_readable_and_said_to_be_utc(made: Service) -> None:
    page = Page(made, exceeded(made))
    assert (
        '<time datetime="2026-03-19T14:05:00+00:00">19 March 2026, 14:05:00</time> UTC' in page.html
    )
    assert '<time datetime="2026-04-01T00:00:00+00:00">1 Apr, 00:00</time> UTC' in page.html
    assert all("+00:00" in each or len(each) == 10 for each in
               re.findall(r'datetime="([^"]*)"', page.html))  # fmt: skip


def test_without_a_script_it_says_when_it_was_made_and_how_to_get_a_newer_one(
    made: Service,
) -> None:
    page = Page(made, healthy(made))
    assert "Made on 19 March 2026, 14:05:00 UTC." in page.text("made")
    (hint,) = re.findall(r'<span id="by-hand">(.*?)</span>', page.html)
    assert plain(hint) == "For newer numbers, load the page again ."


def test_ids_are_unique_and_every_label_has_its_element(made: Service) -> None:
    page = Page(made, exceeded(made))
    ids = re.findall(r'\bid="([^"]+)"', page.html)
    assert len(ids) == len(set(ids))
    named = re.findall(r'aria-labelledby="([^"]+)"', page.html)
    assert named and set(named) <= set(ids)
    levels = [int(level) for level in re.findall(r"<h([1-6])", page.html)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
