"""Multipart bodies, read piece by piece: small fields into memory, the one file's bytes handed on as they come.

Uses python-multipart's parser for the grammar. Does not know what the fields mean, nor where the file goes.
"""

import unicodedata
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serve.boundary import InvalidRequest

MAX_PARTS = 16
MAX_FIELD_BYTES = 4096
MAX_NAME_CHARS = 255
MAX_BOUNDARY_BYTES = 70
"""As RFC 2046 has it."""
FRAMING_BYTES = 256 * 1024
"""What boundaries, headers and fields may take beside the file."""


@dataclass(slots=True)
class Form:
    """A form as it was sent.

    Attributes:
        fields: Text by name.
        file_name: As the client calls the file, without folders and control characters; None where none was sent.
    """

    fields: dict[str, str] = field(default_factory=dict)
    file_name: str | None = None


class FormReader:
    """Reads one body."""

    def __init__(self, content_type: str, allowed: frozenset[str]) -> None:
        """Begin.

        Args:
            content_type: The request's header, with the boundary.
            allowed: Names of the fields that are taken; `file` is taken always.

        Raises:
            InvalidRequest: The body is no form.
        """
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise InvalidRequest("The body: wanted multipart/form-data with a file, found another content-type.")
        self.form = Form()
        self._allowed = allowed
        self._parts = 0
        self._header = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        self._name: str | None = None  # of the field that is being read; None: the file
        self._text = bytearray()
        self._file = bytearray()
        self._is_ended = False
        boundary = options[b"boundary"]
        if len(boundary) > MAX_BOUNDARY_BYTES:
            raise InvalidRequest(f"The body: wanted a boundary of at most {MAX_BOUNDARY_BYTES} bytes, found more.")
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._open_part,
                "on_part_data": lambda data, start, end: self._add_data(data[start:end]),
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, piece: bytes) -> bytes:
        """Read the next bytes of the body; return those of the file among them.

        Raises:
            InvalidRequest: They break the grammar, or a field is not taken.
        """
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise InvalidRequest(f"The body is no multipart form: {error}.") from error
        found = bytes(self._file)
        self._file.clear()
        return found

    def finish(self) -> Form:
        """Return the form.

        Raises:
            InvalidRequest: The body ended early, or had no file.
        """
        if not self._is_ended:
            raise InvalidRequest("The body ends before its last boundary: nothing was kept.")
        if self.form.file_name is None:
            raise InvalidRequest("file: wanted a file with a name, found none.", param="file")
        return self.form

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"The body: wanted at most {MAX_PARTS} parts, found more.")
        self._headers.clear()
        self._text.clear()

    def _add_header(self, place: int, data: bytes) -> None:
        self._header[place] += data

    def _end_header(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _open_part(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == "file":
            if self.form.file_name is not None or b"filename" not in options:
                found = "two" if self.form.file_name is not None else "a plain field"
                raise InvalidRequest(f"file: wanted one file with a name, found {found}.", param="file")
            self.form.file_name = clean_name(options[b"filename"].decode("utf-8", "replace"))
            self._name = None
            return
        if name not in self._allowed:
            raise InvalidRequest(f"Unknown field {name[:64]!r}: it is not on the list of fields that are taken.",
                                 param=name[:64])  # fmt: skip
        if name in self.form.fields:
            raise InvalidRequest(f"{name}: wanted it once, found it twice.", param=name)
        self.form.fields[name] = ""
        self._name = name

    def _add_data(self, data: bytes) -> None:
        if self._name is None:
            self._file += data
            return
        self._text += data
        if len(self._text) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"{self._name}: wanted at most {MAX_FIELD_BYTES} bytes, found more.", param=self._name)

    def _end_part(self) -> None:
        if self._name is not None:
            try:
                self.form.fields[self._name] = self._text.decode()
            except UnicodeDecodeError as error:
                raise InvalidRequest(f"{self._name}: wanted UTF-8, found other bytes.", param=self._name) from error

    def _end(self) -> None:
        self._is_ended = True


def clean_name(raw: str) -> str:
    """Return a file's name as it is shown: its last part, without control and direction characters, 255 at most."""
    last = raw.replace("\\", "/").rstrip("/").rpartition("/")[2]
    shown = "".join(char for char in last if unicodedata.category(char)[0] != "C").strip()
    if shown.strip(".") == "":
        return "file"
    ending = PurePosixPath(shown).suffix[:16]
    return shown if len(shown) <= MAX_NAME_CHARS else shown[: MAX_NAME_CHARS - len(ending)] + ending
