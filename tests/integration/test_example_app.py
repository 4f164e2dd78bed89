"""The example app through its HTTP surface, with real C2PA manifests in images other tools made."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import stat
import struct
import subprocess
import sys
import threading
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_host import close, wait_until
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse, encode_multipart

from flask_c2meter.emulator import StripeEmulator

pytest.importorskip("c2pa", reason="the example app needs the extra 'example'")

from example_app import create_app
from example_app.concierge import Concierge, Image
from example_app.credentials import Credentials, load_or_create

STARTER = {"Authorization": "Bearer demo-starter-key"}
GROWTH = {"X-API-Key": "demo-growth-key"}

# Written by Pillow, 8 x 8 pixels each.
BASELINE_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAFA3PEY8MlBGQUZaVVBfeMiCeG5uePWvuZHI//////////////////"
    "//////////////////////////////////2wBDAVVaWnhpeOuCguv/////////////////////////////////"
    "////////////////////////////////////////wAARCAAIAAgDASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAA"
    "AAAAAAAAL/xAAWEAEBAQAAAAAAAAAAAAAAAAAAAgP/xAAVAQEBAAAAAAAAAAAAAAAAAAABAv/EABcRAAMBAAAA"
    "AAAAAAAAAAAAAAABAhH/2gAMAwEAAhEDEQA/AJjIBLpjFPD/2Q=="
)
PROGRESSIVE_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAFA3PEY8MlBGQUZaVVBfeMiCeG5uePWvuZHI//////////////////"
    "//////////////////////////////////2wBDAVVaWnhpeOuCguv/////////////////////////////////"
    "////////////////////////////////////////wgARCAAIAAgDASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAA"
    "AAAAAAAAH/xAAVAQEBAAAAAAAAAAAAAAAAAAAAAf/aAAwDAQACEAMQAAABgj//xAAVEAEBAAAAAAAAAAAAAAAA"
    "AAAAEf/aAAgBAQABBQKP/8QAFREBAQAAAAAAAAAAAAAAAAAAAQD/2gAIAQMBAT8BG//EABURAQEAAAAAAAAAAA"
    "AAAAAAAAAR/9oACAECAQE/Aa//xAAUEAEAAAAAAAAAAAAAAAAAAAAA/9oACAEBAAY/An//xAAVEAEBAAAAAAAA"
    "AAAAAAAAAAAAAf/aAAgBAQABPyGH/9oADAMBAAIAAwAAABAH/8QAFhEAAwAAAAAAAAAAAAAAAAAAAAER/9oACA"
    "EDAQE/EHQ//8QAFREBAQAAAAAAAAAAAAAAAAAAAQD/2gAIAQIBAT8QVf/EABQQAQAAAAAAAAAAAAAAAAAAAAD/"
    "2gAIAQEAAT8Qf//Z"
)
CMYK_JPEG = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwBQNzxGPDJQRkFGWlVQX3jIgnhubnj1r7mRyP////////////////////"
    "///////////////////////////////8AAFAgACAAIBEMRAE0RAFkRAEsRAP/EABYAAQEBAAAAAAAAAAAAAAAA"
    "AAIBBP/EABgQAQADAQAAAAAAAAAAAAAAAAAEFEFh/9oADgRDAE0AWQBLAAA/ADFwa3EbX//Z"
)


def png(width: int = 16, *, noise: bool = False) -> bytes:
    """A square PNG with an alpha channel; *noise* does not compress, 4 * width**2 bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    pixels = [os.urandom(4 * width) if noise else b"\x20\x60\xa0\x80" * width] * width
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, width, 8, 6, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in pixels), 0 if noise else 6))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


IMAGES = {
    "baseline.jpg": BASELINE_JPEG,
    "progressive.jpg": PROGRESSIVE_JPEG,
    "cmyk.jpg": CMYK_JPEG,
    "alpha.png": png(),
}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """The example with a ledger and no Stripe."""
    settings = {"TESTING": True, "C2METER_STRIPE_SECRET_KEY": "", "C2METER_STRIPE_BASE_URL": None}
    app = create_app(settings, instance_path=str(tmp_path))
    yield app
    close(app)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def post(
    client: FlaskClient, path: str, data: bytes, name: str = "photo", who: dict[str, str] = STARTER
) -> TestResponse:
    # Encoded here: of a large form the test client leaves a temporary file open.
    boundary, body = encode_multipart({"file": FileStorage(io.BytesIO(data), name)})
    form = f"multipart/form-data; boundary={boundary}"
    return client.post(f"/api/{path}", data=body, content_type=form, headers=who)


def totals(client: FlaskClient, who: dict[str, str] = STARTER) -> dict[str, int]:
    """What is counted for one customer, zeros left out."""
    rows = client.get("/api/usage", headers=who).json["usage"]
    return {row["meter"]: int(row["total"]) for row in rows if row["total"] != "0"}


# -- Signing and verifying -------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_a_signed_image_is_verified_and_both_count_once(client: FlaskClient, name: str) -> None:
    signed = post(client, "sign", IMAGES[name], name)
    assert signed.status_code == 200
    assert signed.mimetype == ("image/png" if name.endswith("png") else "image/jpeg")
    assert "-signed." in signed.headers["Content-Disposition"]

    found = post(client, "verify", signed.data).json
    assert found["state"] == "Trusted"
    assert found["verification_result"] is True
    assert found["manifest_id"] == signed.headers["X-Manifest-Id"]
    assert found["title"] == name
    assert totals(client) == {"sign_operations": 1, "verify_operations": 1}


def test_a_ten_megabyte_image_is_signed(client: FlaskClient) -> None:
    signed = post(client, "sign", png(1_600, noise=True))
    assert post(client, "verify", signed.data).json["state"] == "Trusted"


def test_json_with_base64_works_as_multipart_does(client: FlaskClient) -> None:
    image = {"image": base64.b64encode(BASELINE_JPEG).decode(), "name": "a.jpg"}
    signed = client.post("/api/sign", json=image, headers=STARTER).json
    assert signed["name"] == "a-signed.jpeg"

    found = client.post("/api/verify", json={"image": signed["image"]}, headers=STARTER).json
    assert (found["state"], found["manifest_id"]) == ("Trusted", signed["manifest_id"])


def test_a_multipart_upload_may_ask_for_json(client: FlaskClient) -> None:
    body = {"file": (io.BytesIO(png()), "a.png")}
    headers = {**STARTER, "Accept": "application/json"}
    assert client.post("/api/sign", data=body, headers=headers).json["mime"] == "image/png"


def test_the_bytes_decide_the_format_not_the_name(client: FlaskClient) -> None:
    assert post(client, "sign", png(), "photo.jpg").mimetype == "image/png"


def test_a_file_name_is_only_ever_a_title(client: FlaskClient) -> None:
    name = '../../et"c\r\n/ev\x00il\u202e.png'
    image = {"image": base64.b64encode(png()).decode(), "name": name}
    signed = client.post("/api/sign", json=image, headers=STARTER).json
    assert signed["name"] == "evil-signed.png"
    assert post(client, "verify", base64.b64decode(signed["image"])).json["title"] == "evil.png"


def test_a_signed_image_can_be_signed_again(client: FlaskClient) -> None:
    first = post(client, "sign", BASELINE_JPEG)
    second = post(client, "sign", first.data)
    found = post(client, "verify", second.data).json
    assert found["state"] == "Trusted"
    assert found["manifest_id"] == second.headers["X-Manifest-Id"]
    assert second.headers["X-Manifest-Id"] != first.headers["X-Manifest-Id"]
    assert first.headers["X-Manifest-Id"].encode() in second.data  # the parent is kept


def altered(data: bytes) -> bytes:
    """*data* with one bit of its picture flipped."""
    at = len(data) - 20
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_an_altered_image_is_a_free_no(client: FlaskClient) -> None:
    signed = post(client, "sign", png()).data
    response = post(client, "verify", altered(signed))
    assert response.status_code == 200
    assert response.json["state"] == "Invalid"
    assert response.json["verification_result"] is False
    assert response.json["failures"] == ["assertion.dataHash.mismatch"]
    assert totals(client) == {"sign_operations": 1}


def test_an_altered_image_is_not_signed_again(client: FlaskClient) -> None:
    signed = post(client, "sign", png()).data
    assert post(client, "sign", altered(signed)).status_code == 422
    assert totals(client) == {"sign_operations": 1}


def test_a_damaged_manifest_is_invalid_not_an_error(client: FlaskClient) -> None:
    signed = post(client, "sign", png()).data
    damaged = signed.replace(b"c2pa.signature", b"c2pa.sIgnature")
    assert post(client, "verify", damaged).json["state"] == "Invalid"


def test_an_image_without_manifest_is_a_free_no(client: FlaskClient) -> None:
    found = post(client, "verify", BASELINE_JPEG).json
    assert (found["state"], found["verification_result"]) == ("NoManifest", False)
    assert totals(client) == {}


def test_another_installation_finds_the_signature_valid_but_unknown(tmp_path: Path) -> None:
    here, there = (Concierge(load_or_create(tmp_path / name)) for name in ("a.pem", "b.pem"))
    signed = here.sign(Image(png(), "image/png", "photo"))
    found = there.verify(Image(signed.data, "image/png", "photo"))
    assert (found.state, found.failures) == ("Valid", ("signingCredential.untrusted",))


# -- Refusals --------------------------------------------------------------------------------------

BAD_REQUESTS: dict[str, tuple[int, dict[str, Any]]] = {
    "no file": (400, {"data": {"other": "x"}}),
    "no body": (400, {}),
    "empty file": (400, {"data": {"file": (io.BytesIO(), "a.png")}}),
    "not base64": (400, {"json": {"image": "%%%"}}),
    "line breaks in base64": (400, {"json": {"image": "iVBO\nRw0K"}}),
    "image is a number": (400, {"json": {"image": 1}}),
    "name is a list": (400, {"json": {"image": "aGk=", "name": []}}),
    "no image": (400, {"json": {}}),
    "json list": (400, {"json": []}),
    "no json": (400, {"data": "{", "content_type": "application/json"}),
    "deep json": (400, {"data": "[" * 100_000, "content_type": "application/json"}),
    "a gif": (415, {"json": {"image": base64.b64encode(b"GIF89a").decode()}}),
    "half a png": (422, {"json": {"image": base64.b64encode(png()[:40]).decode()}}),
    "half a jpeg": (422, {"json": {"image": base64.b64encode(BASELINE_JPEG[:150]).decode()}}),
}


@pytest.mark.parametrize("path", ["sign", "verify"])
@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_upload_is_refused_and_never_counted(
    client: FlaskClient, path: str, case: str
) -> None:
    status, request = BAD_REQUESTS[case]
    if "file" in request.get("data", ()):
        request = {"data": {"file": (io.BytesIO(), "a.png")}}  # a stream serves one request only
    response = client.post(f"/api/{path}", headers=STARTER, **request)
    assert response.status_code == status
    assert list(response.json) == ["error"]
    assert totals(client) == {}


def test_an_upload_that_is_too_large_is_refused_as_json(client: FlaskClient) -> None:
    response = post(client, "sign", b"\x89PNG\r\n\x1a\n" + bytes(20 * 1024 * 1024))
    assert (response.status_code, list(response.json)) == (413, ["error"])


@pytest.mark.parametrize(
    "who",
    [
        {},
        {"X-API-Key": "demo"},
        {"Authorization": "Basic eDp5"},
        {"Authorization": "Bearer \u00e9"},
    ],
)
@pytest.mark.parametrize("path", ["sign", "verify", "sites"])
def test_a_stranger_is_refused_before_the_upload_is_looked_at(
    client: FlaskClient, path: str, who: dict[str, str]
) -> None:
    response = client.post(f"/api/{path}", headers=who)
    assert (response.status_code, response.json) == (401, {"error": "Unauthorized"})
    assert client.get("/api/usage", headers=who).status_code == 401


def test_what_was_signed_is_kept_and_measured(
    app: Flask, client: FlaskClient, tmp_path: Path
) -> None:
    signed = post(client, "sign", png(600, noise=True))
    (kept,) = (tmp_path / "archive" / "cus_demo_starter").iterdir()
    assert kept.read_bytes() == signed.data
    assert not set(kept.name) & set("/:")

    run = app.test_cli_runner().invoke(args=["c2meter", "measure-storage"])

    assert run.exit_code == 0, run.output
    rows = client.get("/api/usage", headers=STARTER).get_json()["usage"]
    measured = {row["meter"]: row["total"] for row in rows}
    assert measured["storage_gb"] == "0.002"  # 1.44 MB and the manifest, rounded up


def test_only_good_uploads_use_up_the_rate_limit(client: FlaskClient) -> None:
    for _ in range(60):
        assert post(client, "sign", b"").status_code == 400
    answers = [post(client, "sign", BASELINE_JPEG).status_code for _ in range(51)]
    assert answers == [200] * 50 + [429]
    assert post(client, "sign", BASELINE_JPEG, who=GROWTH).status_code == 200
    assert totals(client) == {"sign_operations": 50}


def test_an_idempotency_key_counts_an_upload_once(client: FlaskClient) -> None:
    who = {**STARTER, "Idempotency-Key": "upload-1"}
    body = b'{"image": "%s"}' % base64.b64encode(BASELINE_JPEG)
    for _ in range(2):
        response = client.post("/api/sign", data=body, content_type="application/json", headers=who)
        assert response.status_code == 200
    assert post(client, "sign", png(), who=who).status_code == 409
    assert totals(client) == {"sign_operations": 1}


# -- Sites and usage -------------------------------------------------------------------------------


def test_a_site_counts_once_however_it_is_written(client: FlaskClient) -> None:
    for domain in ("shop.example.com", "SHOP.example.com.", "shop.example.com:443"):
        response = client.post("/api/sites", json={"domain": domain}, headers=STARTER)
        assert response.status_code == 200
    assert totals(client) == {"active_sites": 1}


@pytest.mark.parametrize(
    "site",
    [{}, {"domain": ""}, {"domain": 7}, {"domain": "a b"}, {"domain": "a.b", "site_type": "?"}],
)
def test_a_bad_site_is_refused_by_field(client: FlaskClient, site: dict[str, Any]) -> None:
    response = client.post("/api/sites", json=site, headers=STARTER)
    assert response.status_code == 400
    assert set(response.json["fields"]) <= {"domain", "site_type"}
    assert totals(client) == {}


def test_a_site_without_its_domain_is_told_that_it_is_required(client: FlaskClient) -> None:
    response = client.post("/api/sites", json={"site_type": "custom"}, headers=STARTER)
    assert response.json["fields"] == {"domain": "is required"}


def test_each_customer_sees_its_own_plan_and_counts(client: FlaskClient) -> None:
    post(client, "sign", png(), who=GROWTH)
    assert totals(client) == {}
    usage = client.get("/api/usage", headers=GROWTH).json
    assert (usage["customer"], usage["plan"]) == ("cus_demo_growth", "growth")
    included = {row["meter"]: row["included"] for row in usage["usage"]}
    assert included == {
        "verify_operations": "15000",
        "sign_operations": "1000",
        "storage_gb": "50",
        "active_sites": "5",
    }


# -- The page and its headers ----------------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_inline(client: FlaskClient) -> None:
    page = client.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy
    assert "X-XSS-Protection" not in page.headers
    assert not re.search(r"<style|style=|<script(?! src)|\son\w+=|//(?!localhost)", page.text)
    for asset in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text):
        with client.get(asset) as response:
            assert response.status_code == 200


def test_a_hostile_host_name_stays_text(client: FlaskClient) -> None:
    page = client.get("/", headers={"Host": 'x"><script>'})
    assert "<script>" not in page.text


@pytest.mark.parametrize("testing", [True, False])
def test_local_pages_may_call_only_while_testing(tmp_path: Path, testing: bool) -> None:
    settings = {"TESTING": testing, "C2METER_STRIPE_SECRET_KEY": ""}
    client = create_app(settings, instance_path=str(tmp_path)).test_client()
    local = client.get("/api/usage", headers={**STARTER, "Origin": "http://localhost:3000"})
    assert ("Access-Control-Allow-Origin" in local.headers) is testing
    staging = {**STARTER, "Origin": "https://staging.c2concierge.com"}
    response = client.get("/api/usage", headers=staging)
    assert response.headers["Access-Control-Allow-Origin"] == staging["Origin"]


def test_errors_outside_the_api_are_json_too(client: FlaskClient) -> None:
    response = client.get("/api/sign", headers=STARTER)
    assert (response.status_code, list(response.json)) == (405, ["error"])
    assert "POST" in response.headers["Allow"]
    assert client.get("/nowhere").json["error"]


# -- The signing chain -----------------------------------------------------------------------------


def test_all_who_start_together_agree_on_one_chain(tmp_path: Path) -> None:
    path, found = tmp_path / "new" / "signing.pem", set[Credentials]()
    ready = threading.Barrier(8)

    def start() -> None:
        ready.wait()
        found.add(load_or_create(path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["signing.pem"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert found == {load_or_create(path)}


def test_a_damaged_chain_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    path.write_bytes(b"\xff torn")
    with pytest.raises(ValueError, match=r"signing\.pem is damaged: remove it"):
        load_or_create(path)
    assert path.read_bytes() == b"\xff torn"


def test_the_private_key_is_in_no_representation(tmp_path: Path) -> None:
    assert "PRIVATE" not in repr(load_or_create(tmp_path / "signing.pem"))


FORK = """
import os, sys
from pathlib import Path
from example_app.concierge import Concierge, Image
from example_app.credentials import load_or_create

concierge = Concierge(load_or_create(Path(sys.argv[1])))
image = Image(Path(sys.argv[2]).read_bytes(), "image/png", "photo")
signed = Image(concierge.sign(image).data, "image/png", "photo")
if child := os.fork():
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status) or concierge.verify(signed).state != "Trusted")
again = Image(concierge.sign(signed).data, "image/png", "photo")
os._exit(concierge.verify(again).state != "Trusted")
"""


def test_a_forked_worker_signs_as_its_parent_did(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    arguments = [str(tmp_path / "signing.pem"), str(tmp_path / "a.png")]
    subprocess.run([sys.executable, "-c", FORK, *arguments], check=True, timeout=60)


# -- The dashboard ---------------------------------------------------------------------------------


def test_a_customer_logs_in_with_its_key_and_sees_itself_only(client: FlaskClient) -> None:
    post(client, "sign", png())
    assert client.get("/billing/usage").status_code == 401
    answer = client.post("/login", data={"key": "demo-starter-key"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/billing/usage")
    assert client.get("/billing/usage.json").json["customer"] == "cus_demo_starter"
    page = client.get("/billing/usage")
    assert "Starter" in page.text and "Concierge" in page.text
    assert client.get("/billing/usage?customer=cus_demo_growth").status_code == 404
    client.post("/logout")
    assert client.get("/billing/usage").status_code == 401


def test_the_operator_sees_whoever_has_used_something(client: FlaskClient) -> None:
    post(client, "sign", png(), who=GROWTH)
    client.post("/login", data={"key": "demo-operator-key"})
    assert "cus_demo_growth" in client.get("/billing/customers").text
    assert client.get("/billing/usage.json?customer=cus_demo_growth").status_code == 200


@pytest.mark.parametrize("key", ["", "demo", "\u00e9", "demo-starter-key "])
def test_a_wrong_key_opens_nothing(client: FlaskClient, key: str) -> None:
    assert client.post("/login", data={"key": key}).status_code == 401
    assert client.get("/billing/usage").status_code == 401


def test_a_page_elsewhere_cannot_log_anybody_in(client: FlaskClient) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}
    answer = client.post("/login", data={"key": "demo-starter-key"}, headers=headers)
    assert answer.status_code == 403


def test_sessions_outlive_a_restart(tmp_path: Path, client: FlaskClient) -> None:
    client.post("/login", data={"key": "demo-starter-key"})
    cookie = client.get_cookie("session")
    assert cookie is not None and cookie.http_only and cookie.same_site == "Lax"
    settings = {"TESTING": True, "C2METER_STRIPE_SECRET_KEY": ""}
    again = create_app(settings, instance_path=str(tmp_path)).test_client()
    again.set_cookie("session", cookie.value)
    assert again.get("/billing/usage.json").json["customer"] == "cus_demo_starter"
    assert stat.S_IMODE((tmp_path / "session.key").stat().st_mode) == 0o600


def test_nothing_is_made_up_where_stripe_is_real(client: FlaskClient) -> None:
    assert client.post("/api/demo", headers=STARTER).status_code == 409
    assert client.post("/api/demo").status_code == 401
    assert totals(client) == {}


@pytest.mark.parametrize(
    ("settings", "file"),
    [
        ({"C2METER_STRIPE_SECRET_KEY": ""}, "emulator.sqlite"),
        ({"C2METER_STRIPE_SECRET_KEY": "sk_test_1"}, "c2meter.sqlite"),
        (
            {
                "C2METER_STRIPE_SECRET_KEY": "sk_test_1",
                "C2METER_STRIPE_BASE_URL": "http://127.0.0.1:1",
            },
            "emulator.sqlite",
        ),
    ],
)
def test_a_real_account_and_the_emulator_have_ledgers_of_their_own(
    tmp_path: Path, settings: dict[str, Any], file: str
) -> None:
    app = create_app({**settings, "C2METER_WORKER": "off"}, instance_path=str(tmp_path))
    client = app.test_client()
    client.post("/api/sites", json={"domain": "a.example"}, headers=STARTER)
    assert (tmp_path / file).exists()


# -- Served ----------------------------------------------------------------------------------------


def test_every_operation_arrives_at_stripe(tmp_path: Path) -> None:
    with StripeEmulator() as stripe:
        settings = {
            "TESTING": True,
            "C2METER_STRIPE_BASE_URL": stripe.url,
            "C2METER_STRIPE_SECRET_KEY": "sk_test_emulator",
        }
        client = create_app(settings, instance_path=str(tmp_path)).test_client()
        signed = post(client, "sign", png()).data
        post(client, "verify", signed)
        client.post("/api/sites", json={"domain": "a.example"}, headers=STARTER)
        meters = ("sign_operations", "verify_operations", "active_sites")
        assert stripe.wait_for(
            lambda stripe: all(
                stripe.meter_total(name, "cus_demo_starter") == 1 for name in meters
            ),
            timeout=10,
        )


@contextmanager
def served(*command: str) -> Iterator[Callable[[str], str]]:
    """Run a server; yield a function that reads its output up to a pattern's group."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("C2METER_", "STRIPE_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout

    def read_until(pattern: str) -> str:
        seen = ""
        for line in output:
            seen += line
            if match := re.search(pattern, line):
                return match[1]
        raise AssertionError(f"{pattern} is not in the output: {seen}")

    try:
        yield read_until
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0


def ask(url: str, path: str, *, body: Any = None, method: str | None = None) -> dict[str, Any]:
    """What the API answers the starter customer."""
    headers = {**STARTER, "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/api/{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.load(answer))


def sign_over_http(url: str) -> dict[str, Any]:
    return ask(url, "sign", body={"image": base64.b64encode(png()).decode()})


def test_python_m_example_app_starts_it_with_an_emulator(tmp_path: Path) -> None:
    command = ("example_app", "--port", "0", "--instance", str(tmp_path))
    with served(*command) as read_until:
        url = read_until(r"example app +(http://127\.0\.0\.1:\d+)")
        emulator = read_until(r"Stripe +(http://127\.0\.0\.1:\d+)")
        assert read_until(r"(demo-starter-key)") and read_until(r"(demo-growth-key)")
        assert sign_over_http(url)["manifest_id"].startswith("urn:c2pa:")
        with urllib.request.urlopen(emulator, timeout=10) as page:
            assert page.status == 200


def test_a_month_of_traffic_then_each_alert_arrives_everywhere_once(tmp_path: Path) -> None:
    command = ("example_app", "demo", "--port", "0", "--instance", str(tmp_path))
    with served(*command) as read_until:
        assert int(read_until(r"cus_demo_starter: ([\d,]+) events").replace(",", "")) > 1000
        url = read_until(r"example app +(http://127\.0\.0\.1:\d+)")
        rows = {row["meter"]: row for row in ask(url, "usage")["usage"]}
        signs, start = rows["sign_operations"], rows["sign_operations"]["period"]["start"]
        used, plan = int(signs["total"]), int(signs["included"])
        assert 0.6 * plan < used < 0.8 * plan, "there are alerts to look forward to"
        assert ask(url, "demo", method="POST")["recorded"] == 0, "a second time changes nothing"
        assert ask(url, "alerts")["alerts"] == []

        for _ in range(plan + 1 - used):
            sign_over_http(url)

        def arrived() -> dict[str, dict[str, list[dict[str, Any]]]]:
            return {alert["level"]: alert["arrived"] for alert in ask(url, "alerts")["alerts"]}

        wait_until(lambda: [len(places) for places in arrived().values()] == [4, 4, 4])
        found = arrived()
        assert list(found) == ["exceeded", "critical", "warning"]
        for level, places in found.items():
            assert {place: len(came) for place, came in places.items()} == {
                "app": 1,
                "mail": 1,
                "webhook": 1,
                "signal": 1,
            }
            assert places["webhook"][0]["is_signed"]
            assert places["webhook"][0]["payload"]["level"] == level
            assert places["mail"][0]["to"] == "starter@customer.example"
    with served(*command[:1], *command[2:]) as read_until:  # what is known outlives a restart
        url = read_until(r"example app +(http://127\.0\.0\.1:\d+)")
        rows = {row["meter"]: row for row in ask(url, "usage")["usage"]}
        assert int(rows["sign_operations"]["total"]) == plan + 1
        assert rows["sign_operations"]["period"]["start"] == start
        alerts = ask(url, "alerts")["alerts"]
        assert [[len(came) for came in alert["arrived"].values()] for alert in alerts] == [
            [1, 1, 1, 1]
        ] * 3


def test_demo_fills_the_example_that_runs_already(tmp_path: Path) -> None:
    with served("example_app", "--port", "0", "--instance", str(tmp_path)) as read_until:
        url = read_until(r"example app +(http://127\.0\.0\.1:\d+)")
        command = [sys.executable, "-m", "example_app", "demo", "--port", url.rpartition(":")[2]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.findall(r"(\w+): [\d,]+ events", done.stdout) == [
            "cus_demo_starter",
            "cus_demo_growth",
        ]
        assert {row["meter"]: row["total"] for row in ask(url, "usage")["usage"]}[
            "active_sites"
        ] == "1"


def test_four_gunicorn_workers_share_one_chain(tmp_path: Path) -> None:
    factory = f"example_app:create_app(instance_path={str(tmp_path)!r})"
    command = ("gunicorn", "-w", "4", "-b", "127.0.0.1:0", factory)
    with served(*command) as read_until:
        url = read_until(r"Listening at: (http://127\.0\.0\.1:\d+)")
        images = [sign_over_http(url) for _ in range(8)]
    concierge = Concierge(load_or_create(tmp_path / "signing.pem"))
    for image in images:
        signed = Image(base64.b64decode(image["image"]), "image/png", "photo")
        assert concierge.verify(signed).state == "Trusted"
