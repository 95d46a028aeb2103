"""The one service behind all three faces: words -> intent -> plan -> decision -> act -> record.

`service.py` is the door; `resolve.py` turns names into things, `start.py` and `stop.py` make plans, `carry.py` carries them
out, `look.py` draws views from records and provider, `card.py` words a plan. Faces get `views.py` and nothing else.
"""
