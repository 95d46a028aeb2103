"""The log and its JSON twin tell one story, and a crash or a full disk costs at most the line being written."""

import errno
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bruno.engine.events import InitialScores, Notice, parse_event
from bruno.engine.log import EVENTS_FILE, Emitter, one_line


def stored(folder):
    return [parse_event(line) for line in (folder / EVENTS_FILE).read_bytes().splitlines() if line.strip()]


def test_both_renderings_of_every_event(tmp_path):
    stream = io.StringIO()
    given_events = [Notice(text="one"), InitialScores(refusals=3, prompts=4)]
    with Emitter(tmp_path, stream) as emit:
        for event in given_events:
            emit(event)
            assert stored(tmp_path)[-1] == event  # on disk before the next one begins
    assert stored(tmp_path) == given_events
    assert stream.getvalue() == "* one\n* Initial refusals: 3/4\n"


def test_appends_and_closes_off_a_cut_line(tmp_path):
    with Emitter(tmp_path, io.StringIO()) as emit:
        emit(Notice(text="before"))
    path = tmp_path / EVENTS_FILE
    path.write_bytes(path.read_bytes() + b'{"kind":"notice","te')
    with Emitter(tmp_path, io.StringIO()) as emit:
        emit(Notice(text="after"))
    lines = path.read_bytes().splitlines()
    assert parse_event(lines[0]).text == "before"
    assert parse_event(lines[-1]).text == "after"
    assert len(lines) == 3


def test_a_full_disk_is_an_error_and_the_next_line_is_whole(tmp_path, monkeypatch):
    emit = Emitter(tmp_path, io.StringIO())
    real, calls = os.write, []

    def full(file, data):
        calls.append(data)
        if len(calls) == 1:
            return real(file, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        emit(Notice(text="lost"))
    monkeypatch.setattr(os, "write", real)
    emit(Notice(text="kept"))
    assert parse_event((tmp_path / EVENTS_FILE).read_bytes().splitlines()[-1]).text == "kept"


class Gone(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


def test_a_reader_that_left_does_not_end_the_run(tmp_path):
    with Emitter(tmp_path, Gone()) as emit:
        emit(Notice(text="one"))
        emit(Notice(text="two"))
    assert [event.text for event in stored(tmp_path)] == ["one", "two"]


def test_without_a_file_the_broken_pipe_is_told():
    with pytest.raises(BrokenPipeError):
        Emitter(None, Gone())(Notice(text="one"))


@given(st.text())
def test_one_record_is_one_line(text):
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert "\x1b" not in line and "\u202e" not in line
