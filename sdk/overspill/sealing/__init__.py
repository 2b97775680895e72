"""Sealing a request to an attested key, and proving what came back. Pure: no I/O, no clock.

Reads as a specification, in the order of one request: :mod:`~overspill.sealing.hpke` (a secret to
the node), :mod:`~overspill.sealing.schedule` (keys from it), :mod:`~overspill.sealing.signing`
(who asks), :mod:`~overspill.sealing.frames` (the stream), :mod:`~overspill.sealing.receipt`.
"""
