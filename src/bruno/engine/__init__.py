"""The engine: finds the direction that carries a behaviour and searches for the smallest weight edit that removes it.

Knows nothing of clouds, screens or records: it imports `bruno.settings` and `bruno.errors` alone, because it is what runs on the
rented machine. Importing this package imports no torch; its modules do when they are used.
"""
