"""Transparency logs in C2SP's formats, as functions over bytes. Pure: no network, no files.

``note`` (signed notes and their keys), ``checkpoint``, ``cosignature`` (witnesses and quorums),
``merkle`` (RFC 6962 trees, RFC 9162's verification), ``tiles`` (tlog-tiles: paths, entry bundles,
the part of a tree that travels), ``proof`` (tlog-proof) and ``witness`` (tlog-witness).

Whatever is malformed, truncated or false raises :class:`~overspill.errors.LogInvalid`, whose
``reason`` is stable.
"""
