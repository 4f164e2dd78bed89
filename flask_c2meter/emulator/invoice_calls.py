"""The endpoints that read invoices; what is on them, ``billing`` decides.

Imports ``account``, ``bodies``, ``calls``, ``invoices`` and ``referee``.
"""

from __future__ import annotations

from typing import Any

from .account import Account
from .bodies import invoice_body
from .calls import EXPAND, PAGING, Call, Route, missing, page
from .invoices import Bill
from .referee import Shape

INVOICES = "/v1/invoices"

#: How many of its lines an invoice shows itself.
_SHOWN = 10


def _retrieve_invoice(account: Account, call: Call) -> Any:
    body = _body(account, call)
    lines = body["lines"]
    lines["has_more"] = len(lines["data"]) > _SHOWN
    lines["data"] = lines["data"][:_SHOWN]
    return body


def _list_lines(account: Account, call: Call) -> Any:
    lines = _body(account, call)["lines"]
    return page(lines["data"], lines["url"], call)


def _body(account: Account, call: Call) -> dict[str, Any]:
    bill = _find(account, call)
    return invoice_body(bill, account.invoices.show(bill), call.livemode)


def _find(account: Account, call: Call) -> Bill:
    for bill in account.invoices.bills:
        if bill.id == call.id:
            return bill
    raise missing("invoice", call.id)


INVOICE_ROUTES = (
    Route("GET", INVOICES + "/{id}", _retrieve_invoice, Shape(optional=EXPAND)),
    Route("GET", INVOICES + "/{id}/lines", _list_lines, Shape(optional=PAGING | EXPAND)),
)
