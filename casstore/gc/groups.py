"""Groups: frames of chunks that resemble one another, large enough that one compresses against the next.

What is one is told from the sizes in the footer: no other frames are that large. The format knows nothing of it.
"""

from __future__ import annotations

from casstore.codec import WINDOW_LIMIT, ZstdCodec
from casstore.config import StoreConfig
from casstore.format.packs import Footer

GROUP_BYTES = 2 * 1024 * 1024
"""plaintext bytes a group aims at; it has at most a quarter more, unless it is a single chunk"""
GROUP_LEVEL = 9
"""of zstd (docs/decisions/0017)"""


def group_codec() -> ZstdCodec:
    """Compresses groups. Of groups it is known that they are worth it, so no sample is looked at before."""
    return ZstdCodec(GROUP_LEVEL, looks=False)


def group_bytes(config: StoreConfig) -> int:
    """Plaintext bytes a group of a store aims at; 0 if its frames are too large for groups to be told from them."""
    wanted = max(GROUP_BYTES, 2 * _largest_other(config))
    return wanted if wanted <= WINDOW_LIMIT * 4 // 5 else 0


def is_group(config: StoreConfig, raw: int, chunks: int) -> bool:
    """Whether a frame of so many plaintext bytes and chunks is a group."""
    return chunks > 1 and raw > _largest_other(config)


def _largest_other(config: StoreConfig) -> int:
    """Plaintext bytes of any frame of more than one chunk that is no group: it ends with the chunk that fills it."""
    return config.frame_bytes + max(config.frame_bytes // 4, config.chunker.maximum)


def is_arranged(config: StoreConfig, footer: Footer) -> bool:
    """Whether most of a pack is groups, so that it need not be arranged again."""
    frames = footer.content.frames
    grouped = sum(frame.raw for frame in frames if is_group(config, frame.raw, frame.chunks))
    return 2 * grouped > sum(frame.raw for frame in frames)
