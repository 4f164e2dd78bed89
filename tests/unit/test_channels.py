"""An alert in words: the document's message, the mail's templates, the signal.

What goes over a socket is in ``tests/integration/test_mail.py`` and ``test_alert_webhook.py``.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from jinja2 import DictLoader

from flask_c2meter.channels import Announcement
from flask_c2meter.channels.mail import Mail, MailChannel, mail_renderer
from flask_c2meter.channels.signal import SignalChannel
from flask_c2meter.errors import C2MeterError, ChannelError
from flask_c2meter.model import Aggregation, Alert, Level, Meter, Period
from flask_c2meter.signals import usage_alert

METER = Meter("verify_operations", "Verify Operations", "v.done", "verify", Aggregation.SUM)
PERIOD = Period(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
CANARY = "canary@example.com"


def announcement(
    level: Level = "warning",
    total: str = "1640",
    included: str = "2000",
    *,
    meter: Meter = METER,
    email: str | None = CANARY,
    is_test: bool = False,
) -> Announcement:
    used, allowed = Decimal(total), Decimal(included)
    utilization = used / allowed if allowed else None
    alert = Alert(
        "cus_1", meter.name, level, utilization, used, allowed, PERIOD, NOON, "0192f-1", is_test
    )  # fmt: skip
    return Announcement(alert, meter, email)


def sent_with(render: Any, subject: Announcement) -> Mail:
    mail = render(subject)
    assert isinstance(mail, Mail)
    return mail


class TestAnnouncement:
    @pytest.mark.parametrize(
        ("total", "included", "message"),
        [
            ("1640", "2000", "Verify Operations usage at 82%"),
            ("1649", "2000", "Verify Operations usage at 82%"),
            ("1650", "2000", "Verify Operations usage at 83%"),
            ("85.5", "100", "Verify Operations usage at 86%"),
            ("1999", "2000", "Verify Operations usage at 99%"),  # 100 is another level's
            ("2000", "2000", "Verify Operations usage at 100%"),
            ("2412", "2000", "Verify Operations usage at 121%"),
            ("1e15", "1", "Verify Operations usage at 100000000000000000%"),
            ("1", "0", "Verify Operations usage exceeds the plan, which includes none"),
        ],
    )
    def test_the_message_is_the_documents(self, total: str, included: str, message: str) -> None:
        assert announcement(total=total, included=included).message == message

    def test_it_leads_to_the_documents_page(self) -> None:
        assert announcement().action_url == "/billing/usage"

    def test_the_address_is_not_shown(self) -> None:
        assert "canary" not in repr(announcement())


class TestSignal:
    def test_receivers_get_the_alert_and_their_sender(self) -> None:
        heard: list[tuple[object, dict[str, Any]]] = []

        def listen(sender: object, **payload: Any) -> None:
            heard.append((sender, payload))

        sender, said = object(), announcement()
        with usage_alert.connected_to(listen):
            SignalChannel(sender).announce(said)
        assert heard == [(sender, {"alert": said.alert})]

    def test_a_receiver_that_raises_stops_no_other_and_only_it_is_told_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        told: list[str] = []

        def works(sender: object, **_: Any) -> None:
            told.append("works")

        def fails(sender: object, **_: Any) -> None:
            told.append("fails")
            raise RuntimeError("broken receiver")

        channel, said = SignalChannel(object()), announcement()
        with usage_alert.connected_to(fails), usage_alert.connected_to(works):
            with pytest.raises(ChannelError) as caught:
                channel.announce(said)
            assert sorted(told) == ["fails", "works"]
            assert "broken receiver" in caplog.text and "broken" not in caught.value.reason
            assert caught.value.reason.endswith("<locals>.fails")
            assert not caught.value.is_permanent

            with pytest.raises(ChannelError):
                channel.announce(replace(said, failed_of=caught.value.reason))
        assert sorted(told) == ["fails", "fails", "works"]

    def test_after_a_failure_that_names_no_receiver_all_are_told(self) -> None:
        told: list[object] = []

        class Listener:
            def __call__(self, sender: object, **_: Any) -> None:
                told.append(self)

            def method(self, sender: object, **_: Any) -> None:
                told.append(self)

        one = Listener()
        with usage_alert.connected_to(one), usage_alert.connected_to(one.method):
            SignalChannel(object()).announce(replace(announcement(), failed_of="abandoned"))
        assert told == [one, one]

    def test_a_receiver_that_is_an_object_is_known_by_its_class(self) -> None:
        class Broken:
            def __call__(self, sender: object, **_: Any) -> None:
                raise LookupError

        broken = Broken()
        with usage_alert.connected_to(broken), pytest.raises(ChannelError) as caught:
            SignalChannel(object()).announce(announcement())
        assert caught.value.reason.endswith("<locals>.Broken")

    def test_a_test_is_known_by_the_alert(self) -> None:
        heard: list[Alert] = []

        def listen(sender: object, alert: Alert) -> None:
            heard.append(alert)

        with usage_alert.connected_to(listen):
            SignalChannel(object()).announce(announcement(is_test=True))
        assert [alert.is_test for alert in heard] == [True]


class TestTemplates:
    def test_a_warning(self) -> None:
        mail = sent_with(mail_renderer(None), announcement())
        assert (mail.to, mail.identifier) == (CANARY, "0192f-1")
        assert mail.subject == "Verify Operations usage at 82%"
        for words in ("1,640 of the 2,000", "room for 360 more", "1 December 2026"):
            assert words in mail.text
        assert "82%" in mail.html and "<strong>360</strong>" in mail.html
        assert mail.subject not in mail.text

    def test_critical(self) -> None:
        storage = replace(METER, display_name="Storage (GB)")
        said = announcement("critical", "95.125", "100.000", meter=storage)
        mail = sent_with(mail_renderer(None), said)
        assert mail.subject == "Storage (GB) usage at 95%"
        assert "95.125 of the 100 in your plan" in mail.text
        assert "only <strong>4.875</strong> more" in mail.html

    def test_exceeded(self) -> None:
        mail = sent_with(mail_renderer(None), announcement("exceeded", "2412"))
        assert "all that your plan includes is used" in mail.text
        assert "412" in mail.text and "412" in mail.html
        assert "width:100%" in mail.html

    def test_exceeded_where_nothing_is_included(self) -> None:
        mail = sent_with(mail_renderer(None), announcement("exceeded", "3", "0"))
        assert "your plan includes none" in mail.text
        assert "%)" not in mail.text

    def test_a_test_says_so_everywhere(self) -> None:
        mail = sent_with(mail_renderer(None), announcement(is_test=True))
        assert mail.subject == "[Test] Verify Operations usage at 82%"
        assert "This is a test" in mail.text and "This is a test" in mail.html

    def test_a_test_says_so_also_in_a_template_of_the_hosts(self) -> None:
        render = mail_renderer(DictLoader({"c2meter/mail/usage_warning.txt": "{{ message }}"}))
        mail = sent_with(render, announcement(is_test=True))
        assert mail.subject == "[Test] Verify Operations usage at 82%"
        assert sent_with(render, announcement()).subject == "Verify Operations usage at 82%"

    def test_the_link_needs_to_know_where_the_pages_are(self) -> None:
        without = sent_with(mail_renderer(None), announcement())
        assert "/billing/usage" not in without.text + without.html
        mail = sent_with(mail_renderer(None, site_url="https://app.example/"), announcement())
        assert "https://app.example/billing/usage" in mail.text
        assert 'href="https://app.example/billing/usage"' in mail.html

    def test_names_are_escaped_in_html_only(self) -> None:
        meter = replace(METER, display_name="R&D <b>")
        mail = sent_with(mail_renderer(None), announcement(meter=meter))
        assert mail.subject == "R&D <b> usage at 82%"
        assert "R&D <b>:" in mail.text
        assert "R&amp;D &lt;b&gt; usage" in mail.html and "R&D" not in mail.html

    def test_nothing_in_the_html_is_loaded_or_run(self) -> None:
        html = sent_with(mail_renderer(None), announcement()).html
        for word in ("<script", "<img", "<link", "url(", "http"):
            assert word not in html

    def test_the_host_overrides_what_it_likes(self) -> None:
        host = DictLoader(
            {
                "c2meter/mail/usage_warning.txt": "\n{{ customer }}: {{ utilization }}\n\nMind, "
                "{{ remaining }} % of {{ meter }} ({{ unit }}) left.",
                "c2meter/mail/layout.html": "<p>House style: {% block summary %}{% endblock %}",
            }
        )
        render = mail_renderer(host)
        mail = sent_with(render, announcement())
        assert (mail.subject, mail.text) == (
            "cus_1: 82",
            "Mind, 18 % of Verify Operations (verify) left.\n",
        )
        assert mail.html == "<p>House style: 1,640 of the 2,000 in your plan are used."
        assert sent_with(render, announcement("exceeded", "2000")).subject.endswith("at 100%")


class TestMail:
    @pytest.mark.parametrize("name", ["to", "subject", "identifier"])
    @pytest.mark.parametrize("end", ["\r\nBcc: x@y.example", "\n", "\r", "\0", "\x85", "\u2028"])
    def test_no_header_can_begin_another(self, name: str, end: str) -> None:
        parts = {"to": "a@b.example", "subject": "s", "identifier": "i"}
        with pytest.raises(ChannelError) as caught:
            Mail(text="", html="", **{**parts, name: parts[name] + end})
        assert (caught.value.reason, caught.value.is_permanent) == (f"bad_{name}", True)

    def test_a_subject_of_a_kilobyte_is_refused(self) -> None:
        with pytest.raises(ChannelError, match="bad_subject"):
            Mail("a@b.example", "s" * 1000, "", "", "i")

    def test_its_address_and_words_are_not_shown(self) -> None:
        assert "canary" not in repr(Mail(CANARY, "s", CANARY, CANARY, "i"))


class TestMailChannel:
    def test_the_senders_return_is_success(self) -> None:
        sent: list[Mail] = []
        MailChannel(mail_renderer(None), sent.append).announce(announcement())
        assert [mail.to for mail in sent] == [CANARY]

    def test_without_an_address_there_is_nothing_to_try_again(self) -> None:
        channel = MailChannel(mail_renderer(None), lambda mail: None)
        with pytest.raises(ChannelError) as caught:
            channel.announce(announcement(email=None))
        assert (caught.value.reason, caught.value.is_permanent) == ("no_address", True)

    def test_what_a_hosts_sender_raises_is_tried_again_and_not_repeated(self) -> None:
        def send(mail: Mail) -> None:
            raise ConnectionResetError(f"while sending to {mail.to}")

        error = refused(MailChannel(mail_renderer(None), send))
        assert (error.reason, error.is_permanent) == ("sender:ConnectionResetError", False)

    def test_a_broken_template_is_tried_again(self) -> None:
        host = DictLoader({"c2meter/mail/usage_warning.txt": "{{ nothing_of_that_name }}"})
        error = refused(MailChannel(mail_renderer(host), lambda mail: None))
        assert (error.reason, error.is_permanent) == ("template:UndefinedError", False)

    def test_a_sender_may_say_itself_what_it_means(self) -> None:
        def send(mail: Mail) -> None:
            raise ChannelError("quota", is_permanent=True, retry_after_s=7)

        error = refused(MailChannel(mail_renderer(None), send))
        assert (error.reason, error.is_permanent, error.retry_after_s) == ("quota", True, 7)


def refused(channel: MailChannel) -> ChannelError:
    """How *channel* fails; it names no address anywhere."""
    with pytest.raises(ChannelError) as caught:
        channel.announce(announcement())
    assert "canary" not in "".join(traceback.format_exception(caught.value))
    assert "canary" not in repr(caught.value)
    return caught.value


def test_a_channels_error_is_one_of_ours_and_of_the_system() -> None:
    error = ChannelError("timeout")
    assert isinstance(error, C2MeterError) and isinstance(error, OSError)
    assert str(error) == "the alert could not be announced: timeout"
    assert (error.is_permanent, error.retry_after_s) == (False, None)


def test_the_announcement_costs_no_import_of_what_sends_it() -> None:
    code = (
        "import sys, flask_c2meter, flask_c2meter.channels\n"
        "print(*{'smtplib', 'standardwebhooks', 'urllib3', 'requests'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_channels_log_nothing_of_an_alert(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    MailChannel(mail_renderer(None), lambda mail: None).announce(announcement())
    SignalChannel(object()).announce(announcement())
    assert caplog.text == ""
