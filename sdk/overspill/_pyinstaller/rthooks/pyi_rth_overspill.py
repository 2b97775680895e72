"""Runs before the bundled program: a worker that it starts is this program, with other work."""

from overspill.freeze import freeze_support

freeze_support()
