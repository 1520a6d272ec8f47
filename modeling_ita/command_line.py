"""Exit status and one-line error messages of every command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from .plain_text import one_line, plain_text

DEBUG = "ITA_DEBUG"  # set this environment variable to see the traceback
DONE, FINDINGS, MISUSE, INTERRUPTED = 0, 1, 2, 130


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Turns a function of arguments into a command: exceptions become one line on stderr and an exit status.

    The status is 0 (done), 1 (finished with findings, as the function returns), 2 (misuse or unreadable input, for any
    exception) or 130 (interrupted).

    ```python
    @command
    def main(arguments=None):
        print(read(arguments))


    if __name__ == "__main__":
        sys.exit(main())
    ```
    """

    @wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            status = main(arguments) or DONE
            sys.stdout.flush()
            return status
        except KeyboardInterrupt as interrupt:
            print(one_line("; ".join(["interrupted", *getattr(interrupt, "__notes__", [])])), file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # the reader has closed the pipe: `… | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        except Exception as error:
            if os.environ.get(DEBUG):
                raise
            print(error_line(error), file=sys.stderr)
            return MISUSE

    return run


def program(module: str) -> str:
    """How a command was called, for its usage line: `ita-mner WORD`, or `python -m MODULE`."""
    return sys.argv[0] if sys.argv[0].startswith("ita-mner") else f"python -m {module}"


def error_line(error: BaseException) -> str:
    """An exception as one line: `error: …`, followed by the notes added to it."""
    said = str(error)
    if not isinstance(error, (OSError, ValueError, ImportError, FloatingPointError)) or not said:
        # Unexpected: a bug in this package or in one of its dependencies.
        said = f"{type(error).__name__}: {said} ({DEBUG}=1 shows where)"
    return one_line("; ".join([f"error: {said}", *getattr(error, "__notes__", [])]))


def print_text(text: Any, **options: Any) -> None:
    """Prints untrusted text: line breaks and tabs stay, all other control characters are replaced."""
    print(plain_text(text), **options)
