"""The report: one page of HTML about training runs, which needs no network and opens from disk."""

from torchadder.lab.report.page import is_installed, write

__all__ = ["is_installed", "write"]
