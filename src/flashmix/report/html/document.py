"""The frame of a page: its style and scripts, and the rule that nothing else may run or load."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from flashmix.errors import missing_extra
from flashmix.report.html.markup import Markup, data, tag
from flashmix.visualize import theme


def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script.

    Raises:
        MissingDependencyError: vl-convert-python is not installed.
    """
    try:
        import vl_convert
    except ImportError:
        raise missing_extra("vl-convert-python", "report", "report.html") from None
    return _bundled(vl_convert.javascript_bundle)


@cache
def _bundled(bundle: Callable[[str], str]) -> str:
    return bundle("window.vegaEmbed = vegaEmbed;")


def asset(name: str) -> str:
    """A file of the page's own."""
    return (files("flashmix.report.html") / "assets" / name).read_text()


def document(title: str, header: Markup, body: Sequence[Markup], specs: Sequence[Any] = ()) -> str:
    """A whole page with its style and scripts, which may load nothing and run nothing else."""
    scripts = [asset("theme.js"), asset("tables.js")]
    blocks = []
    if specs:
        scripts = [vega_bundle(), *scripts, asset("charts.js")]
        blocks = [
            data("specs", specs),
            data("look", {"config": theme.config(), "dark": theme.counterparts()}),
        ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(_tokens() + asset("page.css"))),
    ]
    content = [
        tag("a", "Skip to the content", href="#content", class_="skip"),
        header,
        tag("main", *body, id="content"),
        *blocks,
        *(tag("script", Markup(script)) for script in scripts),
    ]
    whole = tag("html", tag("head", *head), tag("body", *content), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _policy(scripts: Sequence[str]) -> str:
    """Only these very scripts may run, and nothing may be loaded or sent."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'self'"
    )


def _tokens() -> str:
    names = ("PAPER", "INK", "MUTED", "LINE", "GRID")

    def values(mode: str) -> str:
        return "".join(f"--{name.lower()}:{getattr(getattr(theme, name), mode)};" for name in names)

    accent = theme.tone("fnet")
    light = f"{values('light')}--accent:{accent.light};--font:{theme.FONT};"
    dark = f"{values('dark')}--accent:{accent.dark};"
    return (
        f":root{{{light}}}"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        f":root[data-theme=dark]{{{dark}}}"
    )


def theme_button() -> Markup:
    """The button that goes from the system's theme to light to dark."""
    return tag("button", "Theme: auto", type="button", id="theme", hidden=True)
