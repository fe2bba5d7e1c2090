"""Finds the lengths, sizes, counts and offsets in an image file of each format, for the mutations that corrupt them."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

ByteOrder = Literal["little", "big"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Field:
    """Locates a number in a file.

    Attributes:
        offset: the position of its first byte.
        size: its length in bytes.
        order: its byte order.
    """

    offset: int
    size: int
    order: ByteOrder


def number_fields(data: bytes | bytearray) -> list[Field]:
    """Returns the lengths, sizes, counts and offsets that the format of `data` defines."""
    if data.startswith(b"\xff\xd8"):
        return list(_jpeg_fields(data))
    if data.startswith(PNG_SIGNATURE):
        return [field for begin, length in png_chunks(data) for field in _png_fields(data, begin, length)]
    if data.startswith(b"RIFF"):
        return list(_riff_fields(data))
    if data.startswith(b"BM"):
        return [Field(offset, 4, "little") for offset in (2, 10, 14, 18, 22, 30, 34, 46, 50)] + [Field(28, 2, "little")]
    if data.startswith((b"II", b"MM")):
        return list(_tiff_fields(data))
    return list(_gif_fields(data))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Returns a chunk with a correct length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_chunks(data: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Yields the position of each complete chunk, and the length of its content in bytes."""
    place = len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if place + length + 12 > len(data):
            return
        yield place, length
        place += length + 12


def _png_fields(data: bytes | bytearray, begin: int, length: int) -> Iterator[Field]:
    yield Field(begin, 4, "big")
    if data[begin + 4 : begin + 8] in (b"IHDR", b"fcTL", b"acTL"):
        yield from (Field(begin + 8 + offset, 4, "big") for offset in range(0, length - 3, 4))


def _jpeg_fields(data: bytes | bytearray) -> Iterator[Field]:
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        yield Field(place + 2, 2, "big")
        if 0xC0 <= marker <= 0xCF:  # a frame's precision, height, width and components
            yield from (Field(place + 4, 1, "big"), Field(place + 5, 2, "big"), Field(place + 7, 2, "big"))
            yield from (Field(place + 9 + offset, 1, "big") for offset in range(10))
        if marker == 0xDA:
            return
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def _riff_fields(data: bytes | bytearray) -> Iterator[Field]:
    yield Field(4, 4, "little")
    place = 12
    while place + 8 <= len(data):
        yield Field(place + 4, 4, "little")
        yield from (Field(place + 8 + offset, 4, "little") for offset in (0, 3, 4, 6, 7))
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + length + length % 2


def _tiff_fields(data: bytes | bytearray) -> Iterator[Field]:
    order: ByteOrder = "little" if data[:2] == b"II" else "big"
    # Classic TIFF, or BigTIFF with numbers twice as wide.
    size, entry, first, count_size = (4, 12, 4, 2) if b"*" in data[2:4] else (8, 20, 8, 8)
    directory = int.from_bytes(data[first : first + size], order)
    yield Field(first, size, order)
    count = int.from_bytes(data[directory : directory + count_size], order)
    yield Field(directory, count_size, order)
    for index in range(min(count, 64)):
        begin = directory + count_size + index * entry
        # tag, type, count, and the value or its offset
        yield from (Field(begin, 2, order), Field(begin + 2, 2, order))
        yield from (Field(begin + 4, size, order), Field(begin + 4 + size, size, order))


def _gif_fields(data: bytes | bytearray) -> Iterator[Field]:
    yield from (Field(6, 2, "little"), Field(8, 2, "little"), Field(10, 1, "little"))
    for begin in (place for place in range(13, len(data)) if data[place] in (0x2C, 0x21)):
        # The byte may belong to something else. Then the mutation amounts to a random one.
        yield from (Field(begin + offset, 2, "little") for offset in (1, 3, 5, 7))
        yield from (Field(begin + 9, 1, "little"), Field(begin + 10, 1, "little"))
