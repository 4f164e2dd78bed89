"""Security and CORS headers: plain values in, plain values out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from werkzeug.datastructures import Headers

from flask_c2meter.errors import ConfigError
from flask_c2meter.headers import STANDARD, HeaderPolicy, RequestFacts

APP = "https://app.example.com"
HTTPS = RequestFacts("GET", is_https=True)
HTTP = RequestFacts("GET", is_https=False)


def policy(
    security: str | Mapping[str, str] = "standard", origins: tuple[str, ...] = (APP,)
) -> HeaderPolicy:
    return HeaderPolicy.from_config(security, origins)


def get_from(origin: str | None) -> RequestFacts:
    return RequestFacts("GET", is_https=True, origin=origin)


def preflight_from(origin: str | None) -> RequestFacts:
    return RequestFacts("OPTIONS", is_https=True, origin=origin, requested_method="POST")


def cors(pairs: list[tuple[str, str]]) -> dict[str, str]:
    return {name: value for name, value in pairs if name.startswith("Access-Control-")}


class TestSecurity:
    def test_standard_is_the_documents_six_headers_to_the_letter(self) -> None:
        assert dict(policy(origins=()).additions(HTTPS, [])) == {
            "Strict-Transport-Security": "max-age=31536000; includeSubDomains; preload",
            "X-Frame-Options": "DENY",
            "X-Content-Type-Options": "nosniff",
            "X-XSS-Protection": "1; mode=block",
            "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
            "https://cdn.jsdelivr.net https://cdnjs.cloudflare.com; style-src 'self' "
            "'unsafe-inline' https://cdn.jsdelivr.net https://cdnjs.cloudflare.com; img-src 'self' "
            "data: https:; connect-src 'self' https://api.stripe.com https://api.c2concierge.com "
            "wss://api.c2concierge.com",
            "Referrer-Policy": "strict-origin-when-cross-origin",
            "Vary": "Origin",
        }

    def test_strict_has_nothing_unsafe_or_out_of_date(self) -> None:
        headers = dict(policy("strict").additions(HTTPS, []))
        assert "unsafe" not in headers["Content-Security-Policy"]
        for directive in ("object-src 'none'", "base-uri 'none'", "frame-ancestors 'none'"):
            assert directive in headers["Content-Security-Policy"]
        assert "preload" not in headers["Strict-Transport-Security"]
        assert "X-XSS-Protection" not in headers

    @pytest.mark.parametrize(
        "security", ["standard", "strict", {"strict-transport-security": "max-age=60"}]
    )
    def test_hsts_is_sent_on_https_only(self, security: str | Mapping[str, str]) -> None:
        def has_hsts(facts: RequestFacts) -> bool:
            names = [name.lower() for name, _ in policy(security).additions(facts, [])]
            return "strict-transport-security" in names

        assert has_hsts(HTTPS)
        assert not has_hsts(HTTP)

    def test_a_mapping_is_sent_as_it_is(self) -> None:
        own = policy({"X-Frame-Options": "SAMEORIGIN"}, origins=())
        assert own.additions(HTTP, []) == [("X-Frame-Options", "SAMEORIGIN"), ("Vary", "Origin")]

    def test_off_adds_nothing(self) -> None:
        off = policy("off", origins=())
        assert off.is_off
        assert off.additions(get_from(APP), [("Content-Type", "text/html")]) == []

    def test_off_still_allows_cors(self) -> None:
        added = dict(policy("off").additions(get_from(APP), []))
        assert added["Access-Control-Allow-Origin"] == APP
        assert not STANDARD.keys() & added.keys()

    @pytest.mark.parametrize(
        ("security", "named"),
        [
            ("lax", "'lax'"),
            (None, "None"),
            ({"X-A": "1\r\nSet-Cookie: x=1"}, "'X-A'"),
            ({"X-A": "a\x00b"}, "'X-A'"),
            ({"X-A": "a\nb"}, "'X-A'"),
            ({"X-A": ""}, "'X-A'"),
            ({"X-A": "\u2028"}, "'X-A'"),
            ({"X-A": 1}, "'X-A'"),
            ({"X A": "1"}, "'X A'"),
            ({"": "1"}, "''"),
            ({"Access-Control-Allow-Origin": "*"}, "C2METER_CORS_ORIGINS"),
            ({"vary": "Cookie"}, "C2METER_CORS_ORIGINS"),
        ],
    )
    def test_a_bad_policy_is_refused_with_its_key(
        self, security: str | Mapping[str, str], named: str
    ) -> None:
        with pytest.raises(ConfigError, match="C2METER_SECURITY_HEADERS") as caught:
            policy(security)
        assert named in str(caught.value)


class TestCors:
    def test_a_listed_origin_may_read_with_credentials(self) -> None:
        assert cors(policy().additions(get_from(APP), [])) == {
            "Access-Control-Allow-Origin": APP,
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Expose-Headers": (
                "Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset"
            ),
        }

    @pytest.mark.parametrize("make", [get_from, preflight_from])
    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "null",
            "*",
            "",
            "https://app.example.com.evil.example",
            "https://evil-app.example.com",
            "https://sub.app.example.com",
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com/",
            "https://APP.example.com",
            "https://app.example.com https://evil.example",
        ],
    )
    def test_any_other_origin_gets_no_cors_header_and_vary(
        self, make: Callable[[str], RequestFacts], origin: str
    ) -> None:
        added = policy().additions(make(origin), [])
        assert cors(added) == {}
        assert ("Vary", "Origin") in added
        assert not policy().answers(make(origin))

    def test_a_preflight_is_answered_with_the_documents_lists(self) -> None:
        assert policy().answers(preflight_from(APP))
        assert cors(policy().additions(preflight_from(APP), [])) == {
            "Access-Control-Allow-Origin": APP,
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": (
                "Content-Type, Authorization, X-Requested-With, Idempotency-Key"
            ),
            "Access-Control-Max-Age": "86400",
        }

    @pytest.mark.parametrize(
        "facts",
        [
            RequestFacts("OPTIONS", is_https=True),
            RequestFacts("OPTIONS", is_https=True, origin=APP),
            RequestFacts("OPTIONS", is_https=True, requested_method="POST"),
            RequestFacts("POST", is_https=True, origin=APP, requested_method="POST"),
        ],
    )
    def test_other_options_requests_belong_to_the_host(self, facts: RequestFacts) -> None:
        assert not facts.is_preflight
        assert not policy().answers(facts)

    @pytest.mark.parametrize(
        ("written", "sent"),
        [
            ("HTTPS://App.Example.COM", APP),
            ("https://app.example.com:443", APP),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("capacitor://localhost", "capacitor://localhost"),
        ],
    )
    def test_origins_are_compared_as_browsers_send_them(self, written: str, sent: str) -> None:
        added = policy(origins=(written, sent)).additions(get_from(sent), [])
        assert added.count(("Access-Control-Allow-Origin", sent)) == 1

    @pytest.mark.parametrize(
        ("origin", "cure"),
        [
            ("*", "list each origin"),
            ("null", "remove it"),
            ("https://app.example.com/", "write 'https://app.example.com'"),
            ("https://app.example.com/path", "without path"),
            ("https://user@app.example.com", "without path"),
            ("app.example.com", "write scheme://host"),
            ("https://bücher.example", "xn--"),
            ("https://app.example.com\r\nX: 1", "write scheme://host"),
            (None, "write scheme://host"),
        ],
    )
    def test_a_bad_origin_is_refused_with_its_cure(self, origin: str, cure: str) -> None:
        with pytest.raises(ConfigError, match="C2METER_CORS_ORIGINS") as caught:
            policy(origins=(origin,))
        assert repr(origin) in str(caught.value)
        assert cure in str(caught.value)


class TestMerging:
    def test_what_a_view_has_set_stays_whatever_its_spelling(self) -> None:
        existing = [("x-frame-options", "SAMEORIGIN"), ("CONTENT-SECURITY-POLICY", "x")]
        added = {name.lower() for name, _ in policy().additions(HTTPS, existing)}
        assert not added & {"x-frame-options", "content-security-policy"}
        assert "x-content-type-options" in added

    def test_a_view_that_decides_on_cors_decides_on_all_of_it(self) -> None:
        existing = [("access-control-allow-origin", "*")]
        assert cors(policy().additions(get_from(APP), existing)) == {}

    @pytest.mark.parametrize(
        ("vary", "merged"),
        [
            ([], ("Vary", "Origin")),
            ([("Vary", "Accept")], ("Vary", "Accept, Origin")),
            ([("vary", "Accept"), ("Vary", "Cookie")], ("vary", "Accept, Cookie, Origin")),
            ([("Vary", "")], ("Vary", "Origin")),
            ([("Vary", "accept , ORIGIN")], None),
            ([("Vary", "*")], None),
        ],
    )
    def test_vary_keeps_what_is_there(
        self, vary: list[tuple[str, str]], merged: tuple[str, str] | None
    ) -> None:
        added = [pair for pair in policy().additions(HTTPS, vary) if pair[0].lower() == "vary"]
        assert added == ([] if merged is None else [merged])

    @pytest.mark.parametrize("kind", [dict, Headers, list, iter])
    def test_any_kind_of_header_collection_will_do(self, kind: Callable[..., Any]) -> None:
        existing = kind([("x-frame-options", "SAMEORIGIN"), ("vary", "Accept")])
        added = policy(origins=()).additions(HTTP, existing)
        assert ("vary", "Accept, Origin") in added
        assert "X-Frame-Options" not in dict(added)

    @pytest.mark.parametrize("kind", [dict, Headers])
    def test_additions_are_set_by_assignment_and_nothing_follows(
        self, kind: Callable[..., Any]
    ) -> None:
        headers = kind([("vary", "Accept"), ("X-Frame-Options", "SAMEORIGIN")])
        for name, value in policy().additions(get_from(APP), headers):
            headers[name] = value
        names = [name.lower() for name, _ in headers.items()]
        assert len(names) == len(set(names))
        assert headers["X-Frame-Options"] == "SAMEORIGIN"
        assert policy().additions(get_from(APP), headers) == []

    def test_the_existing_headers_are_left_as_they_are(self) -> None:
        existing = {"vary": "Accept"}
        policy().additions(get_from(APP), existing)
        assert existing == {"vary": "Accept"}
