"""The terminal that every command prints to: what a text holds is shown, never obeyed.

Labels, device names, paths and messages are whatever somebody wrote into a run, a table or a model.
No other module prints; a test sees to that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from flashmix._text import one_line, visible

if TYPE_CHECKING:
    from rich.progress import Progress

    from flashmix.report.tables import Section


class Terminal(Console):
    """Rich's console without markup: a style is an argument, never a part of a text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, highlight=False, emoji=False)

    def say(self, *sentences: str) -> None:
        """Print each sentence on a line of its own, which the terminal wraps."""
        for sentence in sentences:
            self.print(sentence, soft_wrap=True)

    def section(self, section: Section) -> None:
        """Print a section's table and text; a table wider than the terminal wraps."""
        from rich import box
        from rich.table import Table

        if section.table is not None and section.table.rows:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
            for index, column in enumerate(section.table.columns):
                table.add_column(
                    one_line(column), justify="left" if index == 0 else "right", overflow="fold"
                )
            for cells in section.table.rows:
                table.add_row(*map(one_line, cells))
            self.print(table)
        for sentence in section.text:
            self.print(one_line(sentence))

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, of ``text`` made visible, so that widths are those of what is seen."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich's; whatever text a renderable brings along is made visible too."""
        for segment in super().render(renderable, options):
            if segment.control is None:
                yield segment._replace(text=visible(segment.text))
            else:
                yield segment


def named(name: str, rest: str) -> Text:
    """A line that begins with a name in bold."""
    return Text.assemble((visible(name), "bold"), visible(rest))


def progress_bar(terminal: Terminal, *columns: Any) -> Progress:
    """A progress bar that is gone when it ends; rich's own columns where none are named."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    columns = columns or (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(description(), *columns, console=terminal, transient=True)


def description() -> Any:
    """The column of a progress bar that says what is being done."""
    from rich.progress import TextColumn

    return TextColumn("{task.description}", markup=False)
