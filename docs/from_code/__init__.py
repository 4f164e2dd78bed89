"""What the reference says, from the code: so that it cannot drift.

``shapes`` and ``openapi`` describe JSON and HTTP, ``tables`` everything else; ``render`` writes
Markdown, and ``directive`` has Sphinx read it where a page says ``{from-code}``.
"""
