"""Metered Flask apps to test against: real routes, a real SQLite file, nothing shared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
from flask import Flask
from flask_host import Host, load_customer
from wsgi_rig import App, WsgiHost, answering, customer_of

from flask_c2meter import C2Meter
from flask_c2meter.wsgi import MeterMiddleware, Reply, Terms


@pytest.fixture
def new_app(tmp_path: Path) -> Callable[..., Flask]:
    """Makes apps, not yet metered, each with a folder of its own and no Stripe key."""
    numbers = itertools.count()

    def make(**config: Any) -> Flask:
        app = Flask("host", instance_path=str(tmp_path / f"instance-{next(numbers)}"))
        app.config.update({"C2METER_STRIPE_SECRET_KEY": "", "C2METER_CORS_ORIGINS": [], **config})
        return app

    return make


@pytest.fixture
def new_host(new_app: Callable[..., Flask]) -> Iterator[Callable[..., Host]]:
    """Makes metered apps; closes them after the test."""
    hosts: list[Host] = []

    def make(**config: Any) -> Host:
        app = new_app(**config)
        meter = C2Meter(app)
        meter.customer_loader(load_customer)
        hosts.append(Host(app, meter))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def host(new_host: Callable[..., Host]) -> Host:
    """A metered app with all defaults."""
    return new_host()


@pytest.fixture
def new_wsgi_host(tmp_path: Path) -> Iterator[Callable[..., WsgiHost]]:
    """Makes metered WSGI apps that sign at ``/sign``, without a rate limit; closes them."""
    hosts: list[WsgiHost] = []

    def make(
        app: App | None = None,
        meters: Mapping[str, str | Terms[Reply] | None] | None = None,
        customer: Callable[..., Any] = customer_of,
        hooks: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> WsgiHost:
        middleware = MeterMiddleware(
            validator(app or answering()),
            {"* /sign": Terms("sign_operations", rate_limit=False)} if meters is None else meters,
            customer,
            {"C2METER_STRIPE_SECRET_KEY": "", "C2METER_CORS_ORIGINS": [], **config},
            instance_path=tmp_path / f"wsgi-{len(hosts)}",
            **(hooks or {}),
        )
        hosts.append(WsgiHost(middleware))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def wsgi_host(new_wsgi_host: Callable[..., WsgiHost]) -> WsgiHost:
    """A metered WSGI app with all defaults."""
    return new_wsgi_host()
