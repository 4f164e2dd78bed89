"""A repeated request with the same ``Idempotency-Key`` runs again and counts once."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Response, request, stream_with_context
from flask_host import ALICE, BOB, Host, wait_until
from werkzeug.test import TestResponse

from flask_c2meter import KeyConflict, current_metering, current_usage, metered
from flask_c2meter.testing import FrozenClock


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
def runs() -> list[str]:
    return []


@pytest.fixture
def host(new_host: Callable[..., Host], clock: FrozenClock, runs: list[str]) -> Host:
    host = new_host(C2METER_CLOCK=clock)

    def view() -> dict[str, int]:
        runs.append(request.full_path)
        return {"run": len(runs)}

    methods = ("GET", "POST", "PUT")
    host.route(view, path="/sign", methods=methods)
    host.route(view, path="/sign/other", methods=methods)
    return host


def send(
    host: Host,
    key: str = "key-1",
    path: str = "/sign",
    method: str = "POST",
    customer: dict[str, str] = ALICE,
    **arguments: Any,
) -> TestResponse:
    headers = {"Idempotency-Key": key}
    return host.client(customer).open(path, method=method, headers=headers, **arguments)


def test_a_repeated_request_runs_again_and_counts_once(host: Host) -> None:
    answers = [send(host, json={"image": 1}) for _ in range(3)]
    assert [(answer.status_code, answer.json) for answer in answers] == [
        (200, {"run": 1}),
        (200, {"run": 2}),
        (200, {"run": 3}),
    ]
    assert host.total("sign_operations") == 1
    assert host.event().key == "key-1"
    assert host.rejections == []


def test_without_a_key_each_request_counts(host: Host) -> None:
    for _ in range(3):
        host.client().post("/sign", json={"image": 1})
    assert host.total("sign_operations") == 3


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"json": {"image": 2}}, id="body"),
        pytest.param({"json": {"image": 1}, "query_string": "fast=1"}, id="query"),
        pytest.param({"json": {"image": 1}, "path": "/sign/other"}, id="path"),
        pytest.param({"json": {"image": 1}, "method": "PUT"}, id="method"),
        pytest.param({}, id="no body"),
    ],
)
def test_the_key_of_another_request_is_409_before_the_view_runs(
    host: Host, runs: list[str], other: dict[str, Any]
) -> None:
    send(host, json={"image": 1})

    answer = send(host, **other)

    assert answer.status_code == 409
    assert answer.json == {
        "error": "Idempotency-Key: was already used for something else; use a new key"
    }
    assert len(runs) == len(host.events()) == 1


def test_another_customer_may_use_the_same_key(host: Host) -> None:
    assert send(host, json={"image": 1}).status_code == 200
    assert send(host, json={"image": 2}, customer=BOB).status_code == 200
    assert host.total("sign_operations", "cus_alice") == 1
    assert host.total("sign_operations", "cus_bob") == 1


def test_another_meter_too(host: Host) -> None:
    host.route(lambda: "", "api_calls", "/calls")
    assert send(host, json={}).status_code == send(host, path="/calls", json={}).status_code == 200
    assert len(host.events()) == 2


def test_a_form_sent_again_with_a_new_boundary_is_the_same_request(host: Host) -> None:
    def upload(content: bytes, boundary: str) -> int:
        body = (
            f"--{boundary}\r\n"
            'Content-Disposition: form-data; name="image"; filename="a.png"\r\n'
            "Content-Type: image/png\r\n\r\n"
        ).encode() + content
        body += f"\r\n--{boundary}--\r\n".encode()
        content_type = f"multipart/form-data; boundary={boundary}"
        return send(host, data=body, content_type=content_type).status_code

    assert [upload(b"one", "first"), upload(b"one", "second")] == [200, 200]
    assert upload(b"two", "third") == 409
    assert host.total("sign_operations") == 1


def test_a_form_that_a_login_has_parsed_already_is_told_from_another(host: Host) -> None:
    host.app.before_request(lambda: request.form.get("csrf_token") and None)

    def upload(content: bytes, name: str = "a.png", **fields: str) -> int:
        data = {"image": (io.BytesIO(content), name), **fields}
        return send(host, data=data, content_type="multipart/form-data").status_code

    assert [upload(b"one", note="x"), upload(b"one", note="x")] == [200, 200]
    assert upload(b"two", note="x") == upload(b"one", note="y") == upload(b"one", "b.png") == 409
    assert host.total("sign_operations") == 1


@pytest.mark.parametrize("how", ["stream", "data", "json", "form", "files", "input_stream"])
def test_the_view_still_reads_its_body_in_any_way(host: Host, how: str) -> None:
    def view() -> str:
        match how:
            case "stream":
                return str(len(request.stream.read()))
            case "input_stream":
                return str(len(request.get_data(cache=False, parse_form_data=False)))
            case "data":
                return str(len(request.data))
            case "json":
                return str(len(request.get_json()["a"]))
            case "form":
                return str(len(request.form["a"]))
            case _:
                return str(len(request.files["a"].read()))

    host.route(view, path="/read")
    for _ in range(2):
        sent: dict[str, Any] = {
            "json": {"json": {"a": "x" * 5000}},
            "form": {"data": {"a": "x" * 5000}},
            "files": {"data": {"a": (io.BytesIO(b"x" * 5000), "a.png")}},
        }.get(how, {"data": b"x" * 5000})
        assert send(host, path="/read", **sent).text == "5000"


def test_after_24_hours_the_key_begins_anew(host: Host, clock: FrozenClock) -> None:
    send(host, json={"image": 1})
    clock.advance(timedelta(hours=23, minutes=59))
    assert send(host, json={"image": 2}).status_code == 409
    send(host, json={"image": 1})
    assert host.total("sign_operations") == 1

    clock.advance(timedelta(minutes=1))
    for _ in range(2):
        assert send(host, json={"image": 2}).status_code == 200
    assert host.total("sign_operations") == 2
    assert send(host, json={"image": 1}).status_code == 409

    clock.advance(timedelta(hours=24))
    for _ in range(2):
        assert send(host, json={"image": 3}).status_code == 200
    assert host.total("sign_operations") == 3


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("adjust:key-1", "must not begin with adjust:"),
        ("again:1:key-1", "must not begin with adjust:"),
        ("nested:2:key-1", "must not begin with adjust:"),
        ("k" * 300, "must have at most 255 bytes, has 300"),
        ("ü" * 128, "must have at most 255 bytes, has 256"),
        ("", "must not be empty"),
        ("a\x00b", "must not contain control characters"),
        ("a\x7fb", "must not contain control characters"),
        ("a\x85b", "must not contain control characters"),
    ],
)
def test_a_key_that_cannot_be_kept_is_400(
    host: Host, runs: list[str], key: str, problem: str
) -> None:
    answer = send(host, key, json={})
    assert answer.status_code == 400
    assert answer.json["error"] == "Invalid request"
    assert answer.json["fields"]["Idempotency-Key"].startswith(problem)
    assert runs == host.events() == []


def test_a_key_of_255_bytes_is_kept(host: Host, clock: FrozenClock) -> None:
    for _ in range(2):
        assert send(host, "k" * 255, json={}).status_code == 200
        clock.advance(timedelta(hours=25))
    assert host.total("sign_operations") == 2


def test_whatever_key_an_event_has_it_can_be_adjusted(host: Host, clock: FrozenClock) -> None:
    def view() -> Response:
        def speak() -> Iterator[str]:
            current_usage.value += 1
            yield "."

        current_usage.value = 0
        return Response(stream_with_context(speak()))

    inner = metered("sign_operations", rate_limit=False, properties={"manifest_id": "m-1"})
    host.route(inner(view), path="/twice")
    key = "k" * 255
    for _ in range(2):
        assert send(host, key, "/twice").status_code == 200
        clock.advance(timedelta(hours=25))
    keys = [event.key for event in host.events()]
    assert {each.split(key)[0].split(":")[0] for each in keys} == {"", "again", "nested", "part"}
    assert max(map(len, keys)) > 255 + len("part:1:again:nested:2:")
    for each in keys:
        host.metering.adjust("cus_alice", "sign_operations", each, "a mistake")
    assert host.total("sign_operations") == 0
    assert list(host.metering.store.verify()) == []


def test_a_failed_request_leaves_its_key_free(host: Host) -> None:
    succeeds = [False, True]

    def view() -> tuple[str, int]:
        return "", 200 if succeeds.pop(0) else 500

    host.route(view, path="/fragile")
    assert send(host, path="/fragile", json={}).status_code == 500
    assert host.events() == []
    assert send(host, path="/fragile", json={}).status_code == 200
    assert host.total("sign_operations") == 1


def test_the_key_may_come_from_elsewhere(host: Host) -> None:
    host.route(
        lambda: "", path="/job", idempotency_key=lambda: request.get_json(silent=True)["job"]
    )
    for _ in range(2):
        assert send(host, "ignored", "/job", json={"job": "job-7"}).status_code == 200
    assert host.event().key == "job-7"


@pytest.mark.parametrize(("key", "status"), [(None, 200), ("adjust:x", 400), (7, 400)])
def test_a_callables_key_is_checked_like_any(host: Host, key: Any, status: int) -> None:
    host.route(lambda: "", path="/job", idempotency_key=lambda: key)
    assert host.client().post("/job").status_code == status


def test_50_requests_at_once_with_one_key_count_once(host: Host) -> None:
    start = threading.Barrier(50)

    def view() -> str:
        start.wait(30)
        return ""

    host.route(view, path="/slow")
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: send(host, path="/slow", json={}), range(50)))

    assert {answer.status_code for answer in answers} == {200}
    assert host.total("sign_operations") == 1


def test_of_two_different_requests_at_once_with_one_key_the_slower_is_409(host: Host) -> None:
    start = threading.Barrier(2)

    def view() -> str:
        start.wait(30)
        return ""

    host.route(view, path="/slow")
    with ThreadPoolExecutor(2) as pool:
        answers = list(
            pool.map(lambda number: send(host, path="/slow", json={"n": number}), range(2))
        )

    assert sorted(answer.status_code for answer in answers) == [200, 409]
    assert host.total("sign_operations") == 1
    assert host.rejections == ["conflict"]


class TestRecord:
    """``current_metering.record(key=)`` has the same keys."""

    def test_a_known_key_returns_none_and_counts_once(self, host: Host) -> None:
        with host.app.app_context():
            events = [
                current_metering.record("sign_operations", "cus_1", key="k", manifest_id="m-1")
                for _ in range(2)
            ]
        assert events[0] is not None
        assert events[0].key == "k"
        assert events[1] is None
        assert host.total("sign_operations", "cus_1") == 1

    @pytest.mark.parametrize("change", [{"manifest_id": "m-2"}, {"value": 2}])
    def test_a_known_key_for_something_else_is_a_conflict(
        self, host: Host, change: dict[str, Any]
    ) -> None:
        with host.app.app_context():
            current_metering.record("sign_operations", "cus_1", key="k", manifest_id="m-1")
            with pytest.raises(KeyConflict, match="use a new key"):
                current_metering.record(
                    "sign_operations", "cus_1", key="k", **{"manifest_id": "m-1", **change}
                )
        assert len(host.events()) == 1

    def test_within_a_request_the_key_of_the_request_is_not_used(self, host: Host) -> None:
        def view() -> str:
            current_metering.record("api_calls", current_usage.customer)
            return ""

        host.route(view, path="/twice")
        send(host, path="/twice")
        assert {event.key == "key-1" for event in host.events("api_calls")} == {False}


def test_while_the_store_is_out_of_order_a_key_is_spilled_and_counts_once_later(
    host: Host,
) -> None:
    assert send(host, "key-0").status_code == 200
    file = Path(host.metering.config.database_url.removeprefix("sqlite:///"))
    away = file.rename(file.with_suffix(".away"))
    assert [send(host, "key-1").status_code for _ in range(2)] == [200, 200]
    away.rename(file)

    def keys() -> list[str]:
        send(host, "key-2")  # whatever is recorded next takes the spilled events back
        return [event.key for event in host.metering.store.events()]

    wait_until(lambda: sorted(keys()) == ["key-0", "key-1", "key-2"])
