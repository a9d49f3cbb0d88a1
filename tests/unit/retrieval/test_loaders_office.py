"""Word, Excel and PowerPoint: what is read, and what a hostile package cannot do."""

import io
import zipfile
from pathlib import Path

import docx
import pytest

from core.errors import InvalidFile
from retrieval.document import Document
from retrieval.loaders import office_package
from retrieval.loaders.docx import load_docx
from retrieval.loaders.office import load_pptx, load_xlsx
from retrieval.loaders.outline import Outline

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
S = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
P = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
REL = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def relate(**targets: str) -> str:
    entries = "".join(
        f'<Relationship Id="r{number}" Type="{REL}/{kind.rstrip("0123456789")}" Target="{target}"/>'
        for number, (kind, target) in enumerate(targets.items(), start=1)
    )
    return (
        f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{entries}</Relationships>'
    )


def pack(parts: dict[str, str]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as package:
        for name, content in parts.items():
            package.writestr(name, content)
    return archive.getvalue()


def pack_docx(body: str, **parts: str) -> bytes:
    document = f"<w:document {W}><w:body>{body}</w:body></w:document>"
    return pack({"_rels/.rels": relate(officeDocument="word/document.xml"), "word/document.xml": document, **parts})


def read(load: object, data: bytes) -> Document:
    outline = Outline()
    load(data, outline)  # type: ignore[operator]
    return outline.build()


def paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def test_word_headings_lists_and_tables(tmp_path: Path) -> None:
    written = docx.Document()
    written.add_heading("Manual", 0)
    written.add_heading("Data", 1)
    written.add_paragraph("Before.")
    table = written.add_table(rows=2, cols=2)
    for cell, text in zip(
        (cell for row in table.rows for cell in row.cells), ("Part", "Price", "Reed", "£57"), strict=True
    ):
        cell.text = text
    written.add_heading("Steps", 1)
    written.add_paragraph("Open it.", style="List Number")
    written.add_paragraph("Close it.", style="List Number")
    written.add_paragraph("A point.", style="List Bullet")
    written.save(str(tmp_path / "a.docx"))

    document = read(load_docx, (tmp_path / "a.docx").read_bytes())

    assert [section.heading for section in document.sections] == ["Manual > Data", "Manual > Steps"]
    assert document.text == "Before.\n\nPart: Reed | Price: £57\n\n1. Open it.\n2. Close it.\n- A point."


def test_word_text_is_what_its_reader_sees() -> None:
    body = (
        f"<w:sdt><w:sdtContent>{paragraph('In a control.')}</w:sdtContent></w:sdt>"
        "<w:p><w:ins><w:r><w:t>Added</w:t></w:r></w:ins><w:del><w:r><w:delText>Gone</w:delText></w:r></w:del>"
        "<w:r><w:rPr><w:vanish/></w:rPr><w:t>Hidden</w:t></w:r><w:r><w:tab/><w:t>shown.</w:t></w:r></w:p>"
        f"<w:p><w:r><w:pict><w:txbxContent>{paragraph('In a box.')}</w:txbxContent></w:pict></w:r></w:p>"
    )
    assert read(load_docx, pack_docx(body)).text == "In a control.\n\nAdded shown.\n\nIn a box."


def test_a_footnote_stands_where_it_hangs() -> None:
    notes = f'<w:footnotes {W}><w:footnote w:id="2">{paragraph("Since 2021.")}</w:footnote></w:footnotes>'
    body = '<w:p><w:r><w:t>No plastic</w:t></w:r><w:r><w:footnoteReference w:id="2"/></w:r></w:p>'
    parts = {"word/footnotes.xml": notes, "word/_rels/document.xml.rels": relate(footnotes="footnotes.xml")}
    assert read(load_docx, pack_docx(body, **parts)).text == "No plastic (Since 2021.)"


def test_an_endnote_stands_where_it_hangs() -> None:
    kinds = ("footnote", "endnote")
    notes = {
        f"word/{kind}s.xml": f'<w:{kind}s {W}><w:{kind} w:id="2">{paragraph(kind)}</w:{kind}></w:{kind}s>'
        for kind in kinds
    }
    body = "".join(f'<w:p><w:r><w:t>See</w:t></w:r><w:r><w:{kind}Reference w:id="2"/></w:r></w:p>' for kind in kinds)
    related = relate(footnotes="footnotes.xml", endnotes="endnotes.xml")
    document = read(load_docx, pack_docx(body, **notes, **{"word/_rels/document.xml.rels": related}))
    assert document.text == "See (footnote)\n\nSee (endnote)"


def test_a_style_of_ones_own_that_is_based_on_a_heading_is_one() -> None:
    styles = (
        f'<w:styles {W}><w:style w:styleId="b"><w:name w:val="heading 2"/></w:style>'
        '<w:style w:styleId="x"><w:name w:val="Acme head"/><w:basedOn w:val="b"/></w:style>'
        '<w:style w:styleId="loop"><w:name w:val="Loop"/><w:basedOn w:val="loop"/></w:style></w:styles>'
    )
    body = (
        '<w:p><w:pPr><w:pStyle w:val="x"/></w:pPr><w:r><w:t>Head</w:t></w:r></w:p>'
        '<w:p><w:pPr><w:pStyle w:val="loop"/></w:pPr><w:r><w:t>Text</w:t></w:r></w:p>'
    )
    parts = {"word/styles.xml": styles, "word/_rels/document.xml.rels": relate(styles="styles.xml")}
    document = read(load_docx, pack_docx(body, **parts))
    assert [(section.heading, document.text) for section in document.sections] == [("Head", "Text")]


def pack_xlsx(sheet: str, *, styles: str = "", properties: str = "", after: str = "") -> bytes:
    return pack(
        {
            "_rels/.rels": relate(officeDocument="xl/workbook.xml"),
            "xl/workbook.xml": (
                f'<workbook {S} {R}>{properties}<sheets><sheet name="Prices" r:id="r1"/></sheets></workbook>'
            ),
            "xl/_rels/workbook.xml.rels": relate(worksheet="s.xml", sharedStrings="t.xml", styles="y.xml"),
            "xl/s.xml": f"<worksheet {S}><sheetData>{sheet}</sheetData>{after}</worksheet>",
            "xl/t.xml": f"<sst {S}><si><t>Part</t></si><si><r><t>Re</t></r><r><t>ed</t></r></si></sst>",
            "xl/y.xml": f"<styleSheet {S}>{styles}</styleSheet>",
        }
    )


def test_a_sheet_is_a_section_and_its_cells_keep_their_names() -> None:
    sheet = (
        '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="C1" t="inlineStr"><is><t>From</t></is></c></row>'
        '<row r="2"><c r="A2" t="s"><v>1</v></c><c r="C2" s="1"><v>46054</v></c></row>'
        '<row r="4"><c r="A4"><v>0.30000000000000004</v></c></row>'
    )
    styles = '<cellXfs><xf numFmtId="0"/><xf numFmtId="14"/></cellXfs>'
    document = read(load_xlsx, pack_xlsx(sheet, styles=styles))
    assert document.sections[0].heading == "Prices"
    assert document.text == "Part: Reed | From: 2026-02-01\n\n0.3"


@pytest.mark.parametrize(("properties", "day"), [("", "2026-02-01"), ('<workbookPr date1904="1"/>', "2030-02-02")])
def test_dates_count_from_the_books_own_day_and_hours_beyond_a_day_stay_hours(properties: str, day: str) -> None:
    values = [(1, "46054"), (2, "1.0625"), (3, "0.50001"), (2, "-0.5"), (4, "0.5"), (1, "2958465.5")]
    cells = "".join(f'<c s="{style}"><v>{value}</v></c>' for style, value in values)
    formats = "".join(f'<xf numFmtId="{number}"/>' for number in (0, 14, 170, 46, 171))
    styles = (
        '<numFmts><numFmt numFmtId="170" formatCode="[h]:mm"/><numFmt numFmtId="171" formatCode="[Red]hh:mm"/>'
        f"</numFmts><cellXfs>{formats}</cellXfs>"
    )
    document = read(load_xlsx, pack_xlsx(f"<row>{cells}</row>", styles=styles, properties=properties))
    assert document.text == f"{day} | 25:30 | 12:00:01 | -12:00 | 12:00 | 2958465.5"


def test_a_cell_merged_downwards_is_repeated_in_every_row() -> None:
    rows = [
        ["Region", "City", "Sales"],
        ["North", "Kiel", "5"],
        ["", "Emden", "7"],
        ["South", "Ulm", "9"],
        ["", "Aalen"],
    ]
    sheet = "".join(
        f'<row r="{number}">'
        + "".join(f'<c r="{"ABC"[place]}{number}" t="str"><v>{cell}</v></c>' for place, cell in enumerate(row))
        + "</row>"
        for number, row in enumerate(rows, start=1)
    )
    after = '<mergeCells><mergeCell ref="A2:A3"/><mergeCell ref="C4:C5"/><mergeCell ref="A5:C5"/></mergeCells>'
    assert read(load_xlsx, pack_xlsx(sheet, after=after)).text == (
        "Region: North | City: Kiel | Sales: 5\nRegion: North | City: Emden | Sales: 7\n"
        "Region: South | City: Ulm | Sales: 9\nCity: Aalen | Sales: 9"
    )


def test_a_slide_is_a_page_with_its_title_as_heading() -> None:
    def shape(kind: str, text: str) -> str:
        place = f'<p:nvSpPr><p:nvPr><p:ph type="{kind}"/></p:nvPr></p:nvSpPr>'
        return f"<p:sp>{place}<p:txBody><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp>"

    def slide(*shapes: str) -> str:
        return f"<p:sld {P} {A}><p:cSld><p:spTree>{''.join(shapes)}</p:spTree></p:cSld></p:sld>"

    ids = '<p:sldId id="256" r:id="r1"/><p:sldId id="257" r:id="r2"/>'
    data = pack(
        {
            "_rels/.rels": relate(officeDocument="ppt/p.xml"),
            "ppt/p.xml": f"<p:presentation {P} {R}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
            "ppt/_rels/p.xml.rels": relate(slide1="slides/1.xml", slide2="slides/2.xml"),
            "ppt/slides/1.xml": slide(shape("title", "Plan"), shape("body", "We begin."), shape("sldNum", "1")),
            "ppt/slides/_rels/1.xml.rels": relate(notesSlide="../notes/1.xml"),
            "ppt/notes/1.xml": slide(shape("body", "Say hello.")),
            "ppt/slides/2.xml": slide(shape("body", "We end.")),
        }
    )
    document = read(load_pptx, data)
    assert [(section.page, section.heading) for section in document.sections] == [(1, "Plan"), (2, "Slide 2")]
    assert document.text == "We begin.\n\nSay hello.\n\nWe end."


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(office_package, "MAX_XML_BYTES", 10_000)
    with pytest.raises(InvalidFile, match="unpacks to"):
        read(load_docx, pack_docx(paragraph("x" * 20_000)))


def test_a_bomb_is_refused_whatever_its_part_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(office_package, "MAX_XML_BYTES", 10_000)
    document = f"<w:document {W}><w:body>{paragraph('x' * 20_000)}</w:body></w:document>"
    with pytest.raises(InvalidFile, match="unpacks to more than"):
        read(load_docx, pack({"_rels/.rels": relate(officeDocument="word/main.bin"), "word/main.bin": document}))


def test_a_part_may_not_be_read_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = '<p:sldId id="256" r:id="r1"/>' * 100
    slide = f"<p:sld {P} {A}><a:p><a:t>{'words ' * 200}</a:t></a:p></p:sld>"
    parts = {
        "_rels/.rels": relate(officeDocument="ppt/p.xml"),
        "ppt/p.xml": f"<p:presentation {P} {R}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
        "ppt/_rels/p.xml.rels": relate(slide1="slides/1.xml"),
        "ppt/slides/1.xml": slide,
    }
    assert read(load_pptx, pack(parts)).text
    monkeypatch.setattr(office_package, "MAX_XML_BYTES", 50_000)
    with pytest.raises(InvalidFile, match="unpacks to more than"):
        read(load_pptx, pack(parts))


@pytest.mark.parametrize("entity", ['SYSTEM "file:///etc/passwd"', '"boom"'])
def test_a_part_with_a_dtd_is_refused(entity: str) -> None:
    document = f"<!DOCTYPE w [<!ENTITY f {entity}>]><w:document {W}><w:body>{paragraph('&f;')}</w:body></w:document>"
    data = pack({"_rels/.rels": relate(officeDocument="word/document.xml"), "word/document.xml": document})
    with pytest.raises(InvalidFile, match=r"DTD|not XML"):
        read(load_docx, data)


def test_a_relationship_cannot_leave_the_package() -> None:
    data = pack({"_rels/.rels": relate(officeDocument="../../../../etc/passwd")})
    with pytest.raises(InvalidFile, match="which part is the document"):
        read(load_docx, data)


def test_a_flipped_byte_is_a_damaged_file() -> None:
    data = bytearray(pack_docx("".join(paragraph(str(number)) for number in range(300))))
    data[data.index(b"word/document.xml") + 60] ^= 0xFF
    with pytest.raises(InvalidFile, match="damaged"):
        read(load_docx, bytes(data))
