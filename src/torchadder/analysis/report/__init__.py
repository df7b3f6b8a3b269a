"""The report: one page of HTML about training runs, which needs no network and opens from disk."""

from .page import check_writable, is_installed, write

__all__ = ["check_writable", "is_installed", "write"]
