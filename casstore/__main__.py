"""``python -m casstore`` and ``casstore``: the command line, in a process of its own."""

from casstore.process import postpone, run


def main() -> None:
    """Start, do what the arguments say, and end the process."""
    postpone()

    from casstore.cli import main as command  # noqa: PLC0415 - after that, as it imports click

    run(lambda: command(prog_name="casstore"))


if __name__ == "__main__":
    main()
