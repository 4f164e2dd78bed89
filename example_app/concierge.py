"""Signs images and verifies them, with real C2PA manifests; knows nothing of HTTP or metering.

Imports ``c2pa`` and :mod:`.credentials`. Safe in threads and after a fork: a C2PA context is dead
in a child process, so each process makes its own on first use.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Any

import c2pa

from .credentials import Credentials

#: The image itself, rather than the manifest in it, is at fault when an error starts like this.
_IMAGE_ERRORS = ("Io:", "NotSupported:", "Other: asset could not be parsed")

_SETTINGS = {
    # Otherwise an uploaded image could make this server fetch any address.
    "verify": {"verify_trust": True, "remote_manifest_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}


class UnreadableImage(ValueError):
    """The bytes are no complete JPEG or PNG image."""


class BrokenCredentials(ValueError):
    """The image was changed after it was signed; a new signature would hide that."""


@dataclass(frozen=True, slots=True)
class Image:
    """An uploaded image: what it is was read from its bytes, never from its name."""

    data: bytes
    mime: str
    name: str


@dataclass(frozen=True, slots=True)
class Signed:
    """An image with a new manifest in it."""

    data: bytes
    manifest_id: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What the manifest in an image says, and whether it holds."""

    #: ``Trusted``, ``Valid`` (by a signer unknown here), ``Invalid`` or ``NoManifest``.
    state: str
    manifest_id: str | None = None
    title: str | None = None
    #: Organisation in the signer's certificate.
    issuer: str | None = None
    #: C2PA status codes of what did not hold, such as ``assertion.dataHash.mismatch``.
    failures: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """True if there is a manifest and the image is what was signed."""
        return self.state in ("Trusted", "Valid")


class Concierge:
    """Signs and verifies in the name of one set of credentials."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._of_process: tuple[int, c2pa.Context, c2pa.Context] | None = None

    def sign(self, image: Image) -> Signed:
        """Add a manifest that says who opened and signed *image*; an earlier one is its parent.

        :raises UnreadableImage: the image is damaged.
        :raises BrokenCredentials: it carries a manifest that does not hold.
        """
        if self.verify(image).state == "Invalid":
            raise BrokenCredentials("The image was changed after it was signed")
        signer, _ = self._contexts()
        signed = io.BytesIO()
        manifest = {
            "title": image.name,
            "claim_generator_info": [{"name": "flask_c2meter example_app", "version": "1"}],
        }
        try:
            with c2pa.Builder(manifest, context=signer) as builder:
                # EDIT, not CREATE: we saw the image, we do not know who made it.
                builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
                builder.sign(image.mime, io.BytesIO(image.data), signed)
        except c2pa.C2paError as error:
            raise UnreadableImage(str(error)) from error
        result = Image(signed.getvalue(), image.mime, image.name)
        return Signed(result.data, self.verify(result).manifest_id or "")

    def verify(self, image: Image) -> Verification:
        """Check the manifest in *image*.

        :raises UnreadableImage: the image is damaged; a damaged manifest is ``Invalid`` instead.
        """
        _, trusting = self._contexts()
        try:
            reader = c2pa.Reader.try_create(image.mime, io.BytesIO(image.data), context=trusting)
            return Verification("NoManifest") if reader is None else _report(reader)
        except c2pa.C2paError as error:
            if str(error).startswith(_IMAGE_ERRORS):
                raise UnreadableImage(str(error)) from error
            return Verification("Invalid", failures=(str(error),))

    def _contexts(self) -> tuple[c2pa.Context, c2pa.Context]:
        """This process's signing and reading context."""
        # Two threads may both build them; the later pair wins and both work, so no lock is needed
        # that a fork could copy while it is held.
        if self._of_process is None or self._of_process[0] != os.getpid():
            settings = {**_SETTINGS, "trust": {"trust_anchors": self._credentials.root}}
            signer = c2pa.Context.from_dict(settings, signer=self._signer())
            self._of_process = (os.getpid(), signer, c2pa.Context.from_dict(settings))
        return self._of_process[1:]

    def _signer(self) -> c2pa.Signer:
        chain, key = self._credentials.chain.encode(), self._credentials.key.encode()
        return c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, chain, key, None)
        )


def _report(reader: c2pa.Reader) -> Verification:
    with reader:
        manifest: dict[str, Any] = reader.get_active_manifest() or {}
        results: dict[str, Any] = reader.get_validation_results() or {}
        return Verification(
            state=reader.get_validation_state(),
            manifest_id=manifest.get("label"),
            title=manifest.get("title"),
            issuer=manifest.get("signature_info", {}).get("issuer"),
            failures=tuple(
                failure["code"] for failure in results.get("activeManifest", {}).get("failure", ())
            ),
        )
