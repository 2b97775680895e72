"""Does this node deserve a prompt? The verifier of RFC 9334. Pure: no network, no clock.

Context (who, when, which nonce), materials (the bundle) and policy are three arguments of
:func:`overspill.trust.verifier.verify`; it raises, or returns the one object that requests can be
sealed to. A new kind of evidence is one module and one line in ``verifier.py``'s registry.
"""
