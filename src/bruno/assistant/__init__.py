"""Words -> intent. A grammar that needs no network, and Claude for what the grammar cannot read.

Nothing here can act, confirm or choose a target: the result is an intent of `bruno.intents`, a clarification, or "not
understood". Import contracts keep permits and machines out of reach of this room.
"""
