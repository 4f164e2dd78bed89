"""Whether a webhook is from Stripe and of now; forged, altered, old ones are refused (case 30)."""

from __future__ import annotations

import hmac
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_c2meter.stripe_signature import TOLERANCE, BadSignature, check

SECRET, OLD_SECRET = "whsec_new", "whsec_old"
BODY = b'{"id": "evt_1", "caf\xc3\xa9": 1}\r\n'
NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def hexdigest(sent: datetime = NOW, body: bytes = BODY, secret: str = SECRET) -> str:
    signed = f"{int(sent.timestamp())}.".encode() + body
    return hmac.new(secret.encode(), signed, sha256).hexdigest()


def header(sent: datetime = NOW, body: bytes = BODY, secret: str = SECRET) -> str:
    return f"t={int(sent.timestamp())},v1={hexdigest(sent, body, secret)}"


def refused(header: str, body: bytes = BODY, *secrets: str, now: datetime = NOW) -> str:
    """Why it is refused; it must be."""
    with pytest.raises(BadSignature) as caught:
        check(header, body, secrets or (SECRET,), now)
    return str(caught.value)


def test_what_stripe_has_signed_is_right() -> None:
    check(header(), BODY, [SECRET], NOW)


def test_it_is_what_the_real_sdk_signs() -> None:
    from stripe import WebhookSignature

    text = BODY.decode()
    signed = WebhookSignature.generate_signature_header(text, SECRET, int(NOW.timestamp()))
    check(signed, BODY, [SECRET], NOW)


@given(st.binary(max_size=200))
def test_the_raw_bytes_count_whatever_they_are(body: bytes) -> None:
    check(header(body=body), body, [SECRET], NOW)
    refused(header(body=body), body + b" ")


@given(place=st.integers(0, len(BODY) - 1), bit=st.integers(0, 7))
def test_case_30_one_altered_bit_is_refused(place: int, bit: int) -> None:
    altered = bytearray(BODY)
    altered[place] ^= 1 << bit
    assert refused(header(), bytes(altered)) == "no signature is right"


@pytest.mark.parametrize("secret", ["whsec_other", "", "whsec_new ", SECRET.upper()])
def test_case_30_who_does_not_know_the_secret_is_refused(secret: str) -> None:
    assert refused(header(secret=secret)) == "no signature is right"


def test_case_30_the_time_is_signed_too() -> None:
    later = f"t={int((NOW + SECOND).timestamp())},v1={hexdigest()}"
    assert refused(later) == "no signature is right"


@pytest.mark.parametrize("way", [1, -1])
def test_case_30_it_must_be_of_now_within_300_seconds_both_ways(way: int) -> None:
    assert timedelta(seconds=300) == TOLERANCE
    check(header(NOW + way * TOLERANCE), BODY, [SECRET], NOW)
    beyond = header(NOW + way * (TOLERANCE + SECOND))
    assert refused(beyond) == "the time is too far from now"


def test_without_a_secret_nothing_is_right() -> None:
    with pytest.raises(BadSignature):
        check(header(secret=""), BODY, [], NOW)


# -- several of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
def test_while_a_secret_is_rolled_either_is_good(secret: str) -> None:
    check(header(secret=secret), BODY, [SECRET, OLD_SECRET], NOW)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_of_several_signatures_one_must_be_right(place: int) -> None:
    signatures = ["0" * 64, "f" * 64]
    signatures.insert(place, hexdigest())
    many = ",".join([f"t={int(NOW.timestamp())}", *(f"v1={each}" for each in signatures)])
    check(many, BODY, [SECRET], NOW)
    assert refused(many, BODY, OLD_SECRET) == "no signature is right"


def test_only_so_many_signatures_are_looked_at() -> None:
    flood = [f"t={int(NOW.timestamp())}", *["v1=0"] * 10_000, f"v1={hexdigest()}"]
    assert refused(",".join(flood)) == "no signature is right"


@pytest.mark.parametrize("scheme", ["v0", "v2", "V1", "v1x", ""])
def test_only_the_scheme_v1_counts(scheme: str) -> None:
    other = header().replace("v1=", f"{scheme}=")
    assert refused(other) == "there is no signature of the scheme v1"
    check(f"{header()},{scheme}={'0' * 64}", BODY, [SECRET], NOW)


# -- headers that are none -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "time",
    [
        "",
        "t",
        "t=",
        "t=-1",
        "t=+1",
        "t=1e9",
        "t=1.5",
        "t=0x10",
        "t= 17",
        "t=١٢٣",
        "T=17",
        "t=" + "9" * 13,
    ],
)
def test_a_header_needs_a_time(time: str) -> None:
    assert refused(f"{time},v1={hexdigest()}") == "the signature has no time"


def test_two_times_are_none() -> None:
    assert refused(f"t=1,{header()}") == "the signature has no time"
    assert refused(f"{header()},t={int(NOW.timestamp())}") == "the signature has no time"


def test_a_time_beyond_the_calendar_is_refused() -> None:
    digest = hmac.new(SECRET.encode(), b"999999999999." + BODY, sha256).hexdigest()
    assert refused(f"t=999999999999,v1={digest}") == "the time is beyond the calendar"


@pytest.mark.parametrize(
    "signature", ["", "v1", "v1=", "v1=é", "v1=" + "\ud800", "v1=" + hexdigest()[:-1]]
)
def test_what_is_no_signature_is_refused(signature: str) -> None:
    refused(f"t={int(NOW.timestamp())},{signature}")


@given(st.text(max_size=200))
def test_no_header_is_too_strange_to_be_refused(text: str) -> None:
    refused(text)


def test_spaces_between_the_parts_do_not_matter() -> None:
    check(header().replace(",", " , "), BODY, [SECRET], NOW)


# -- what an attacker could measure ----------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_signature_is_compared_with_every_secret_in_constant_time(place: int) -> None:
    """However early one is right, and however little the others resemble it."""
    signatures = ["0" * 64, "short"]
    signatures.insert(place, hexdigest())
    many = ",".join([f"t={int(NOW.timestamp())}", *(f"v1={each}" for each in signatures)])
    calls = []
    sys.setprofile(lambda frame, event, called: calls.append((event, called)))
    try:
        check(many, BODY, [SECRET, OLD_SECRET], NOW)
    finally:
        sys.setprofile(None)
    assert calls.count(("c_call", hmac.compare_digest)) == 6


def test_the_reason_names_neither_the_secret_nor_the_right_signature() -> None:
    for bad in (header(secret="wrong"), "", "t=1,v1=0", header(NOW - 2 * TOLERANCE)):
        reason = refused(bad)
        assert SECRET not in reason and hexdigest() not in reason
