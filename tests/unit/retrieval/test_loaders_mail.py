"""E-mail: what its reader sees, decoded; attachments are named, forwarded messages are read."""

import contextlib
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidFile, UnsupportedFile
from retrieval.document import Document
from retrieval.loaders import load_document
from retrieval.loaders.mail import load_mail
from retrieval.loaders.outline import Outline


def read(data: bytes) -> Document:
    outline = Outline()
    load_mail(data, outline)
    return outline.build()


def write(subject: str = "Prüfung der Pumpe", text: str = "Guten Tag,\n\ndie Pumpe läuft.\n") -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = subject, "Ada <ada@acme.example>", "service@acme.example"
    mail["Date"] = "Fri, 16 Dec 2022 17:04:16 -0500"
    mail.set_content(text)
    return mail


def test_subject_people_and_text_are_read() -> None:
    document = read(bytes(write()))
    assert [section.heading for section in document.sections] == ["Prüfung der Pumpe"]
    assert document.text.startswith("From: Ada <ada@acme.example>\nTo: service@acme.example\nDate: Fri, 16 Dec 2022")
    assert document.text.endswith("Guten Tag,\n\ndie Pumpe läuft.")
    assert document.attributes == {
        "subject": "Prüfung der Pumpe",
        "from": "Ada <ada@acme.example>",
        "to": "service@acme.example",
        "date": "2022-12-16T17:04:16-05:00",
    }


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_headers_that_were_sent_unencoded_are_read(encoding: str) -> None:
    text = (
        "Subject: Prüfung der Pumpe – Köln\nFrom: Jürgen <j@acme.example>\n"
        "To: =?utf-8?q?B=C3=BCro?= <b@acme.example>\n\nText.\n"
    )
    document = read(text.encode(encoding))
    assert document.sections[0].heading == "Prüfung der Pumpe – Köln"
    assert document.text == "From: Jürgen <j@acme.example>\nTo: Büro <b@acme.example>\n\nText."
    assert document.attributes["from"] == "Jürgen <j@acme.example>"


def test_html_is_read_before_plain_text_and_attachments_are_named() -> None:
    mail = write()
    mail.add_alternative("<h1>Report</h1><table><tr><th>Part<th>Price<tr><td>Seal<td>4</table>", subtype="html")
    mail.add_attachment(b"%PDF-1.7", maintype="application", subtype="pdf", filename="Übersicht.pdf")
    mail.add_attachment("attached words", filename="notes.txt")
    document = read(bytes(mail))
    assert document.sections[-1].heading == "Prüfung der Pumpe > Report"
    assert "Part: Seal | Price: 4" in document.text
    assert "läuft" not in document.text
    assert "attached words" not in document.text
    assert "Attachments: Übersicht.pdf, notes.txt" in document.text


def test_a_forwarded_message_stands_below() -> None:
    mail = write("Fwd: leak")
    mail.add_attachment(write("leak", "It drips."))
    document = read(bytes(mail))
    assert document.sections[-1].heading == "Fwd: leak > leak"
    assert document.text.endswith("It drips.")


def test_real_mail_is_read(shared_data: Path) -> None:
    document = load_document(shared_data / "documents" / "other" / "fake-email.eml")
    assert document.sections[0].heading == "Test Email"
    assert document.text.endswith("Important points:\n\n- Roses are red\n- Violets are blue")


def test_what_has_no_header_of_a_message_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "note.eml"
    path.write_text("just a note, without any header\n")
    with pytest.raises(InvalidFile, match="not one"):
        load_document(path)


@pytest.mark.parametrize(
    "header",
    [
        b"Subject: =?mine?b?!!!?=",
        b"Subject: =?utf-8?b?gICA?=",
        b"Subject: \xff\xfe\x00",
        b"Subject: " + b"=?utf-8?q?x?= " * 5000,
        b"Subject: s\nDate: Fri, 99 Foo 99999 99:99:99 +9999",
        b"Subject: s\nContent-Type: multipart/mixed; boundary=",
        b"Subject: s\nContent-Type: text/plain; charset*=x''%ff",
        b"Subject: s\nContent-Type: text/plain; charset=undefined",
        b'Subject: s\nContent-Type: text/plain; charset="a\0b"',
        b"Subject: s\nContent-Transfer-Encoding: base64",
        b"Subject: s\nContent-Type: text/plain; charset*=x''y; charset*0*=z''%FF",
        b"Subject: s\nContent-Disposition: attachment; filename*=mine''%80; filename*0*=x''%FF",
    ],
)
def test_odd_headers_break_nothing(header: bytes) -> None:
    assert read(header + b"\nFrom: a@b\n\nWords of the message.\n").sections


def test_headers_that_the_parser_cannot_read_are_refused() -> None:
    boundary = b"Content-Type: multipart/mixed; boundary*=x''y; boundary*0*=z''%FF"
    with pytest.raises(InvalidFile, match="contradict"):
        read(b"Subject: s\n" + boundary + b"\n\nWords.\n")


def test_messages_in_messages_end() -> None:
    data = b"Subject: s\nContent-Type: message/rfc822\n\n" * 200 + b"Subject: last\n\nWords.\n"
    assert len(read(data).sections) <= 20


@given(
    st.lists(
        st.sampled_from([*b"Subject: From:=?utf-8?b?\n\r \x00\xff--boundary;charset=multipart/mixed"]), max_size=300
    )
)
def test_noise_breaks_nothing(noise: list[int]) -> None:
    with contextlib.suppress(InvalidFile, UnsupportedFile):
        assert read(b"From: a\nSubject: " + bytes(noise)).text
