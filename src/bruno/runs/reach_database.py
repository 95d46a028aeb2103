"""Sent to a rented machine and run there with its engine's Python: can the study's database be reached and logged in to?

Reads the URL from the environment, never from the command line. Exit codes: 0 it can; 3 nothing answers; 4 the login is refused.
"""

import os
import socket
import sys

NOTHING_ANSWERS, REFUSED = 3, 4
VARIABLE = "BRUNO_SEARCH__STORAGE"
SECONDS = 20


def main() -> int:
    from sqlalchemy import create_engine, make_url, text
    from sqlalchemy.exc import SQLAlchemyError

    url = make_url(os.environ[VARIABLE])
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    try:
        socket.create_connection((url.host or "", url.port or 5432), timeout=SECONDS).close()
    except (OSError, UnicodeError) as error:
        say(str(error))
        return NOTHING_ANSWERS
    try:
        with create_engine(url, connect_args={"connect_timeout": SECONDS}).connect() as connection:
            connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, ImportError) as error:
        say(str(getattr(error, "orig", None) or error))
        return REFUSED
    say("the study's database answers and lets us in")
    return 0


def say(words: str) -> None:
    """One line: the last of what was said, which is the reason."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    sys.stdout.write((lines[-1] if lines else "no reason was given") + "\n")


if __name__ == "__main__":
    sys.exit(main())
