"""The password of a storage URL is in nothing that is written or shown."""

import json

import pytest

from bruno.settings.engine import EngineSettings, hide_password
from bruno.settings.render import travelling
from bruno.settings.secrets import redact

URLS = [
    ("postgresql://u:sec:r/et@h:5432/db", "postgresql://u:***@h:5432/db"),
    ("postgresql+psycopg://u:s3@h/db?sslmode=require", "postgresql+psycopg://u:***@h/db?sslmode=require"),
    ("postgresql://u@h/db?password=s3&sslmode=require", "postgresql://u@h/db?password=***&sslmode=require"),
    ("postgresql://u:p@ss@h/db", "postgresql://u:***@h/db"),
    ("postgresql://u@h/db", "postgresql://u@h/db"),
    ("postgresql://u:***@h/db", "postgresql://u:***@h/db"),
    ("sqlite:////a/b.sqlite3", "sqlite:////a/b.sqlite3"),
    ("/a/b@c:d.sqlite3", "/a/b@c:d.sqlite3"),
    ("", ""),
]


@pytest.mark.parametrize(("url", "shown"), URLS)
def test_a_url_is_shown_without_its_password(url, shown):
    assert hide_password(url) == shown
    settings = EngineSettings.model_validate({"search": {"storage": url}})
    assert settings.search.storage == url  # what opens the study is whole
    assert json.loads(settings.model_dump_json())["search"]["storage"] == shown
    assert settings.model_dump(mode="json")["search"]["storage"] == shown
    assert travelling(settings) == f'[search]\nstorage = "{shown}"\n'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("could not connect to postgresql://u:s3@h/db", "could not connect to postgresql://[redacted]@h/db"),
        ("postgresql://u@h/db?password=s3 refused", "postgresql://u@h/db?password=[redacted] refused"),
        ("http://host:8080/path@version", "http://host:8080/path@version"),
        ("postgresql://u:***@h/db", "postgresql://u:***@h/db"),
        ("git@host:owner/name", "git@host:owner/name"),
    ],
)
def test_a_url_in_a_text_is_redacted(text, shown):
    assert redact(text) == shown
