"""Serve a local page on which a user draws and sees at once how an integer program classifies the drawing."""

from torchadder.lab.demo.server import DemoClassifier, Server

__all__ = ["DemoClassifier", "Server"]
