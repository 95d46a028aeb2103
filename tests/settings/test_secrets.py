"""Secrets come from guarded places and never show."""

from __future__ import annotations

from pathlib import Path

import pytest

from bruno.errors import InputError
from bruno.settings.paths import Paths
from bruno.settings.secrets import hide, redact, secret


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    for name in ("VAST_API_KEY", "HF_TOKEN", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return Paths(home=tmp_path, config=tmp_path / "config.toml")


def test_file_must_be_private(home: Paths) -> None:
    path = home.config.parent / "secrets.toml"
    path.write_text('vast_api_key = "k3y-of-the-file"')
    path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        secret("vast_api_key", where=home)
    path.chmod(0o600)
    assert secret("vast_api_key", where=home) == "k3y-of-the-file"
    assert redact("sent k3y-of-the-file to") == "sent [redacted] to"


def test_environment_wins(home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_from_the_environment")
    assert secret("hf_token", where=home) == "hf_from_the_environment"
    assert secret("vast_api_key", where=home) is None


@pytest.mark.parametrize(
    "text",
    [
        "token hf_abcdefghijklmnopqrstuvwx",
        "Authorization: Bearer abcdefghijklmnop1234",
        "https://host/path?api_key=0123456789abcdef",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----",
    ],
)
def test_shapes_are_redacted(text: str) -> None:
    assert "[redacted]" in redact(text)
    assert "b3BlbnNzaC1rZXk" not in redact(text)


def test_longer_secret_goes_first() -> None:
    hide("abcdefgh")
    hide("abcdefgh-and-more")
    assert redact("x abcdefgh-and-more y") == "x [redacted] y"
