"""Read the version of the installed distribution; pyproject.toml is its only source."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("torchadder")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"
