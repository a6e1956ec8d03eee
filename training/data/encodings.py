"""Text encodings of business files: byte order marks, and the cure for a wrong guess."""

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from charset_normalizer import from_bytes

from cluster.errors import UserError
from training.data.files import WORKBOOK, File

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NO_TEXT = (
    (re.compile(rb"PK\x03\x04.*(xl/|\[Content_Types\]\.xml|opendocument\.spreadsheet)", re.DOTALL), WORKBOOK),
    (re.compile(rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), WORKBOOK),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive; unpack it and name the file within"),
)
BLOCK = 1 << 22
SAMPLE = 1 << 18

WESTERN = ("iso8859-1", "cp1252", "latin-1")
MANY_SPECIAL = 0.3  # a share of bytes beyond ASCII that no western language has

UNDECODABLE = re.compile("[\udc80-\udcff]")
"""What ``surrogateescape`` leaves in the place of bytes that are no text."""

GUESSES = ["gb18030", "big5", "shift_jis", "euc_kr", "cp1252", "cp1251", "utf_16"]
"""Encodings that business files come in, as charset_normalizer names them."""


@dataclass(frozen=True)
class Encoding:
    """How a file is decoded. Where it is not ``clean``, some lines hold bytes that are no text."""

    name: str
    clean: bool
    warning: str | None = None


def encoding_of(source: str, file: File, declared: str) -> Encoding:
    """The encoding to read ``file`` with: its byte order mark's, else the declared one.

    A few undecodable lines among many good ones leave the file readable: those rows are rejected later. Where
    most lines with special characters cannot be decoded, the declared encoding is wrong.

    Raises:
        UserError: the encoding is unknown, or wrong for this file; names the line, the byte and the cure. Or the file
            is no text, but a workbook.
    """
    try:
        codecs.lookup(declared)
    except LookupError:
        raise UserError(
            f"data.sources.{source}.encoding: there is no encoding '{declared}'; common ones are "
            "utf-8, gb18030, big5, shift_jis, latin-1 and cp1252"
        ) from None
    start = _head(file)
    if what := next((what for mark, what in NO_TEXT if mark.match(start)), None):
        raise UserError(f"data.sources.{source}: {file.name} is {what}")
    name = next((encoding for mark, encoding in MARKS if start.startswith(mark)), declared)
    if _decodes(file, name):
        return Encoding(name, clean=True, warning=_suspicion(source, file, name))
    _raise_if_wrong(source, file, name)
    return Encoding(name, clean=False)


def open_text(file: File, encoding: Encoding) -> IO[str]:
    """The file as text with its line ends kept; bytes that are no text match :data:`UNDECODABLE`."""
    errors = "strict" if encoding.clean else "surrogateescape"
    return io.TextIOWrapper(file.open(), encoding=encoding.name, errors=errors, newline="")


def _decodes(file: File, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with file.open() as raw:
            while block := raw.read(BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _raise_if_wrong(source: str, file: File, encoding: str) -> None:
    bad = good = offset = 0
    first: tuple[int, int] | None = None
    sample = b""
    for number, line in _byte_lines(file):
        try:
            good += not line.decode(encoding).isascii()
        except UnicodeDecodeError as error:
            bad += 1
            first = first or (number, offset + error.start)
            sample += line if len(sample) < SAMPLE else b""
        offset += len(line)
    if first and good > bad:
        return
    line_number, byte = first or (1, 0)
    guess = _guess(sample or _head(file), encoding)
    cure = f"set data.sources.{source}.encoding: {guess}" if guess else f"set data.sources.{source}.encoding"
    raise UserError(
        f"data.sources.{source}: {file.name} is not {encoding} text (line {line_number}, byte {byte}); {cure}"
    )


def _byte_lines(file: File) -> Iterator[tuple[int, bytes]]:
    with file.open() as raw:
        yield from enumerate(raw, start=1)


def _head(file: File) -> bytes:
    with file.open() as raw:
        return raw.read(SAMPLE)


def _guess(data: bytes, wrong: str) -> str | None:
    """The likeliest encoding of ``data``, by its Python name."""
    wrong_name = codecs.lookup(wrong).name
    if wrong_name != "utf-8" and _is_utf8(data):
        return "utf-8"
    names = [match.encoding for match in from_bytes(data, cp_isolation=GUESSES)]
    if "gb18030" in names and names[0] in ("big5", "shift_jis") and _is_everyday_chinese(data):
        names.insert(0, "gb18030")  # a few Chinese words fit the other encodings too, as characters nobody uses
    fitting = [name for name in names if codecs.lookup(name).name != wrong_name]
    if not fitting:
        return "latin-1" if wrong_name not in ("iso8859-1", "cp1252") else None
    return fitting[0].replace("utf_16", "utf-16")


def _is_everyday_chinese(data: bytes) -> bool:
    """Whether nearly all special characters, read as GB18030, are among the 3,755 commonest (GB 2312, rows 16-55)."""
    special = [character for character in data.decode("gb18030", "ignore") if "\u4e00" <= character <= "\u9fff"]
    leads = [character.encode("gb2312", "ignore")[:1] for character in special]
    return bool(special) and sum(b"\xb0" <= lead <= b"\xd7" for lead in leads) >= 0.9 * len(special)


def _is_utf8(data: bytes) -> bool:
    try:
        return not data.decode("utf-8").isascii()
    except UnicodeDecodeError as error:
        return error.start > len(data) - 4 and not data[: error.start].decode("utf-8").isascii()


def _suspicion(source: str, file: File, encoding: str) -> str | None:
    """Most encodings decode UTF-8 to garbage without complaint; valid UTF-8 is hardly ever anything else."""
    if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "utf-16", "utf-32", "ascii"):
        return None
    head = _head(file)
    if _is_utf8(head):
        return (
            f"{file.name} reads as UTF-8, yet data.sources.{source}.encoding is {encoding}: look at special characters"
        )
    special = sum(byte > 127 for byte in head) / max(len(head), 1)
    guess = _guess(head, encoding) if special > MANY_SPECIAL and codecs.lookup(encoding).name in WESTERN else None
    if guess is None or guess in WESTERN:
        return None
    return (
        f"{file.name} looks like {guess}, yet data.sources.{source}.encoding is {encoding}: look at special characters"
    )
