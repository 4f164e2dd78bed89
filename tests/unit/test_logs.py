"""Log lines: one for each event, whatever the values are."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import flask_c2meter
from flask_c2meter import logs
from flask_c2meter.logs import JsonFormatter, LineFormatter

NAME = "flask_c2meter.test_logs"
HOSTILE = 'x\r\nlevel=ERROR event=forged\x1b[2J\x00\u2028\u0085"quoted"'


@pytest.fixture
def written() -> Iterator[Callable[[logging.Formatter | None], io.StringIO]]:
    """Starts writing what is logged, in a format."""
    logger, handlers = logging.getLogger(NAME), []

    def write(formatter: logging.Formatter | None) -> io.StringIO:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        logger.addHandler(handler)
        handlers.append(handler)
        return stream

    logger.setLevel(logging.DEBUG)
    yield write
    for handler in handlers:
        logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


Written = Callable[[logging.Formatter | None], io.StringIO]


def test_a_line_is_an_event_and_its_values(written: Written) -> None:
    stream = written(None)
    logs.logger(NAME).error(
        "shipment_dead", shipment="01-a", meter="verify", reason="invalid: 7 %d"
    )
    assert stream.getvalue() == (
        'event=shipment_dead shipment=01-a meter=verify reason="invalid: 7 %d"\n'
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain/text.1:2,3", "plain/text.1:2,3"),
        (7, "7"),
        (None, "None"),
        ("", '""'),
        ("a=b", '"a=b"'),
        ("two words", '"two words"'),
        ('say "x"', r'"say \"x\""'),
        ("a\r\nb", r'"a\r\nb"'),
        ("\u2028\u0085\x00", r'"\u2028\u0085\u0000"'),
        (ValueError("no\nway"), r'"no\nway"'),
    ],
)
def test_a_value_is_one_word_or_in_quotes(value: object, shown: str) -> None:
    assert logs.quoted(value) == shown


@pytest.mark.parametrize("formatter", [None, LineFormatter(), JsonFormatter()])
def test_nobody_who_chooses_a_value_writes_a_line(
    written: Written, formatter: logging.Formatter | None
) -> None:
    stream = written(formatter)
    logs.logger(NAME).warning("plan_unknown", plan=HOSTILE)
    assert len(stream.getvalue().splitlines()) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", stream.getvalue())


def test_the_template_is_the_same_each_time(caplog: pytest.LogCaptureFixture) -> None:
    log = logs.logger(NAME)
    for meter in ("verify", "sign"):
        log.error("deliveries_held", meter=meter, reason="401")
    assert {record.msg for record in caplog.records} == {"event=deliveries_held meter=%s reason=%s"}
    record = caplog.records[0]
    assert (record.name, record.filename) == (NAME, "test_logs.py")
    assert record.funcName == "test_the_template_is_the_same_each_time"


class TestFormatters:
    def test_lines_say_when_what_and_who(self, written: Written) -> None:
        stream = written(LineFormatter())
        logs.logger(NAME).info("rate_limit_storage_works")
        logging.getLogger(NAME).warning("somebody else's\n%s", "words")
        first, second = stream.getvalue().splitlines()
        head = rf"time=\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z level=%s logger={NAME} "
        assert re.fullmatch(head % "INFO" + "event=rate_limit_storage_works", first)
        assert re.fullmatch(
            head % "WARNING" + re.escape(r'message="somebody else' + r"'s\nwords" + '"'), second
        )

    def test_json_has_the_values(self, written: Written) -> None:
        stream = written(JsonFormatter())
        logs.logger(NAME).error("shipment_dead", meter="verify", attempts=3)
        logging.getLogger(NAME).warning("somebody else's %s", "words")
        first, second = map(json.loads, stream.getvalue().splitlines())
        assert (first.pop("time")[-1], first) == (
            "Z",
            {
                "level": "ERROR",
                "logger": NAME,
                "event": "shipment_dead",
                "meter": "verify",
                "attempts": 3,
            },
        )
        assert second["message"] == "somebody else's words"

    @pytest.mark.parametrize("formatter", [LineFormatter(), JsonFormatter()])
    def test_a_traceback_stays_on_the_line(
        self, written: Written, formatter: logging.Formatter
    ) -> None:
        stream = written(formatter)
        try:
            raise LookupError("two\nlines")
        except LookupError:
            logs.logger(NAME).exception("duty_failed", duty="drops")
        (line,) = stream.getvalue().splitlines()
        assert "duty_failed" in line
        assert r"LookupError: two\nlines" in line

    def test_a_host_configures_them_by_name(self, written: Written) -> None:
        from logging.config import DictConfigurator  # type: ignore[attr-defined]

        made = DictConfigurator({}).configure_formatter({"()": "flask_c2meter.logs.JsonFormatter"})
        assert isinstance(made, JsonFormatter)


def test_what_is_switched_off_is_not_even_made(written: Written) -> None:
    class Refusing:
        def __str__(self) -> str:
            raise AssertionError("nobody reads it")

    logging.getLogger(NAME).setLevel(logging.ERROR)
    logs.logger(NAME).warning("duty_waits", error=Refusing())


def test_every_module_logs_that_way() -> None:
    folder = Path(flask_c2meter.__file__).parent
    modules = [path for path in folder.rglob("*.py") if path.name != "logs.py"]
    assert len(modules) > 50
    offenders = [
        path.name
        for path in modules
        if re.search(r"^\s*(import|from) logging", path.read_text(), re.M)
    ]
    assert offenders == []
    events = {
        (path.name, event)
        for path in modules
        for event in re.findall(r"logger\.\w+\(\s*(?:f?\"([^\"]*)\")?", path.read_text())
        if path.parent.name != "emulator"
    }
    assert len(events) > 30
    assert [each for each in sorted(events) if not re.fullmatch("[a-z0-9_]+", each[1])] == []
