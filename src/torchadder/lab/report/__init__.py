"""Write a report: one HTML page about training runs that needs no network and opens from disk."""

from torchadder.lab.report.page import is_installed, write

__all__ = ["is_installed", "write"]
