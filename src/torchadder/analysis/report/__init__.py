"""The report: one page of HTML about training runs, which needs no network and opens from disk."""

from .page import check_writable, write

__all__ = ["check_writable", "write"]
