"""Several nodes as one cloud.

``addresses`` is the file that names them, ``supervisor`` keeps them running as plain processes, and
``ray_serve`` lets Ray place, restart and scale them. No token passes through either: each replica
has its own TLS port, and devices choose among them by themselves.
"""
