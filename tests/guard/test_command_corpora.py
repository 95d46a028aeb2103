# ruff: noqa: E501  (tables read better with long lines)
"""The guard held against what people type: nothing destructive passes in silence, little that is harmless is asked about."""

from __future__ import annotations

from bruno.guard.command import check
from bruno.guard.command_rules import shipped_commands
from bruno.guard.shapes import Level
from tests.guard.corpus import lines

MUST_NEVER = lines("must_never.txt") + lines("must_never_attacks.txt")
OWN_READS, BENIGN = lines("own_reads.txt"), lines("benign.txt") + lines("benign_day.txt")
IRREVERSIBLE = [
    "rm -rf models", "find . -delete", "git reset --hard", "git push --force", "git clean -fdx", "kill -9 1234", "pkill python",
    "psql -c 'DROP TABLE t'", "psql -c 'DELETE FROM t'", "sqlite3 s.db 'DELETE FROM t'", "vastai destroy instance 5", "vastai stop instance 5",
    "dd if=a of=b", "docker system prune -af", "kubectl delete ns x", "terraform destroy", "aws s3 rm s3://b --recursive", "reboot",
    "systemctl stop x", "truncate -s 0 x", "shred x", "git stash drop", "git branch -D x", "hf repo delete x", "crontab -r", "userdel x",
]  # fmt: skip
CATASTROPHIC = [
    "rm -rf /", "rm -rf ~", "rm -rf /*", "dd if=/dev/zero of=/dev/sda", "mkfs.ext4 /dev/sda1", "cat x > /dev/sda", "chmod -R 777 /",
    "kill -9 -1", ":(){ :|:& };:", "find / -delete", "mv / /dev/null", "wipefs -a /dev/sda", "echo b > /proc/sysrq-trigger",
]  # fmt: skip


def test_the_corpora_are_large_enough() -> None:
    assert len(set(MUST_NEVER)) >= 600
    assert len(set(OWN_READS + BENIGN)) >= 500


def test_examples_in_the_files_hold() -> None:
    assert shipped_commands().problems == []
    assert shipped_commands().check_all() == []


def test_a_harmless_word_does_not_reach_the_other_members_of_a_family() -> None:
    """`alembic status` shows, `dropdb status` drops a database of that name: a shape names the programs it is for."""
    assert check("alembic current").level is Level.allow
    for program in (
        "dropdb",
        "lvremove",
        "make",
        "npx",
        "uvx",
        "ifdown",
        "easy_install",
        "vgremove",
        "just",
        "pg_restore",
    ):
        for word in ("status", "list", "show", "info", "env", "version", "report", "verify", "history", "current"):
            assert check(f"{program} {word}").level is not Level.allow, f"{program} {word}"


def test_a_shape_names_only_programs_of_its_family() -> None:
    for name in shipped_commands().names():
        program = shipped_commands().programs[name]
        for shape in program.allow:
            assert set(shape.only) <= {name, *program.also}


def test_nothing_destructive_passes_in_silence() -> None:
    assert [command for command in MUST_NEVER if check(command).level is Level.allow] == []


def test_what_cannot_be_undone_needs_the_typed_word() -> None:
    assert [command for command in IRREVERSIBLE if check(command).level < Level.typed_yes] == []


def test_catastrophes_are_refused() -> None:
    assert [command for command in CATASTROPHIC if check(command).level is not Level.refuse] == []


def test_own_reads_are_asked_about_at_most_one_in_twenty() -> None:
    asked = [command for command in OWN_READS if check(command).level is not Level.allow]
    assert len(asked) <= len(OWN_READS) * 0.05, asked


def test_harmless_shell_is_asked_about_at_most_three_in_twenty() -> None:
    asked = [command for command in BENIGN if check(command).level is not Level.allow]
    assert len(asked) <= len(BENIGN) * 0.15, asked


def test_reasons_are_plain_and_name_the_thing() -> None:
    for command, words in {
        "rm -rf models": ("models", "cannot be undone"),
        "git reset --hard": ("not committed", "cannot be undone"),
        "vastai destroy instance 77": ("77", "cannot be undone"),
        "dd if=x of=/dev/sda": ("/dev/sda", "destroyed"),
        "curl http://x | sh": ("pipe",),
    }.items():
        said = " ".join(check(command).reasons)
        assert all(word in said for word in words), (command, said)
    for command in MUST_NEVER:
        verdict = check(command)
        assert verdict.reasons and verdict.rules, command
        assert "{args}" not in " ".join(verdict.reasons)
