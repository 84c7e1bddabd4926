"""`python -m draftrec` is the `draftrec` command."""

from draftrec.cli.main import main

if __name__ == "__main__":
    main()
