"""`python -m cygnet VERB` is `cygnet VERB`."""

from cygnet.cli import main

if __name__ == "__main__":
    main()
