"""The `draftrec` command, as `python -m draftrec` too."""

import sys


def main() -> None:
    """Load the command line and run it. Whoever interrupts before it listens gets a sentence, too:
    so this file loads nothing."""
    try:
        from draftrec.cli.main import main as run

        run()
    except KeyboardInterrupt:
        print("draftrec: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)


if __name__ == "__main__":
    main()
