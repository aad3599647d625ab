"""Version → files, and files against a version.

`writing` writes below a directory, `replacing` makes a directory hold just a version, `verification` compares. Nothing
outside of that directory is ever written or deleted, whatever is in it and whatever anyone does to it meanwhile:
`target` goes down one open directory at a time and follows no link.
"""

from __future__ import annotations

from casstore.checkout.listing import twins
from casstore.checkout.replacing import CheckoutReport, Confirm, accept, replace
from casstore.checkout.verification import Verified, verify_directory, verify_stored
from casstore.checkout.writing import DownloadReport, download

__all__ = [
    "CheckoutReport",
    "Confirm",
    "DownloadReport",
    "Verified",
    "accept",
    "download",
    "replace",
    "twins",
    "verify_directory",
    "verify_stored",
]
