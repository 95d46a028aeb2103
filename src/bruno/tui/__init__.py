"""The console: screens and widgets over the one service, `operator`. No logic that the command line lacks.

It draws views and plan cards, turns keys and typed lines into requests, and holds one of the two places where a permit is
made (`confirm.py`). It reads no log, computes no cost and talks to no machine. Importing this package imports nothing else;
`words` is plain text from views and is used by the command line too.
"""
