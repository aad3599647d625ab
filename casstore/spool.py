"""What is written into a draft before it is logged."""

from __future__ import annotations

import tempfile

from casstore.digest import Buffer
from casstore.errors import BackendError
from casstore.sources import SPOOL_BYTES


class Spool(tempfile.SpooledTemporaryFile[bytes]):
    """A file without a name, in memory while it is short. Belongs to a draft for as long as that lives.

    Closing it in a ``new_file`` block only says that it is complete.
    """

    def __init__(self) -> None:
        super().__init__(max_size=SPOOL_BYTES)

    def write(self, data: Buffer, /) -> int:  # type: ignore[override]  # typeshed has overloads of bytes and Buffer
        """Append. Raises `BackendError` if the disk of temporary files is full."""
        try:
            return super().write(data)
        except OSError as error:
            failure = BackendError(
                f"cannot write a temporary file: {error.strerror}", hint="set TMPDIR to another disk"
            )
            failure.errno = error.errno
            raise failure from None

    def close(self) -> None:
        """Nothing: the draft still needs it."""

    def __del__(self) -> None:
        super().close()
