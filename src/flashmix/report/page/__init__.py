"""The report as one HTML file that needs no network."""

from flashmix.report.page.build import page
from flashmix.report.page.runs import PageRun

__all__ = ["PageRun", "page"]
