"""What an operator sees of a node: figures and spans, and never what was asked or answered.

``metered`` stands around each engine and tells its ``Watcher`` what happens; ``metrics`` makes
Prometheus figures of that and of the log's events, ``traces`` OpenTelemetry spans; ``endpoint``
shows figures and health on a port of their own; ``observing`` puts them together.
"""
