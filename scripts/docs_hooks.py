"""What mkdocs adds to the pages: the help of each command, the docstrings of each public name.

A link to a file of the repository that is not a page is shown as the file's path; it must exist.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashmix.cli.main import build_parser

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
COMMANDS = "<!-- commands -->"
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|obj):(?=<code|<a)")
API = re.compile(r"<!-- api: (?P<module>[\w.]+) -->")


def commands() -> str:
    """The help of every command, as a page has it."""
    os.environ["COLUMNS"] = "100"
    (chosen,) = (
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return "\n\n".join(
        f"## flashmix {name}\n\n```text\n{parser.format_help().rstrip()}\n```"
        for name, parser in chosen.choices.items()
    )


def api(name: str) -> str:
    """A heading for each public name of a module, and the reference to where it is defined."""
    module = importlib.import_module(name)
    entries = []
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.ismodule(value) or public.startswith("_"):
            continue
        if inspect.isroutine(value) or inspect.isclass(value):
            source = f"{value.__module__}.{value.__qualname__}"
            entries.append(f"::: {source}\n    options:\n      heading: {name}.{public}\n")
        else:
            entries.append(f"### {name}.{public}\n\n{_constant(value)}")
    return "\n\n".join(entries)


def _constant(value: object) -> str:
    """A value that has no docstring: its text, or the names that it holds."""
    if isinstance(value, Mapping):
        return f"A mapping of {', '.join(f'`{key}`' for key in value)}."
    return f"`{value!r}`"


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """A page's text before it is rendered."""
    here = Path(page.file.abs_src_path).parent
    docs = Path(config["docs_dir"])

    def link(found: re.Match[str]) -> str:
        target = (here / found[2]).resolve()
        if target.is_relative_to(docs):
            return found[0]
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {found[2]}, which is not there")
        return f"{found[1]} (`{target.relative_to(ROOT)}`)"

    markdown = API.sub(lambda found: api(found["module"]), LINK.sub(link, markdown))
    return markdown.replace(COMMANDS, commands()) if COMMANDS in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """A rendered page, without the roles that docstrings name things by."""
    return ROLE.sub("", html)
