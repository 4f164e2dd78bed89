"""The examples of docs/alerts.md, used at what they are for."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from channel_rig import CANARY, RAISED, SECRET, announcement
from docs_blocks import ROOT, blocks
from docs_project import Project
from flask import Flask
from jinja2 import DictLoader
from werkzeug.serving import make_server

from flask_c2meter import C2Meter
from flask_c2meter.channels.mail import MailChannel, mail_renderer
from flask_c2meter.channels.signal import SignalChannel
from flask_c2meter.channels.webhook import WebhookChannel
from flask_c2meter.model import utc_now

PAGE = "docs/alerts.md"

flask_mail = pytest.importorskip("flask_mail", reason="needs the package flask-mail")


@pytest.fixture
def names(tmp_path: Path) -> Any:
    """What the page has defined at its end, in an app with Flask-Mail."""
    app = Flask("host", instance_path=str(tmp_path))
    app.config.update(C2METER_STRIPE_SECRET_KEY="", MAIL_SUPPRESS_SEND=True)
    app.config["MAIL_DEFAULT_SENDER"] = "billing@acme.example"
    project = Project(tmp_path)
    project.names.update(
        app=app,
        meter=C2Meter(app),
        flask_mail=flask_mail,
        flask_mail_extension=flask_mail.Mail(app),
        SECRET=SECRET,
    )
    with chdir(tmp_path):
        project.run_page(PAGE)
    yield project.names
    project.close()


def test_its_first_line_says_where_the_signal_fires() -> None:
    first = (ROOT / PAGE).read_text().split("\n\n")[1]
    assert first == "`usage_alert` fires in the process that runs the worker, outside any request."


def test_the_receiver_of_the_signal(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    SignalChannel(object()).announce(announcement())
    SignalChannel(object()).announce(announcement(is_test=True))
    assert capsys.readouterr().out == "cus_1 is at warning of verify_operations\n"


def test_the_template() -> None:
    (template,) = (block.text for block in blocks(PAGE) if block.language == "jinja")
    loader = DictLoader({"c2meter/mail/usage_warning.txt": template})
    mail = mail_renderer(loader, site_url="https://acme.example")(announcement())
    assert mail.subject == "Verify Operations usage at 82%"
    assert (
        mail.text.split()
        == (
            "Dear customer, 1,640 of 2,000 verify are used, 360 are left until 1 December 2026. "
            "https://acme.example/billing/usage"
        ).split()
    )


def test_the_sender_for_flask_mail(names: dict[str, Any]) -> None:
    sender = names["meter"]._hooks.mail_sender
    with names["app"].app_context(), names["flask_mail_extension"].record_messages() as sent:
        MailChannel(mail_renderer(None), sender).announce(announcement())
    (message,) = sent
    assert message.subject == "Verify Operations usage at 82%"
    assert message.recipients == [f"{CANARY}@example.com"]
    assert "1,640" in message.body and "<strong>" in message.html
    assert message.extra_headers == {"Message-ID": "<019aa-1@acme.example>"}


def test_the_receiver_of_the_webhook(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    receiver: Flask = names["receiver"]
    server = make_server("127.0.0.1", 0, receiver, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.port}/hooks/usage"
    try:
        WebhookChannel(url, SECRET, utc_now, allow_loopback=True).announce(announcement())
        with pytest.raises(HTTPError) as refused, urlopen(Request(url, b"{}"), timeout=10):
            pass
        refused.value.close()
    finally:
        server.shutdown()
        server.server_close()
    assert refused.value.code == 400
    assert capsys.readouterr().out == "alert_019aa-1 cus_1 warning\n"
    (stated,) = (block.text for block in blocks(PAGE) if block.language == "json")
    assert "2026-11-23T12:00:00.250Z" in stated and RAISED.microsecond == 250_000
