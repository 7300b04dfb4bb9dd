"""`python -m lrkit`: the command line, where the script `lrkit` is not on the path."""

from lrkit.cli.main import main

if __name__ == "__main__":
    main()
