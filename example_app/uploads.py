"""Reads the image out of a request: multipart or JSON, refused before any work is done.

Imports Flask and :mod:`.concierge`'s nouns. Every refusal is a werkzeug HTTP error whose
description is fit for the client.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from flask import request
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from .concierge import Image

P = ParamSpec("P")
R = TypeVar("R")

#: Leading bytes -> MIME type of the formats this service signs.
_SIGNATURES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}

#: Longest title kept from a file name, in characters.
_NAME_LENGTH = 100


def takes_image(view: Callable[Concatenate[Image, P], R]) -> Callable[P, R]:
    """Pass the uploaded image to *view* as its first argument.

    Goes above :func:`~flask_c2meter.metered`, so that a bad upload is a 400 that neither counts
    nor uses up the rate limit.
    """

    @wraps(view)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return view(read_image(), *args, **kwargs)

    return wrapper


def read_image() -> Image:
    """The image of this request: the multipart field ``file``, or ``image`` of a JSON object.

    :raises BadRequest: there is none, it is empty, or it is not base64.
    :raises UnsupportedMediaType: it is neither JPEG nor PNG.
    :raises RequestEntityTooLarge: the body exceeds ``MAX_CONTENT_LENGTH``.
    """
    # Kept whole before any parsing: @metered fingerprints it for the Idempotency-Key.
    request.get_data()
    data, name = _from_json() if request.is_json else _from_form()
    if not data:
        raise BadRequest("The image is empty")
    return Image(data, _mime(data), _title(name))


def json_object() -> dict[str, Any]:
    """The JSON object in this request's body.

    :raises BadRequest: the body is anything else.
    """
    try:
        body = json.loads(request.get_data())
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise BadRequest("Invalid request body")
    return body


def _from_form() -> tuple[bytes, str]:
    upload = request.files.get("file")
    if upload is None:
        raise BadRequest("Send the image as the multipart field 'file', or as base64 in JSON")
    return upload.read(), upload.filename or ""


def _from_json() -> tuple[bytes, str]:
    body = json_object()
    encoded, name = body.get("image"), body.get("name", "")
    if not isinstance(encoded, str) or not isinstance(name, str):
        raise BadRequest("'image' must be the image as base64 text, 'name' a file name")
    try:
        return base64.b64decode(encoded, validate=True), name
    except (binascii.Error, ValueError):
        raise BadRequest("'image' is not valid base64") from None


def _mime(data: bytes) -> str:
    for signature, mime in _SIGNATURES.items():
        if data.startswith(signature):
            return mime
    raise UnsupportedMediaType("Only JPEG and PNG images can be signed and verified")


def _title(name: str) -> str:
    """*name* as a manifest title: one printable line without folders."""
    base = name.replace("\\", "/").rpartition("/")[2]
    return "".join(filter(str.isprintable, base))[:_NAME_LENGTH] or "image"
