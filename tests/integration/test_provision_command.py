"""``flask c2meter provision``: what it prints, asks and exits with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from flask_host import Host
from provision_rig import CATALOGUE, Shop, catalogue

from flask_c2meter.emulator import StripeEmulator

NewHost = Callable[..., Host]


@pytest.fixture
def run(new_host: NewHost, stripe_emulator: StripeEmulator) -> Callable[..., Result]:
    """Runs the command for a catalogue."""

    def invoke(
        *arguments: str,
        content: dict[str, Any] = CATALOGUE,
        key: str = "sk_test_1",
        answer: str | None = None,
        color: bool = False,
    ) -> Result:
        host = new_host(
            C2METER_STRIPE_SECRET_KEY=key,
            C2METER_STRIPE_BASE_URL=stripe_emulator.url,
            C2METER_WORKER="off",
            C2METER_CATALOGUE=content,
        )
        runner = host.app.test_cli_runner()
        return runner.invoke(args=["c2meter", "provision", *arguments], input=answer, color=color)

    return invoke


def test_a_plan_is_printed_and_nothing_done(
    run: Callable[..., Result], stripe_emulator: StripeEmulator
) -> None:
    result = run()
    assert result.exit_code == 2
    lines = result.output.splitlines()
    assert lines[0] == "Stripe: 127.0.0.1 test"
    assert "+ create        product  c2meter_verify   Verify" in lines
    assert "+ create        meter    verify           sum of value" in lines
    first = "20 verify free, up to 70 verify $0.0435 each, then $0.025 each and $1.00 at once"
    assert f"+ create        price    starter_verify   {first}" in lines
    assert "+ create        price    growth_verify    free, without limit" in lines
    assert "+ create        price    growth_storage   10 GB free, then $0.125 each" in lines
    assert "  sites: no price; Stripe counts it and bills nothing" in lines
    assert lines[-1] == "Plan: 10 to create."
    assert not any(request.method == "POST" for request in stripe_emulator.requests)


def test_apply_says_what_it_did_and_then_there_is_nothing_to_do(
    run: Callable[..., Result], stripe_emulator: StripeEmulator
) -> None:
    result = run("--apply")
    assert result.exit_code == 0
    (meter,) = (m for m in Shop(stripe_emulator).meters() if m["event_name"] == "verify")
    lines = result.output.splitlines()
    assert f"created     meter    verify ({meter['id']})" in lines
    assert lines[-1] == "Done: Stripe bills by the catalogue."

    for arguments in ((), ("--apply",)):
        again = run(*arguments)
        assert again.exit_code == 0
        assert again.output.splitlines()[-2:] == [
            "Plan: 10 to keep.",
            "Nothing to do: Stripe bills by the catalogue.",
        ]


def test_a_changed_catalogue_shows_every_sign(run: Callable[..., Result]) -> None:
    run("--apply")
    content = catalogue()
    content["meters"]["verify"]["display_name"] = "Checks"
    content["meters"]["storage"]["price"]["unit_amount"] = "13"
    del content["meters"]["sites"]
    result = run(content=content)
    assert result.exit_code == 2
    lines = result.output.splitlines()
    assert "~ rename        meter    verify           'Verify' -> 'Checks'" in lines
    assert "- deactivate    meter    sites            Sites" in lines
    said = "    subscriptions keep a deactivated price until they are moved to another"
    assert lines.count(said) == 1, "once for them all"
    assert lines[-1] == "Plan: 2 to create, 2 to rename, 4 to deactivate, 4 to keep."


def test_what_cannot_be_changed_is_named_with_its_cure(
    run: Callable[..., Result], stripe_emulator: StripeEmulator
) -> None:
    id = stripe_emulator.add_price("x", lookup_key="starter_verify", unit_amount_decimal="1")
    for arguments in ((), ("--apply",)):
        result = run(*arguments)
        assert result.exit_code == 1
        lines = result.output.splitlines()
        place = lines.index(
            "! cannot change price    starter_verify   its lookup key belongs to "
            f"{id}, not made by provision for this catalogue"
        )
        assert lines[place + 1] == f"    give {id} another lookup key, or none"
        assert lines[-1] == "Nothing is changed while something cannot be."
    assert not any(request.method == "POST" for request in stripe_emulator.requests)


class TestJson:
    def test_a_plan(self, run: Callable[..., Result]) -> None:
        result = run("--json")
        assert result.exit_code == 2
        document = json.loads(result.output)
        assert (document["version"], document["account"]) == (1, "127.0.0.1 test")
        assert document["applied"] is False
        assert document["summary"] == {
            "create": 10,
            "keep": 0,
            "rename": 0,
            "reactivate": 0,
            "deactivate": 0,
            "cannot_change": 0,
        }
        (price,) = (s for s in document["steps"] if s["name"] == "growth_verify")
        assert (price["action"], price["kind"], price["id"]) == ("create", "price", None)
        assert price["params"]["tiers"] == [{"up_to": "inf", "unit_amount_decimal": "0"}]

    def test_what_was_done(
        self, run: Callable[..., Result], stripe_emulator: StripeEmulator
    ) -> None:
        result = run("--apply", "--json")
        assert result.exit_code == 0
        document = json.loads(result.output)
        assert document["applied"] is True
        assert document["summary"]["create"] == 10
        ids = {s["name"]: s["id"] for s in document["steps"] if s["kind"] == "price"}
        assert ids == {p["lookup_key"]: p["id"] for p in Shop(stripe_emulator).prices()}

    def test_nothing_to_do_is_not_applied(self, run: Callable[..., Result]) -> None:
        run("--apply")
        result = run("--apply", "--json")
        assert result.exit_code == 0
        document = json.loads(result.output)
        assert document["summary"]["keep"] == 10

    def test_what_cannot_be_changed(
        self, run: Callable[..., Result], stripe_emulator: StripeEmulator
    ) -> None:
        stripe_emulator.add_price("x", lookup_key="starter_verify", unit_amount_decimal="1")
        result = run("--apply", "--json")
        assert result.exit_code == 1
        document = json.loads(result.output)
        assert (document["applied"], document["summary"]["cannot_change"]) == (False, 1)


class TestLiveMode:
    def test_without_a_person_it_takes_a_yes(
        self, run: Callable[..., Result], stripe_emulator: StripeEmulator
    ) -> None:
        result = run("--apply", key="sk_live_1")
        assert result.exit_code == 1
        assert "LIVE MODE" in result.output
        assert result.output.splitlines()[-1] == (
            "Error: nobody to ask: add --yes to apply in live mode"
        )
        assert not any(request.method == "POST" for request in stripe_emulator.requests)

        assert run("--apply", "--yes", key="sk_live_1").exit_code == 0
        assert run(key="sk_live_1").exit_code == 0

    def test_a_plan_needs_none(self, run: Callable[..., Result]) -> None:
        result = run(key="sk_live_1")
        assert (result.exit_code, "127.0.0.1 live" in result.output) == (2, True)


def test_color_is_for_terminals(run: Callable[..., Result]) -> None:
    assert "\x1b[32m+ create" in run(color=True).output
    assert "\x1b" not in run().output


class TestTrouble:
    def test_no_key(self, run: Callable[..., Result]) -> None:
        result = run("--apply", key="")
        assert result.exit_code == 1
        assert result.output.startswith("Error: no Stripe key: set C2METER_STRIPE_SECRET_KEY")
        assert len(result.output.splitlines()) == 1

    def test_a_key_that_is_not_accepted(
        self, run: Callable[..., Result], stripe_emulator: StripeEmulator
    ) -> None:
        stripe_emulator.accept_keys(["sk_test_other"])
        result = run()
        assert result.exit_code == 1
        assert result.output == "Stripe could not be read: 401 api_key_invalid\n"

    def test_no_stripe(self, run: Callable[..., Result], stripe_emulator: StripeEmulator) -> None:
        stripe_emulator.stop()
        result = run("--apply")
        assert result.exit_code == 1
        assert result.output == "Stripe could not be read: no_connection\n"

    def test_a_refusal_in_the_middle(
        self, run: Callable[..., Result], stripe_emulator: StripeEmulator
    ) -> None:
        stripe_emulator.fail(
            403, times=None, path="/v1/prices", match=lambda request: request.method == "POST"
        )
        result = run("--apply")
        assert result.exit_code == 1
        assert result.output.splitlines()[-1] == (
            "price starter_verify could not be changed: 403 invalid_request_error; "
            "2 of 10 changes are made; run it again to go on"
        )
        stripe_emulator.recover()
        assert run("--apply").exit_code == 0


def test_help_explains_signs_and_exit_codes(run: Callable[..., Result]) -> None:
    output = run("--help").output
    for words in ("--apply", "--yes", "--json", "Exit codes: 0", "what Stripe cannot change (!)"):
        assert words in " ".join(output.split())
