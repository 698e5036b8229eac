"""`python -m lorank.cli`."""

from lorank.__main__ import main

if __name__ == "__main__":
    main()
