"""The Sphinx directive ``{from-code} NAME``: the part of the reference of that name."""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from . import render, tables

PARTS = {**tables.TABLES, "shapes": render.shapes, "http": render.http}


class FromCode(SphinxDirective):
    """Its lines are Markdown, read in the place of the directive."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The nodes."""
        lines = PARTS[self.arguments[0]]()
        where = f"from-code:{self.arguments[0]}"
        box = nodes.Element()
        self.state.nested_parse(StringList(lines, source=where), self.lineno, box, True)
        children: list[nodes.Node] = box.children
        return children


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.add_directive("from-code", FromCode)
    return {"parallel_read_safe": True}
