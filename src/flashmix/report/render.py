"""From a chart's specification to SVG and PNG, without a browser."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

from flashmix.errors import missing_extra
from flashmix.report import theme

SCALE = 2.0
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def to_svg(spec: Mapping[str, Any], mode: theme.Mode = "light") -> str:
    """A Vega-Lite specification in light colours, drawn in those of ``mode``.

    Raises:
        MissingDependencyError: vl-convert-python is not installed.
    """
    drawn: str = _renderer().vegalite_to_svg(theme.in_mode(spec, mode))
    return drawn


def to_png(spec: Mapping[str, Any], mode: theme.Mode = "light", scale: float = SCALE) -> bytes:
    """As :func:`to_svg`, with ``scale`` pixels of PNG to one of the chart."""
    return compact_png(_renderer().vegalite_to_png(theme.in_mode(spec, mode), scale=scale))


def compact_png(image: bytes) -> bytes:
    """The same pixels in fewer bytes: the renderer compresses for speed, to four times the size."""
    chunks, at = [], len(_SIGNATURE)
    while at < len(image):
        (length,) = struct.unpack_from(">I", image, at)
        chunks.append((image[at + 4 : at + 8], image[at + 8 : at + 8 + length]))
        at += length + 12
    pixels = zlib.compress(zlib.decompress(b"".join(d for kind, d in chunks if kind == b"IDAT")), 9)
    first = next(i for i, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    rest = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*rest[:first], (b"IDAT", pixels), *rest[first:]]
    )


def _renderer() -> Any:
    try:
        import vl_convert
    except ImportError:
        raise missing_extra("vl-convert-python", "report", "drawing pictures") from None
    return vl_convert
