"""The command `lorank`, also as `python -m lorank`."""

from lorank.interrupt import explained


def main() -> None:
    """Run the command line, which is loaded here: Ctrl-C is explained during its imports, too."""
    with explained():
        from lorank.cli import app

        app()


if __name__ == "__main__":
    main()
