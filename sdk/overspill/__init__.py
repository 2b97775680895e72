"""overspill: language models that run where the user is and spill over into a proven cloud."""

from overspill._version import __version__

__all__ = ["__version__"]
