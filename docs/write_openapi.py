"""Writes ``reference/openapi.json`` from the code: ``python docs/write_openapi.py``."""

from __future__ import annotations

from from_code import openapi

openapi.PATH.write_text(openapi.as_text())
