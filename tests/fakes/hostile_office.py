"""Builds Word files that explode, point outside, nest, or are not what they say."""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
TYPES = {"[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>'}
RELATIONSHIP_TYPES = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_LINKS = "word/_rels/document.xml.rels"
_TEXT = "<w:p><w:r><w:t>A line of words.</w:t></w:r></w:p>"


def relate(**targets: str) -> str:
    """Return a list of relationships, from kind (a number at its end is dropped) to target."""
    entries = "".join(
        f'<Relationship Id="r{number}" Type="{RELATIONSHIP_TYPES}/{kind.rstrip("0123456789")}" Target="{target}"/>'
        for number, (kind, target) in enumerate(targets.items(), start=1)
    )
    start = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    return f"{start}{entries}</Relationships>"


def pack(parts: Mapping[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip archive of the parts."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as package:
        for name, content in parts.items():
            package.writestr(name, content)
    return archive.getvalue()


def pack_docx(body: str, parts: Mapping[str, str] | None = None, main: str = "word/document.xml") -> bytes:
    """Return a Word file of a body, with further parts."""
    return pack({**_start(main), "word/document.xml": write_document(body), **(parts or {})})


def write_document(body: str) -> str:
    """Return the main part."""
    return f"<w:document {W}><w:body>{body}</w:body></w:document>"


def pack_raw(document: str | bytes, **parts: str) -> bytes:
    """Return a Word file whose main part is given whole."""
    return pack({**_start(), "word/document.xml": document, **parts})


def _start(main: str = "word/document.xml") -> dict[str, str]:
    return {**TYPES, "_rels/.rels": relate(officeDocument=main)}


def _bomb(name: str, size: int, document: str = "") -> bytes:
    """Return a Word file with one part of spaces that is written in pieces."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as package:
        package.writestr(*next(iter(TYPES.items())))
        package.writestr("_rels/.rels", relate(officeDocument=document or name))
        with package.open(name, "w", force_zip64=True) as part:
            part.write(f"<w:document {W}><w:body>".encode())
            for _ in range(size // 2**20):
                part.write(b" " * 2**20)
            part.write(b"</w:body></w:document>")
    return archive.getvalue()


def _lying_bomb() -> bytes:
    """Return a bomb whose directory says that it unpacks to a hundred bytes."""
    data = bytearray(_bomb("word/document.xml", 64 * 2**20))
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        size = package.getinfo("word/document.xml").file_size
    return bytes(data).replace(struct.pack("<I", size), struct.pack("<I", 100))


def _bomb_of_elements() -> bytes:
    return pack_docx("<w:p><w:r><w:t>a</w:t></w:r></w:p>" * 1_000_000)


def _bomb_of_text() -> bytes:
    return pack_docx(f"<w:p><w:r><w:t>{'ab ' * 3_000_000}</w:t></w:r></w:p>" * 6)


def _many_parts() -> bytes:
    return pack({**TYPES, **{f"word/{number}.xml": "<a/>" for number in range(25_000)}})


def _laughs(document: str = write_document("<w:p><w:r><w:t>&l9;</w:t></w:r></w:p>")) -> str:
    entities = '<!ENTITY l0 "lol">' + "".join(
        f'<!ENTITY l{number} "{f"&l{number - 1};" * 10}">' for number in range(1, 10)
    )
    return f"<!DOCTYPE w [{entities}]>{document}"


def _quadratic() -> str:
    document = write_document(f"<w:p><w:r><w:t>{'&a;' * 50_000}</w:t></w:r></w:p>")
    return f'<!DOCTYPE w [<!ENTITY a "{"a" * 50_000}">]>{document}'


def _entity(declaration: str) -> bytes:
    document = write_document("<w:p><w:r><w:t>&f;</w:t></w:r></w:p>")
    return pack_raw(f"<!DOCTYPE w [{declaration}]>{document}")


def _nest(start: str, end: str, depth: int) -> str:
    return start * depth + _TEXT + end * depth


def _locked_container() -> bytes:
    return bytes.fromhex("d0cf11e0a1b11ae1") + bytes(500) + "EncryptedPackage".encode("utf-16-le") + bytes(2000)


def _locked_parts() -> bytes:
    """Set the bit that says «encrypted» in both headers of every part."""
    data = bytearray(pack_docx(_TEXT))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(magic)
        while place >= 0:
            data[place + offset] |= 1
            place = data.find(magic, place + 4)
    return bytes(data)


def _change(old: bytes, new: bytes) -> bytes:
    return pack_docx(_TEXT).replace(old, new)


def _ring_of_styles() -> bytes:
    styles = "".join(
        f'<w:style w:styleId="S{number}"><w:name w:val="s"/><w:basedOn w:val="S{(number + 1) % 3}"/></w:style>'
        for number in range(3)
    )
    return pack_docx(
        '<w:p><w:pPr><w:pStyle w:val="S0"/></w:pPr><w:r><w:t>Words</w:t></w:r></w:p>',
        {_LINKS: relate(styles="styles.xml"), "word/styles.xml": f"<w:styles {W}>{styles}</w:styles>"},
    )


def _own_parts() -> bytes:
    """Every part that the document asks for is the document."""
    targets = dict.fromkeys(("styles", "numbering", "footnotes"), "document.xml")
    return pack_docx(_TEXT, {_LINKS: relate(**targets)})


def _vast_spans() -> bytes:
    cell = '<w:tc><w:tcPr><w:gridSpan w:val="999999999"/></w:tcPr><w:p><w:r><w:t>x</w:t></w:r></w:p></w:tc>'
    return pack_docx(f"<w:tbl>{f'<w:tr>{cell * 100}</w:tr>' * 2000}</w:tbl>")


def _vast_numbers() -> bytes:
    properties = '<w:pPr><w:numPr><w:ilvl w:val="99999999999999999999"/><w:numId w:val="²"/></w:numPr></w:pPr>'
    return pack_docx(
        f'<w:p>{properties}<w:r><w:t>x</w:t></w:r></w:p><w:p><w:pPr><w:outlineLvl w:val="٣"/></w:pPr></w:p>'
    )


def _noise(length: int) -> bytes:
    return random.Random(0).randbytes(length)


def _names(names: Iterable[str]) -> bytes:
    return pack(
        {
            **_start(),
            "word/document.xml": write_document(_TEXT),
            **dict.fromkeys(names, "outside"),
        }
    )


DOCX_TRAPS: Mapping[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "spaces": lambda: b" \r\n\t" * 1000,
    "noise": lambda: _noise(50_000),
    "magic_and_noise": lambda: b"PK\x03\x04" + _noise(50_000),
    "end_only": lambda: b"PK\x05\x06" + bytes(18),
    "text_misnamed": lambda: b"This is a note.\n",
    "archive_misnamed": lambda: pack({"readme.txt": "words"}),
    "sheet_misnamed": lambda: pack({**TYPES, "xl/workbook.xml": "<workbook/>"}),
    "locked_container": _locked_container,
    "locked_parts": _locked_parts,
    "bomb": lambda: _bomb("word/document.xml", 512 * 2**20),
    "bomb_by_another_name": lambda: _bomb("word/document.bin", 512 * 2**20),
    "bomb_that_lies": _lying_bomb,
    "bomb_of_elements": _bomb_of_elements,
    "bomb_of_text": _bomb_of_text,
    "bomb_in_a_bomb": lambda: pack({**TYPES, "word/a.docx": _bomb("word/document.xml", 2**27)}),
    "many_parts": _many_parts,
    "laughs": lambda: pack_raw(_laughs()),
    "laughs_in_the_relationships": lambda: pack_docx(_TEXT, {_LINKS: _laughs(relate(styles="&l9;"))}),
    "laughs_in_the_styles": lambda: pack_docx(
        _TEXT, {_LINKS: relate(styles="styles.xml"), "word/styles.xml": _laughs(f"<w:styles {W}>&l9;</w:styles>")}
    ),
    "laughs_in_an_attribute": lambda: pack_raw(_laughs(f'<w:document {W} a="&l9;"/>')),
    "laughs_in_sixteen_bits": lambda: pack_raw(_laughs().encode("utf-16")),
    "quadratic_entity": lambda: pack_raw(_quadratic()),
    "entity_of_itself": lambda: _entity('<!ENTITY f "&f;">'),
    "entity_from_a_file": lambda: _entity('<!ENTITY f SYSTEM "file:///etc/passwd">'),
    "entity_from_a_device": lambda: _entity('<!ENTITY f SYSTEM "file:///dev/zero">'),
    "entity_from_the_network": lambda: _entity('<!ENTITY f SYSTEM "http://127.0.0.1:9/x">'),
    "entity_of_parameters": lambda: _entity('<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;'),
    "foreign_dtd": lambda: pack_raw(f'<!DOCTYPE w SYSTEM "file:///etc/passwd">{write_document(_TEXT)}'),
    "nested_controls": lambda: pack_docx(_nest("<w:sdt><w:sdtContent>", "</w:sdtContent></w:sdt>", 50_000)),
    "nested_tables": lambda: pack_docx(_nest("<w:tbl><w:tr><w:tc>", "</w:tc></w:tr></w:tbl>", 80)),
    "nested_runs": lambda: pack_docx(f"<w:p>{'<w:r>' * 200}<w:t>deep</w:t>{'</w:r>' * 200}</w:p>"),
    "nested_without_end": lambda: pack_raw(f"<w:document {W}>" + "<w:body>" * 200_000),
    "ring_of_styles": _ring_of_styles,
    "parts_of_itself": _own_parts,
    "relationships_in_a_ring": lambda: pack({**_start("_rels/.rels"), "word/x.xml": ""}),
    "no_relationships": lambda: pack({**TYPES, "word/document.xml": write_document(_TEXT)}),
    "no_document": lambda: pack({**_start("word/x.xml"), "word/y.xml": ""}),
    "document_outside": lambda: pack_docx(_TEXT, main="../../../../etc/passwd"),
    "document_of_nothing": lambda: pack_docx(""),
    "document_of_noise": lambda: pack_raw(_noise(100_000)),
    "document_in_unknown_letters": lambda: pack_raw(f'<?xml version="1.0" encoding="mine"?>{write_document(_TEXT)}'),
    "document_in_wrong_letters": lambda: pack_raw(write_document(_TEXT.replace("words", "\xe9\xff")).encode("latin-1")),
    "vast_spans": _vast_spans,
    "vast_numbers": _vast_numbers,
    "vast_attribute": lambda: pack_raw(f'<w:document {W} a="{"x" * 20_000_000}"/>'),
    "packed_by_another_method": lambda: pack(
        {**_start(), "word/document.xml": write_document(_TEXT)}, zipfile.ZIP_LZMA
    ),
    "wrong_checksum": lambda: _change(struct.pack("<I", zlib.crc32(write_document(_TEXT).encode())), b"wrong"[:4]),
    "unknown_version": lambda: _change(b"PK\x01\x02\x14\x03\x14\x00", b"PK\x01\x02\x14\x03\xff\x00"),
    "names_outside": lambda: _names(("../../outside.txt", "/etc/outside", "word/../../outside", "C:\\outside")),
    "names_unseen": lambda: _names(("word/a\nb.xml", "word/\x1b[2J.xml", "word/\u202egpj.xml", "word/" + "n" * 60_000)),
}  # fmt: skip
