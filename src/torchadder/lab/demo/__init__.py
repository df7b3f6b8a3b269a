"""A local page on which one draws, and sees what a program answers while one does."""

from .server import Server

__all__ = ["Server"]
