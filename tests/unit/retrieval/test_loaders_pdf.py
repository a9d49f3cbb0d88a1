"""PDF: paragraphs, headings, tables and pages from where the signs stand. The files are written here by reportlab."""

import io
from collections.abc import Callable

import pytest
from reportlab.lib import pagesizes, pdfencrypt
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate, Table

from core.errors import InvalidFile
from retrieval.document import Document
from retrieval.loaders.outline import Outline
from retrieval.loaders.pdf import load_pdf

STYLES = getSampleStyleSheet()
PROSE = (
    "The pump hangs on a rope and never on its cable, because the cable is not made for the weight of a wet pump. " * 3
)


def read(data: bytes) -> Document:
    outline = Outline()
    load_pdf(data, outline)
    return outline.build()


def flow(*story: object) -> bytes:
    target = io.BytesIO()
    SimpleDocTemplate(target, pagesize=pagesizes.A4).build(list(story))
    return target.getvalue()


def draw(*pages: Callable[[Canvas], object], **options: object) -> bytes:
    target = io.BytesIO()
    canvas = Canvas(target, pagesize=pagesizes.A4, **options)
    for page in pages:
        page(canvas)
        canvas.showPage()
    canvas.save()
    return target.getvalue()


def lines(canvas: Canvas, texts: list[str], x: float = 72, y: float = 700) -> None:
    for number, text in enumerate(texts):
        canvas.drawString(x, y - 14 * number, text)


def test_wrapped_lines_are_one_paragraph() -> None:
    document = read(flow(Paragraph(PROSE, STYLES["Normal"])))
    assert document.text == PROSE.strip()


def test_larger_and_bold_lines_are_headings_and_go_on_over_the_page() -> None:
    story = [
        *(Paragraph("Manual", STYLES["Heading1"]), Paragraph("Setting up", STYLES["Heading2"])),
        *(Paragraph(PROSE, STYLES["Normal"]), PageBreak(), Paragraph(PROSE, STYLES["Normal"])),
    ]
    document = read(flow(*story))
    assert [(section.page, section.heading) for section in document.sections] == [
        (1, "Manual > Setting up"),
        (2, "Manual > Setting up"),
    ]
    assert "Manual" not in document.text


def test_table_values_keep_their_names_also_on_the_next_page() -> None:
    story = [
        *(Table([["Part", "Price"], ["Reed", "£57"], ["Lock", "£98"]], colWidths=150), PageBreak()),
        Table([["Weir", "£246"], ["Brook", "£184"]], colWidths=150),
    ]
    assert read(flow(*story)).text == (
        "Part: Reed | Price: £57\nPart: Lock | Price: £98\n\nPart: Weir | Price: £246\nPart: Brook | Price: £184"
    )


def test_list_items_are_lines() -> None:
    items = ["You need these:", "1. a bucket of clean water;", "2. a spanner that fits the nut.", "\u2022 a cloth"]
    assert read(draw(lambda canvas: lines(canvas, items))).text == (
        "You need these:\n1. a bucket of clean water;\n2. a spanner that fits the nut.\n- a cloth"
    )


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["a submer-", "sible pump"], "a submersible pump"),
        (["a well-known pump and a well-", "known rope"], "a well-known pump and a well-known rope"),
        (["see https://acme.example/", "pumps"], "see https://acme.example/pumps"),
    ],
)
def test_words_that_a_line_end_broke_are_joined(texts: list[str], wanted: str) -> None:
    assert read(draw(lambda canvas: lines(canvas, texts))).text == wanted


def test_columns_are_read_one_after_the_other() -> None:
    def page(canvas: Canvas) -> None:
        lines(canvas, ["The left column begins here and", "goes on for a second line, which", "ends."])
        lines(canvas, ["The right column begins here", "and ends."], x=320)

    text = read(draw(page)).text
    assert text.index("which ends.") < text.index("The right column begins here and ends.")


def test_page_numbers_and_running_heads_are_dropped() -> None:
    def page(number: int) -> Callable[[Canvas], None]:
        def paint(canvas: Canvas) -> None:
            canvas.drawString(72, 800, f"Acme manual, edition {number}")
            lines(canvas, [f"Text of page {word}." for word in "abcdefgh"[number : number + 6]])
            canvas.drawString(290, 30, f"Page {number} of 3")

        return paint

    text = read(draw(*map(page, (1, 2, 3)))).text
    assert "Text of page b." in text
    assert "Acme manual" not in text
    assert "of 3" not in text


def test_pages_of_a_single_line_are_no_running_heads() -> None:
    pages = [lambda canvas, number=number: canvas.drawString(72, 700, f"Slide {number}") for number in range(1, 5)]
    assert read(draw(*pages)).text == "Slide 1\n\nSlide 2\n\nSlide 3\n\nSlide 4"


def test_a_page_turned_by_a_quarter_is_read_upright() -> None:
    def page(canvas: Canvas) -> None:
        canvas.rotate(90)
        lines(canvas, ["A turned page holds", "two lines."], y=-200)
        canvas.rotate(-90)

    assert read(draw(page)).text == "A turned page holds two lines."


def test_a_password_is_asked_for() -> None:
    locked = draw(lambda canvas: canvas.drawString(72, 700, "Secret"), encrypt=pdfencrypt.StandardEncryption("open"))
    with pytest.raises(InvalidFile, match="password"):
        read(locked)


def test_a_scan_is_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidFile, match="OCR"):
        read(draw(lambda canvas: canvas.rect(72, 72, 200, 200)))
