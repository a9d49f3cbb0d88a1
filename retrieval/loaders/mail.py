"""Loads e-mails and saved web archives (.eml, .mht): subject, sender, date, the text, and the names of attachments.

Owns: choosing among the parts of a message. Attachments are named, not read; a forwarded message is. Follows no link.
Does not know HTML.

Source: RFC 5322 (messages), RFC 2045 to 2047 (MIME), RFC 6532 (headers in UTF-8).
"""

from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.errors import MessageError
from email.header import Header, decode_header, make_header
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias

from core.errors import InvalidFile, UnsupportedFile
from retrieval.loaders.html import load_markup
from retrieval.loaders.outline import Outline, join_line
from retrieval.loaders.plain import decode_text

_SHOWN = ("From", "To", "Cc", "Date")
_STATED = {"subject": "Subject", "from": "From", "to": "To"}
_MAX_DEPTH = 10
_MAX_HEADER_CHARS = 2_000

_PARSER_FAULTS = (TypeError, ValueError, LookupError)
"""What the standard library's parser raises where a parameter of a header is written wrongly."""

_Mail: TypeAlias = "Message[str, str]"


def load_mail(data: bytes, outline: Outline) -> None:
    """Add a message; its subject is the heading.

    Raises:
        InvalidFile: It has no header that a message has, or its HTML cannot be parsed.
    """
    try:
        mail = message_from_bytes(data)
    except _PARSER_FAULTS as error:
        raise InvalidFile("The e-mail is damaged: its headers contradict each other.") from error
    if not any(name in mail for name in ("From", "To", "Subject", "Date", "MIME-Version")):
        raise InvalidFile("The file ends like an e-mail but has no sender, subject or date: it is not one.")
    stated = {key: _read_header(mail, name) for key, name in _STATED.items()}
    outline.state_attributes({key: value for key, value in stated.items() if value} | _read_date(mail))
    _add_mail(mail, outline, 1)


def _add_mail(mail: _Mail, outline: Outline, depth: int) -> None:
    """Add a message and those that it forwards, which stand one level deeper."""
    # Below those of HTML, which begin at 1, so that the headings of the text stand under the subject.
    outline.add_heading(depth - _MAX_DEPTH, _read_header(mail, "Subject") or "Message")
    headers = {name: _read_header(mail, name) for name in _SHOWN}
    outline.add_text("\n".join(f"{name}: {value}" for name, value in headers.items() if value))
    parts = list(_list_parts(mail))
    body = _choose_body(parts)
    if body is not None:
        _add_body(body, outline)
    names = [name for part in parts if part is not body and (name := _read_file_name(part))]
    if names:
        outline.add_text("Attachments: " + ", ".join(names))
    for part in parts:
        if part.get_content_type() == "message/rfc822" and depth < _MAX_DEPTH:
            for inner in part.get_payload():
                if isinstance(inner, Message):
                    _add_mail(inner, outline, depth + 1)


def _list_parts(mail: _Mail) -> Iterator[_Mail]:
    """Yield the parts that are no containers, those of forwarded messages left out."""
    waiting = [mail]
    while waiting:
        part = waiting.pop()
        payload = part.get_payload()
        if part.get_content_maintype() == "multipart" and isinstance(payload, list):
            waiting += [inner for inner in reversed(payload) if isinstance(inner, Message)]
        else:
            yield part


def _choose_body(parts: list[_Mail]) -> "_Mail | None":
    """Return the text that a reader sees: the first HTML part, whose lists and tables say more, or else plain text."""
    for kind in ("text/html", "text/plain"):
        for part in parts:
            if part.get_content_type() == kind and _ask(part.get_content_disposition) != "attachment":
                return part
    return None


def _add_body(part: _Mail, outline: Outline) -> None:
    content = part.get_payload(decode=True)
    if not isinstance(content, bytes) or not content.strip():
        return
    try:
        text = decode_text(content, _ask(part.get_content_charset) or None)
    except (InvalidFile, UnsupportedFile):
        return  # what calls itself text is none; the headers still say something
    if part.get_content_type() == "text/html":
        load_markup(text, outline)
    else:
        outline.add_text(text)


def _read_header(mail: _Mail, name: str) -> str:
    """Return a header as one line, its encoded words decoded where they can be."""
    found: object = mail.get(name, "")
    raw = "".join(map(_decode_raw, decode_header(found))) if isinstance(found, Header) else str(found)
    raw = raw[:_MAX_HEADER_CHARS]
    try:
        return join_line(str(make_header(decode_header(raw))))
    except (MessageError, *_PARSER_FAULTS):
        return join_line(raw)


def _decode_raw(part: tuple[Any, Any]) -> str:
    """Return a piece of a header that is not ASCII: UTF-8 (RFC 6532), or what old programs send in its place."""
    content = part[0] if isinstance(part[0], bytes) else str(part[0]).encode()
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _read_date(mail: _Mail) -> dict[str, str]:
    try:
        return {"date": parsedate_to_datetime(_read_header(mail, "Date")).isoformat()}
    except (TypeError, ValueError, OverflowError):
        return {}  # no date, or none that a calendar knows


def _read_file_name(part: _Mail) -> str:
    return join_line(_ask(part.get_filename))[:_MAX_HEADER_CHARS]


def _ask(question: Callable[[], str | None]) -> str:
    """Return a parameter of a part's header, "" where there is none or none that can be read."""
    try:
        return question() or ""
    except _PARSER_FAULTS:
        return ""
