"""Making releases: what runs, signed, in a log of static files, seen by witnesses.

The pure parts are in ``overspill.trust``; here are the files, locks and sockets around them.
"""
