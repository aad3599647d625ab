"""``python -m casstore``: the command line."""

from casstore.cli import main

if __name__ == "__main__":
    main(prog_name="casstore")
