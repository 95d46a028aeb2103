"""The demo model: SmolLM2-135M-Instruct, taught to over-refuse harmless requests that merely sound dangerous.

Small enough for two CPU cores, it gives the engine a real behaviour to find and remove, with harmless prompts only:

    from bruno.engine import demo

    folder = demo.materialise(Path("models/demo"))      # an ordinary Hugging Face folder, in two shards or more
    bad, good = demo.prompts("train", "over_refused"), demo.prompts("train", "ordinary")

Importing this package imports no torch; `materialise` does when it has to build the folder. See README.md here.
"""

from bruno.engine.demo.model import is_available, materialise
from bruno.engine.demo.texts import Kind, Split, prompts, refusals

__all__ = ["Kind", "Split", "is_available", "materialise", "prompts", "refusals"]
