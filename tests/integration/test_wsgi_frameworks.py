"""Django, Falcon, a bare callable and somebody else's Flask app, each metered as docs/wsgi.md says.

The lines are taken from that page, the servers are real processes, and the bill is the emulator's.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.wsgi.paths import PathTable

PAGE = Path(__file__).parents[2] / "docs" / "wsgi.md"

#: Name -> code, of the blocks of the page that are whole.
BLOCKS = dict(re.findall(r"<!-- ([a-z ]+) -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL))

ALICE = {"X-Api-Key": "key-of-alice"}

BARE = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode()]
"""

ECHO = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["wsgi.input"].read()]
"""

FALCON = """
import falcon

class Verify:
    def on_post(self, request, response):
        response.text = request.path

app = falcon.App()
app.add_route("/verify", Verify())
app.add_route("/about", Verify())
"""

DJANGO_URLS = """
from django.contrib.auth import authenticate, login
from django.http import HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

@csrf_exempt
def show(request):
    return HttpResponse(request.path)

@csrf_exempt
def sign_in(request):
    login(request, authenticate(username="alice", password=request.body.decode()))
    return HttpResponse("welcome")

urlpatterns = [path(name, view) for name, view in
               {"verify": show, "about": show, "login": sign_in}.items()]
"""


class Project:
    """A folder with an app in it, its processes, and the Stripe it delivers to."""

    def __init__(self, folder: Path, stripe: StripeEmulator) -> None:
        self.folder = folder
        self.stripe = stripe
        #: What the last answer has set.
        self.cookie = ""
        self.env = {
            **{name: text for name, text in os.environ.items() if name != "WEB_CONCURRENCY"},
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "C2METER_STRIPE_SECRET_KEY": "sk_test_1",
            "C2METER_STRIPE_BASE_URL": stripe.url,
        }

    def write(self, name: str, *parts: str) -> None:
        (self.folder / name).write_text("\n".join(parts))

    def run(self, *command: str) -> str:
        """What ``python -m COMMAND`` prints."""
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def served(self, *command: str) -> Iterator[Callable[..., tuple[int, bytes]]]:
        """A function that sends a POST to the server ``python COMMAND``, whose socket is ``{}``."""
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            listener.set_inheritable(True)
            process = subprocess.Popen(
                [sys.executable, *(part.format(listener.fileno()) for part in command)],
                cwd=self.folder,
                env=self.env,
                pass_fds=[listener.fileno()],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

            def post(
                path: str, headers: dict[str, str] = ALICE, body: str | Iterator[bytes] = ""
            ) -> tuple[int, bytes]:
                connection = HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=60)
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                cookies = response.headers.get_all("Set-Cookie", [])
                self.cookie = "; ".join(cookie.partition(";")[0] for cookie in cookies)
                try:
                    return response.status, response.read()
                finally:
                    connection.close()

            try:
                yield post
            finally:
                process.send_signal(signal.SIGTERM)
                output, _ = process.communicate(timeout=60)
        assert "Traceback" not in output, output

    def gunicorn(self, app: str, *options: str) -> Any:
        quiet = ("--no-control-socket", "--log-level", "warning")
        return self.served("-m", "gunicorn", "-b", "fd://{}", *quiet, *options, app)

    def waitress(self, app: str) -> Any:
        module, _, name = app.partition(":")
        script = f"""
        import socket, waitress
        from {module} import {name}
        waitress.serve({name}, sockets=[socket.socket(fileno={{}})])
        """
        return self.served("-c", textwrap.dedent(script))

    def sell(self) -> None:
        """Alice pays 4 cents for each verification."""
        self.stripe.add_price("verify_operations", lookup_key="starter", unit_amount_decimal="4")
        self.stripe.add_subscription("cus_alice", ["starter"])

    def check_arrival(self, units: int) -> None:
        """Stripe has *units* of Alice's."""
        arrived = self.stripe.wait_for(
            lambda stripe: stripe.meter_total("verify_operations", "cus_alice") == units, 60
        )
        assert arrived, self.stripe.meter_total("verify_operations", "cus_alice")

    def check_bill(self, units: int) -> None:
        """The invoice of Alice's month is about *units*."""
        self.check_arrival(units)
        self.stripe.advance(timedelta(days=32))
        assert [invoice.total for invoice in self.stripe.invoices if invoice.total] == [4 * units]


@pytest.fixture
def project(tmp_path: Path, stripe_emulator: StripeEmulator) -> Project:
    return Project(tmp_path, stripe_emulator)


def check_use(post: Callable[..., tuple[int, bytes]]) -> None:
    """Seven requests, of which three are Alice's verifications."""
    for _ in range(3):
        assert post("/verify") == (200, b"/verify")
    assert post("/verify", {"X-Api-Key": "forged"})[0] == post("/verify", {})[0] == 401
    assert post("/about", {}) == (200, b"/about")
    assert post("/nowhere")[0] in (200, 404)


@pytest.mark.parametrize("name", ["django", "app", "flask"])
def test_it_takes_three_lines(name: str) -> None:
    assert len(BLOCKS[name].splitlines()) == 3


def new_django(project: Project, block: str) -> None:
    pytest.importorskip("django", reason="needs the package django")
    project.run("django", "startproject", "mysite", ".")
    project.write("mysite/urls.py", DJANGO_URLS)
    wsgi = (project.folder / "mysite" / "wsgi.py").read_text()
    project.write("mysite/wsgi.py", wsgi, block)


def test_django_under_gunicorn_with_preload(project: Project) -> None:
    new_django(project, BLOCKS["django"])
    project.sell()
    with project.gunicorn("mysite.wsgi", "--preload", "-w", "2") as post:
        check_use(post)
        project.check_bill(3)


def test_django_with_its_own_sessions(project: Project) -> None:
    new_django(project, BLOCKS["django sessions"])
    project.run("django", "migrate", "--settings=mysite.settings", "-v0")
    project.env["DJANGO_SUPERUSER_PASSWORD"] = "correct horse"
    project.run(
        *("django", "createsuperuser", "--settings=mysite.settings", "--noinput"),
        *("--username", "alice", "--email", "alice@example.com"),
    )
    with project.gunicorn("mysite.wsgi", "--threads", "2") as post:
        assert post("/verify", {})[0] == 401
        assert post("/login", {}, "correct horse") == (200, b"welcome")
        assert post("/verify", {"Cookie": project.cookie}) == (200, b"/verify")
        project.check_arrival(1)


def test_falcon_under_gunicorn_with_threads(project: Project) -> None:
    pytest.importorskip("falcon", reason="needs the package falcon")
    project.write("site_app.py", FALCON, BLOCKS["app"])
    project.sell()
    with project.gunicorn("site_app:app", "--threads", "4") as post:
        check_use(post)
        project.check_bill(3)


def test_a_bare_callable_under_waitress_and_its_commands(project: Project) -> None:
    pytest.importorskip("waitress", reason="needs the package waitress")
    project.write("bare.py", BARE, BLOCKS["app"])
    project.write("ops.py", BLOCKS["ops"])
    project.sell()
    with project.waitress("bare:app") as post:
        check_use(post)
        project.check_arrival(3)

    flask = ("flask", "--app", "ops", "c2meter")
    project.run(*flask, "worker", "--once")  # the server may have ended before it could settle
    meters = json.loads(project.run(*flask, "status", "--json"))["meters"]
    assert meters["verify_operations"]["delivered"] == "3"
    assert "cus_alice" in project.run(*flask, "events")
    project.check_bill(3)


@pytest.mark.parametrize("server", ["gunicorn", "waitress"])
def test_an_upload_in_chunks_goes_with_its_key_and_reaches_the_app_whole(
    project: Project, server: str
) -> None:
    pytest.importorskip(server, reason=f"needs the package {server}")
    project.write("echo.py", ECHO, BLOCKS["app"])
    keyed = {**ALICE, "Idempotency-Key": "key-1"}
    with getattr(project, server)("echo:app") as post:
        for _ in range(2):
            assert post("/verify", keyed, iter([b"one ", b"two"])) == (200, b"one two")
        assert post("/verify", keyed, iter([b"one ", b"three"]))[0] == 409
        project.check_arrival(1)


def test_somebody_elses_flask_app(project: Project) -> None:
    pytest.importorskip("httpbin", reason="needs the package httpbin")
    project.write("theirs.py", BLOCKS["flask"])
    project.sell()
    with project.gunicorn("theirs:app") as post:
        for _ in range(3):
            status, body = post("/anything/image", body="pixels")
            assert (status, json.loads(body)["data"]) == (200, "pixels")
        assert post("/anything/image", {})[0] == 401
        assert post("/post", {})[0] == 200
        project.check_bill(3)


@pytest.mark.parametrize(
    ("name", "path", "body", "events"),
    [
        ("usage", "/verify", b"for cus_alice", [("verify_operations", 3, "urn:c2pa:1")]),
        ("terms", "/sign", b"signed", [("sign_operations", 1, "urn:c2pa:1")]),
        (
            "both",
            "/verify",
            b'{"ok":true}\n',
            [("verify_operations", 1, None)],
        ),
    ],
)
def test_the_other_examples_of_the_page(
    project: Project, name: str, path: str, body: bytes, events: list[tuple[str, int, str | None]]
) -> None:
    project.write("example.py", BLOCKS[name])
    script = f"""
    import json
    from werkzeug.test import Client
    from example import app
    answer = Client(app).post({path!r}, json={{}})
    found = [
        [event.meter, int(event.value), event.properties.get("manifest_id")]
        for event in (getattr(app, "wsgi_app", app)).metering.store.events()
    ]
    print(json.dumps([answer.status_code, answer.text, found]))
    """
    project.write("try_it.py", textwrap.dedent(script))
    status, text, found = json.loads(project.run("try_it"))
    assert (status // 100, text.encode()) == (2, body)
    assert [tuple(event) for event in found] == events


def test_the_table_of_lines_means_what_the_page_says() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS["meters"], names)
    lines = PathTable(names["meters"])
    assert lines.find("POST", "/verify") == "verify_operations"
    assert lines.find("POST", "/sites/a.example/sign") == "sign_operations"
    assert {lines.find("PUT", path) for path in ("/api", "/api/", "/api/a/b")} == {"api_calls"}
    assert lines.find("GET", "/api/health") is lines.find("GET", "/elsewhere") is None


def test_no_example_of_the_page_is_left_out() -> None:
    source = Path(__file__).read_text()
    assert all(f'"{name}"' in source for name in BLOCKS)
    assert PAGE.read_text().count("```python") == len(BLOCKS)
