"""The unmodified anthropic package against a loopback server that speaks its stream: good replies, cut ones, hostile ones."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bruno.assistant.claude import tools, understand
from bruno.errors import Unreachable
from bruno.intents import Clarification, NotUnderstood, StartRun
from bruno.settings.console import Assistant

NAMES = {"models": ["qwen32b", "demo"], "gpus": ["h200"]}


class FakeClaude:
    """Answers each request with the next of `replies`; a reply is a list of events, an int (status), or "drop"."""

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append(json.loads(body))
                outer.headers.append(dict(self.headers))
                outer.answer(self)

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, int):
            error = json.dumps({"type": "error", "error": {"type": "x", "message": "no"}}).encode()
            request.send_response(reply)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(error)))
            request.end_headers()
            request.wfile.write(error)
            return
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.end_headers()
        for event in reply:
            request.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())


def call(name: str, given: Any, *, stop: str | None = "tool_use", text: str | None = None) -> list[dict[str, Any]]:
    """The events of a reply with one tool call."""
    start = {
        "type": "message_start",
        "message": {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
            "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
        },
    }  # fmt: skip
    raw = text if text is not None else json.dumps(given)
    block = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}
    events = [start, {"type": "content_block_start", "index": 0, "content_block": block}]
    deltas = [
        {"type": "input_json_delta", "partial_json": piece} for piece in (raw[: len(raw) // 2], raw[len(raw) // 2 :])
    ]
    events += [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
    events.append({"type": "content_block_stop", "index": 0})
    if stop:
        usage = {"output_tokens": 9}
        events.append({"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage})
        events.append({"type": "message_stop"})
    return events


@pytest.fixture
def claude() -> Iterator[FakeClaude]:
    server = FakeClaude()
    yield server
    server.server.shutdown()
    server.server.server_close()


def ask(claude: FakeClaude, words: str = "get me going with the big qwen") -> Any:
    return understand(words, Assistant(url=claude.url, timeout=5, max_turns=3), "test-key-12345", names=NAMES)


def test_a_tool_call_becomes_an_intent(claude: FakeClaude) -> None:
    claude.replies = [call("start_run", {"model": "qwen32b", "gpu": "h200"})]
    assert ask(claude) == StartRun(model="qwen32b", gpu="h200")
    assert claude.headers[0]["Authorization"] == "Bearer test-key-12345"
    assert claude.requests[0]["model"] == "claude-haiku-5-5"


def test_a_question_becomes_a_clarification(claude: FakeClaude) -> None:
    readings = [
        {"text": "Let it run", "consequence": "nothing ends", "intent": {"kind": "watch_run"}},
        {"text": "Stop it", "consequence": "the engine is killed", "intent": {"kind": "stop_instance"}},
    ]
    claude.replies = [call("ask_person", {"question": "Which?", "readings": readings})]
    found = ask(claude)
    assert isinstance(found, Clarification)
    assert [option.letter for option in found.options] == ["A", "B"]


@pytest.mark.parametrize(
    "reply",
    [
        call("stop_instance", {"target": "101"}, stop=None),  # the stream was cut cleanly after a whole call
        call("stop_instance", {"target": "101"}, stop="max_tokens"),
        call("stop_instance", {"target": "101"}, stop="end_turn"),
        call("not_understood", {}),
    ],
)
def test_what_does_not_count(claude: FakeClaude, reply: list) -> None:
    claude.replies = [reply]
    with contextlib.suppress(Unreachable):
        assert isinstance(ask(claude), NotUnderstood)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("stop_instance", {"target": "101", "confirm": "yes"}),
        ("stop_instance", {"kind": "destroy_instance", "target": "101"}),
        ("start_run", {}),
        ("start_run", {"model": "demo", "count": 99}),
        ("run_shell", {"command": "rm -rf /"}),
    ],
)
def test_hostile_or_wrong_input_is_sent_back_and_then_given_up(claude: FakeClaude, name: str, given: object) -> None:
    claude.replies = [call(name, given)]
    assert isinstance(ask(claude), NotUnderstood)
    assert len(claude.requests) == 3  # max_turns bounds it
    assert claude.requests[-1]["messages"][-1]["content"][0]["is_error"] is True


@pytest.mark.parametrize(
    ("reply", "said"), [(401, "refused the key"), (500, "did not answer"), (429, "did not answer")]
)
def test_failures_are_one_line(claude: FakeClaude, reply: int, said: str) -> None:
    claude.replies = [reply]
    with pytest.raises(Unreachable, match=said):
        ask(claude)


def test_dead_server_is_one_line(claude: FakeClaude) -> None:
    claude.server.shutdown()
    claude.server.server_close()
    with pytest.raises(Unreachable, match="did not answer"):
        ask(claude)


@pytest.mark.parametrize("text", ['{"model": "qw', '"model=demo"', "[]", "null"])
def test_broken_json_is_not_an_intent(claude: FakeClaude, text: str) -> None:
    claude.replies = [call("start_run", {}, text=text)]
    with contextlib.suppress(Unreachable):
        assert isinstance(ask(claude), NotUnderstood)


def test_secrets_stay_here(claude: FakeClaude) -> None:
    claude.replies = [call("not_understood", {})]
    ask(claude, "use my token hf_abcdefghijklmnopqrstuvwx please")
    assert "hf_abcdef" not in json.dumps(claude.requests)


def test_no_tool_can_confirm() -> None:
    fields = {field for tool in tools() for field in tool["input_schema"].get("properties", {})}
    assert not fields & {"confirm", "yes", "force", "permit", "approve", "kind"}
