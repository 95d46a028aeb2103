"""Talk to a model in this terminal, or line by line in JSON for a program; beside another model when asked.

Two models are never in memory together: what does not fit must not be needed to compare. Beside each other, a question
is answered by the model that is loaded, then by the other, and the next question begins with that one, which saves
every second load. Answers are greedy, as in the search. Reads stdin, writes stdout; touches no files.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

import torch
from transformers import TextStreamer

from bruno.engine.events import Emit
from bruno.engine.log import Emitter, printable
from bruno.engine.model.chat_format import encode_conversation
from bruno.engine.model.loading import LoadedModel, load
from bruno.engine.scoring.refusals import RefusalDetector
from bruno.errors import BrunoError, InputError
from bruno.settings.engine import EngineSettings

HELP = "Empty line or /quit ends, /reset forgets the conversation, Ctrl-C stops an answer."


class _Pieces(TextStreamer):
    """transformers' streamer, handing pieces of text to a function instead of printing them."""

    def __init__(self, tokenizer: Any, hear: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.hear = hear

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002  (transformers' signature)
        if text:
            self.hear(text)


@dataclass
class Talk:
    """A conversation with one model: settings, and the turns so far. The model is given with each question."""

    settings: EngineSettings
    longest: int
    turns: list[dict[str, str]] = field(default_factory=list)

    def forget(self) -> None:
        """Begin anew."""
        self.turns.clear()

    def answer(self, loaded: LoadedModel, question: str, hear: Callable[[str], None]) -> str:
        """The model's whole answer, its pieces given to `hear` as they come. Ctrl-C keeps what was said so far.

        When the conversation outgrows the model's context, its oldest turns are left out.
        """
        self.turns.append({"role": "user", "content": question})
        said: list[str] = []

        def both(piece: str) -> None:
            said.append(piece)
            hear(piece)

        ids = torch.tensor([self._ids(loaded)], device=loaded.device)
        try:
            with torch.inference_mode():
                loaded.model.generate(  # type: ignore[operator]
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=self.longest,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    pad_token_id=loaded.tokenizer.pad_token_id,
                    streamer=_Pieces(loaded.tokenizer, both),
                )
        except KeyboardInterrupt:
            hear(" [stopped]")
        text = "".join(said).strip()
        self.turns.append({"role": "assistant", "content": text})
        return text

    def _ids(self, loaded: LoadedModel) -> tuple[int, ...]:
        context = getattr(loaded.model.config, "max_position_embeddings", 0) or 4096
        room = max(64, context - self.longest)
        system = self.settings.data.system_prompt
        head = [{"role": "system", "content": system}] if system else []
        while True:
            try:
                return encode_conversation(loaded.tokenizer, [*head, *self.turns], max_tokens=room)
            except InputError:
                if len(self.turns) < 3:
                    raise
                del self.turns[:2]


class Models:
    """Loads one model at a time, by name; the one before is freed first, so callers keep no reference of their own."""

    def __init__(self, settings: EngineSettings, emit: Emit) -> None:
        self.settings, self.emit = settings, emit
        self.loaded: LoadedModel | None = None

    def get(self, name: str) -> LoadedModel:
        """The model of this name, loaded now unless it is the one in memory.

        Raises:
            BrunoError: as `loading.load`.
        """
        if self.loaded is None or self.loaded.name != name:
            self.loaded = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            export = self.settings.export.model_copy(update={"save": False})
            self.loaded = load(self.settings.model_copy(update={"model": name, "export": export}), self.emit)
        return self.loaded


def converse(settings: EngineSettings, *, beside: str = "", json_lines: bool = False, longest: int = 512) -> int:
    """Talk to `settings.model` until the input ends; the exit code.

    Args:
        beside: id or folder of a second model that answers the same questions.
        json_lines: one JSON object a line in and out, for programs.
        longest: most tokens of one answer.

    Raises:
        BrunoError: a model cannot be loaded.
    """
    talks = {name: Talk(settings, longest) for name in (settings.model, beside) if name}
    if json_lines:
        return _in_json(settings, talks, sys.stdin, sys.stdout)
    return _in_terminal(settings, talks)


def _in_order(names: Iterable[str], loaded: LoadedModel | None) -> list[str]:
    """The names, beginning with the model that is in memory."""
    return sorted(names, key=lambda name: loaded is None or name != loaded.name)


def _in_terminal(settings: EngineSettings, talks: dict[str, Talk]) -> int:
    out = sys.stdout
    models = Models(settings, Emitter(None, sys.stderr))
    models.get(settings.model)
    out.write(f"{HELP}\n")
    for question in _questions(out):
        if question == "/reset":
            for talk in talks.values():
                talk.forget()
            continue
        for name in _in_order(talks, models.loaded):
            models.get(name)
            out.write(f"{printable(name)}: " if len(talks) > 1 else "")
            talks[name].answer(models.get(name), question, partial(_show, out))
            out.write("\n")
    return 0


def _show(out: IO[str], piece: str) -> None:
    out.write(printable(piece))
    out.flush()


def _questions(out: IO[str]) -> Iterator[str]:
    """What the person types, until an empty line, /quit, the end of the input or Ctrl-C."""
    while True:
        out.write("> " if sys.stdin.isatty() else "")
        out.flush()
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            out.write("\n")
            return
        if not line.strip() or line.strip() == "/quit":
            return
        yield line.strip()


def _token(say: Callable[..., None], name: str, piece: str) -> None:
    say(kind="token", model=name, text=piece)


def _in_json(settings: EngineSettings, talks: dict[str, Talk], source: IO[str], target: IO[str]) -> int:
    """One JSON object a line: `{"message": "..."}` or `{"reset": true}` in; events, `token` and `answer` lines out.

    A line that cannot be read, or a question that cannot be answered, is an `error` line; the conversation goes on.
    """

    def say(**fields: object) -> None:
        target.write(json.dumps(fields, ensure_ascii=False) + "\n")
        target.flush()

    def emit(event: Any) -> None:
        say(**event.model_dump(mode="json", exclude_none=True))

    models, detector = Models(settings, emit), RefusalDetector(settings.scoring.refusal_detection_mode)
    models.get(settings.model)
    say(kind="ready", models=list(talks))
    for line in source:
        try:
            request = json.loads(line)
            if request.get("reset"):
                for talk in talks.values():
                    talk.forget()
                say(kind="reset")
                continue
            question = str(request["message"]).strip()
        except (ValueError, KeyError, AttributeError):
            say(kind="error", message='A line must be {"message": "..."} or {"reset": true}')
            continue
        try:
            for name in _in_order(talks, models.loaded):
                models.get(name)
                began = time.monotonic()
                text = talks[name].answer(models.get(name), question, partial(_token, say, name))
                seconds = round(time.monotonic() - began, 2)
                say(kind="answer", model=name, text=text, refused=detector.shows(text), seconds=seconds)
        except BrunoError as error:
            say(kind="error", message=" ".join(str(error).split()))
    return 0
