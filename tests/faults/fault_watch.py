"""What no log may show, and whoever looks at all that is logged."""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy.engine  # noqa: F401  (so that its loggers are there)

from flask_c2meter import Customer

#: In every secret and address, whatever its form; the product has a canary of its own.
CANARY = "FALCON"
STRIPE_KEY = f"sk_test_{CANARY}0stripe0key"
STRIPE_SECRET = f"whsec_{CANARY}0stripe0hook"
HOOK_SECRET = f"whsec_{CANARY * 5}00"
MAIL_USER, MAIL_PASSWORD = f"{CANARY}-mail-user", f"{CANARY}-mail-password"
ANN = Customer("cus_ann", "ann", "starter", f"{CANARY}.ann@customer.example")

#: What nobody may see: the above, and the same encoded.
NEEDLES = (
    CANARY.lower(),
    *(
        b64encode(text.encode()).decode().rstrip("=").lower()
        for text in (
            STRIPE_KEY,
            f"{STRIPE_KEY}:",
            MAIL_USER,
            MAIL_PASSWORD,
            f"\0{MAIL_USER}\0{MAIL_PASSWORD}",
            str(ANN.email),
        )
    ),
)
#: Our own far end, which may say whom a mail is for.
FAR_ENDS = ("mail.log",)


class Watch(logging.Handler):
    """Hears every logger of the process at DEBUG, and what a test has seen by itself."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(threadName)s %(message)s"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name not in FAR_ENDS:
            self.lines += [self.format(record), repr(record.args)]

    def see(self, text: str) -> str:
        """Look at *text* too."""
        self.lines.append(text)
        return text

    def logged(self, name: str) -> bool:
        """Whether a logger has said anything."""
        return any(line.startswith(name) for line in self.lines)

    def hits(self) -> list[str]:
        return [line for line in self.lines if any(needle in line.lower() for needle in NEEDLES)]


@contextmanager
def watching() -> Iterator[Watch]:
    """All loggers at DEBUG within the block."""
    watch = Watch()
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    before = [(logger, logger.level) for logger in (logging.root, *loggers)]
    logging.root.addHandler(watch)
    for logger, _ in before:
        # SQLAlchemy inherits no level. At INFO it shows statements; whoever asks it for more, to
        # see the rows of the ledger, sees them.
        is_sql = logger.name.startswith("sqlalchemy")
        logger.setLevel(logging.INFO if is_sql else logging.DEBUG)
    try:
        yield watch
    finally:
        logging.root.removeHandler(watch)
        for logger, level in before:
            logger.setLevel(level)


def settings(mail_port: int, hook_port: int) -> dict[str, Any]:
    return {
        "C2METER_STRIPE_SECRET_KEY": STRIPE_KEY,
        "C2METER_STRIPE_WEBHOOK_SECRET": STRIPE_SECRET,
        "C2METER_MAIL_SERVER": "127.0.0.1",
        "C2METER_MAIL_PORT": mail_port,
        "C2METER_MAIL_TLS": False,
        "C2METER_MAIL_USERNAME": MAIL_USER,
        "C2METER_MAIL_PASSWORD": MAIL_PASSWORD,
        "C2METER_MAIL_SENDER": f"{CANARY}.billing@acme.example",
        "C2METER_ALERT_WEBHOOK_URL": f"http://127.0.0.1:{hook_port}/{CANARY}-path",
        "C2METER_ALERT_WEBHOOK_SECRET": HOOK_SECRET,
        "C2METER_ALERT_WEBHOOK_ALLOW_LOOPBACK": True,
    }
