"""The one service behind every face: words or an intent in, a reply out; a permit in, the plan carried out.

All methods block and are safe to call from worker threads; none prints. `reply` never acts on the world beyond reading it.
"""
