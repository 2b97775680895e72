"""An OpenAI-compatible engine (vLLM, SGLang, llama-server) inside the trust boundary.

It runs beside the node, on the same machine: only a loopback address or a Unix socket is taken.
``address`` reads where it is, ``probe`` asks what it is, ``dialect`` knows how it is spoken to and
what it cannot promise, ``schema`` what it may be held to, and ``engine`` is an
:class:`~overspill.engines.base.Engine` over all of that.
"""
