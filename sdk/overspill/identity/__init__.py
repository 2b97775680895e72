"""Device keys: made on the device, kept in the OS keychain or in a declared private file.

:mod:`~overspill.identity.base` says what a key and a store owe, :mod:`~overspill.identity.select`
picks a store. Requests are signed in ``overspill.sealing``; this package only holds the keys.
"""
