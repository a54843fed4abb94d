"""Names of files and classes, as they come from outside: made fit for every place they go to, once, where they enter.

A name is text in UTF-8 that fits in one line: bytes that are no UTF-8, control characters and those that turn the
direction of writing are escaped, and can be had back. So a name goes as it is to a terminal, an index, CSV, JSON or a
page. Names without any of these stay as they are.
"""

from __future__ import annotations

import re
import unicodedata

_BAD = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_UNFIT = re.compile(f"[{_BAD}]")
_LIKE_AN_ESCAPE = re.compile(r"\\\\|\\x[0-9a-f]{2}|\\u[0-9a-f]{4}")
_ESCAPE = re.compile(r"\\(?:(\\)|x([0-9a-f]{2})|u([0-9a-f]{4}))")
_TO_ESCAPE = re.compile(rf"[\\{_BAD}]")

_SYSTEMS = {
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "@eadir",
}

_OTHERS = (
    "csv tsv txt md rst json jsonl yaml yml toml xml html htm pdf doc docx xls xlsx ppt pptx odt ods rtf tex log ini "
    "cfg url lnk py ipynb m mat r sh bat npy npz pkl pickle pt pth h5 hdf5 parquet arrow db sqlite md5 sha1 sha256 "
    "zip tar gz tgz bz2 xz 7z rar mp4 avi mov mkv webm mp3 wav"
)
_NO_IMAGES = tuple(f".{ending}" for ending in _OTHERS.split())


def escaped(name: str) -> str:
    r"""Return a name as it is kept and shown: ``a\xff`` for a byte that is no UTF-8, ``a\x0a`` for a new line.

    >>> escaped("a\udcff\nb"), escaped("plain"), original(escaped("a\udcff\nb")) == "a\udcff\nb"
    ('a\\xff\\x0ab', 'plain', True)
    """
    if not _UNFIT.search(name) and not _LIKE_AN_ESCAPE.search(name):
        return name
    return _TO_ESCAPE.sub(_escape, name)


def original(name: str) -> str:
    """Return the name that ``escaped`` was given, as Python's functions on files take it."""
    return _ESCAPE.sub(_character, name) if _LIKE_AN_ESCAPE.search(name) else name


def printable(text: str) -> str:
    """Return a message in which nothing moves the cursor or changes colours; lines stay lines."""
    return re.sub(rf"(?!\n)[{_BAD}]", _escape, text)


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC): é is one character, as Linux and Windows write it."""
    return unicodedata.normalize("NFC", name)


def hidden(name: str) -> bool:
    """Return whether a file is one of those that systems leave in folders.

    >>> hidden("a/.DS_Store"), hidden("a/b.jpg")
    (True, False)
    """
    return any(part.startswith(".") or part.lower() in _SYSTEMS for part in name.split("/"))


def is_other(name: str) -> bool:
    """Return whether a file's name says that it is no image; one without an ending may be.

    >>> is_other("labels.txt"), is_other("a.jpg"), is_other("a")
    (True, False, False)
    """
    return name.lower().endswith(_NO_IMAGES)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if character == "\\":
        return "\\\\"
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte, as Python's functions on files write it
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def _character(found: re.Match[str]) -> str:
    if found[1]:
        return "\\"
    code = int(found[2] or found[3], 16)
    return chr(code + 0xDC00 if found[2] and code >= 0x80 else code)
