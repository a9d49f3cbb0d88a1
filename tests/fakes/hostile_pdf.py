"""Builds PDF files that loop, explode, lie about themselves, or are locked."""

import io
import zlib
from collections.abc import Callable, Mapping, Sequence

from reportlab.lib import pdfencrypt
from reportlab.pdfgen.canvas import Canvas

_FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
_CATALOG = b"<< /Type /Catalog /Pages 2 0 R >>"
_TREE = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"


def build_pdf(objects: Sequence[bytes], trailer: bytes = b"/Root 1 0 R", start: int | None = None) -> bytes:
    """Return a PDF of objects numbered from 1, with a right table of where they lie.

    Args:
        objects: Their content.
        trailer: More of the trailer's entries.
        start: Where the table is said to begin, if it is not to be true.
    """
    data = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    data += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    begins = table if start is None else start
    data += b"trailer\n<< /Size %d %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, begins)
    return bytes(data)


def write_stream(content: bytes, entries: bytes = b"", length: int | None = None) -> bytes:
    """Return a stream object, its length a lie where one is given."""
    said = len(content) if length is None else length
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (said, entries, content)


def build_page(content: bytes, *more: bytes, page: bytes = b"", resources: bytes = b"/Font << /F1 5 0 R >>") -> bytes:
    """Return a PDF of one page; `content` is its stream object 4, `more` are the objects from 6 on."""
    first = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources << %s >> %s >>" % (
        resources,
        page,
    )
    return build_pdf([_CATALOG, _TREE, first, content, _FONT, *more])


def write_text(text: bytes) -> bytes:
    """Return the operators that show a line."""
    return b"BT /F1 12 Tf 72 700 Td (%s) Tj ET\n" % text


def compress(pattern: bytes, total_bytes: int) -> bytes:
    """Return a repeated pattern, deflated without ever being whole in memory."""
    packer = zlib.compressobj(6)
    piece = pattern * max(1, 2**20 // len(pattern))
    return b"".join(packer.compress(piece) for _ in range(total_bytes // len(piece))) + packer.flush()


def _flate_bomb(pattern: bytes, total_bytes: int) -> bytes:
    return build_page(write_stream(compress(pattern, total_bytes), b"/Filter /FlateDecode"))


def _double_bomb() -> bytes:
    packed = zlib.compress(compress(b"\0", 256 * 2**20), 9)
    return build_page(write_stream(packed, b"/Filter [/FlateDecode /FlateDecode]"))


def _lock() -> bytes:
    target = io.BytesIO()
    canvas = Canvas(target, encrypt=pdfencrypt.StandardEncryption("user", "owner", strength=128))
    canvas.drawString(72, 700, "locked")
    canvas.save()
    return target.getvalue()


def _tree(pages: bytes, *more: bytes) -> bytes:
    return build_pdf([_CATALOG, pages, *more])


def _deep_tree() -> bytes:
    levels = 20_000
    kids = [
        b"<< /Type /Pages /Kids [%d 0 R] /Count 1 /Parent %d 0 R >>" % (number + 1, number - 1)
        for number in range(2, levels)
    ]
    return build_pdf([_CATALOG, *kids, b"<< /Type /Page /Parent %d 0 R >>" % (levels - 1)])


def _own_form() -> bytes:
    form = write_stream(b"/X1 Do /X1 Do", b"/Type /XObject /Subtype /Form /Resources << /XObject << /X1 6 0 R >> >>")
    return build_page(write_stream(b"/X1 Do"), form, resources=b"/XObject << /X1 6 0 R >>")


def _form_pyramid() -> bytes:
    """Thirty forms, each of which draws the next one ten times."""
    forms = [
        write_stream(
            b"/X Do " * 10, b"/Type /XObject /Subtype /Form /Resources << /XObject << /X %d 0 R >> >>" % (number + 1)
        )
        for number in range(6, 36)
    ]
    last = write_stream(write_text(b"deep"), b"/Type /XObject /Subtype /Form /Resources << /Font << /F1 5 0 R >> >>")
    return build_page(write_stream(b"/X Do"), *forms, last, resources=b"/XObject << /X 6 0 R >>")


def _many_pages(count: int) -> bytes:
    kids = b" ".join(b"%d 0 R" % number for number in range(3, count + 3))
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 10 10] >>"
    return build_pdf([_CATALOG, b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count), *[page] * count])


def _odd_glyphs() -> bytes:
    """Text at places and in sizes that are no numbers to reckon with."""
    places = (b"1e38 0 0 1e38 1e38 1e38", b"0 0 0 0 0 0", b"1e-38 0 0 1e-38 -1e38 0", b"99999999999999999999 0 0 1 0 0")
    content = b"".join(b"q %s cm %s Q\n" % (place, write_text(b"odd %d" % len(place))) for place in places)
    return build_page(write_stream(content + b"BT /F1 1e38 Tf (x) Tj ET BT /F1 0 Tf (y) Tj ET BT /F1 -9 Tf (z) Tj ET"))


def _odd_unicode() -> bytes:
    """A font whose signs stand for lone surrogates and for what lies beyond Unicode."""
    mapping = (
        b"/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <00> <FF> endcodespacerange\n"
        b"4 beginbfchar <41> <D800> <42> <DFFF> <43> <FFFFFFFF> <44> <0000> endbfchar\n"
        b"1 beginbfrange <45> <FF> <D800> endbfrange endcmap end end"
    )
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 7 0 R >>"
    return build_page(write_stream(write_text(b"ABCDEFGH" * 50)), font, write_stream(mapping)).replace(
        b"/F1 5 0 R", b"/F1 6 0 R"
    )


_TEXT = write_text(b"A line of words.")
_GOOD = build_page(write_stream(_TEXT))

PDF_TRAPS: Mapping[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "zeros": lambda: bytes(100_000),
    "header_only": lambda: b"%PDF-1.7\n",
    "header_and_noise": lambda: b"%PDF-1.7\n" + bytes(range(256)) * 400,
    "text_misnamed": lambda: b"This is a note, not a PDF file.\n",
    "picture_misnamed": lambda: b"\x89PNG\r\n\x1a\n" + bytes(1000),
    "locked": _lock,
    "locked_by_an_unknown_filter": lambda: _GOOD.replace(b"/Root 1 0 R", b"/Root 1 0 R /Encrypt << /Filter /Mine >>"),
    "no_pages": lambda: _tree(b"<< /Type /Pages /Kids [] /Count 0 >>"),
    "no_root": lambda: build_pdf([_CATALOG, _TREE], trailer=b""),
    "tree_of_itself": lambda: _tree(b"<< /Type /Pages /Kids [2 0 R] /Count 1 >>"),
    "tree_of_itself_twice": lambda: _tree(b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 2000000000 >>"),
    "tree_in_a_ring": lambda: _tree(
        b"<< /Type /Pages /Kids [3 0 R] /Count 9 >>", b"<< /Type /Pages /Kids [2 0 R] /Count 9 /Parent 2 0 R >>"
    ),
    "tree_of_twenty_thousand_levels": _deep_tree,
    "page_whose_parent_is_itself": lambda: build_page(write_stream(_TEXT), page=b"/Parent 3 0 R"),
    "two_billion_pages": lambda: _tree(b"<< /Type /Pages /Kids [3 0 R] /Count 2147483647 >>", b"<< /Type /Page >>"),
    "minus_one_page": lambda: _tree(b"<< /Type /Pages /Kids [3 0 R] /Count -1 >>", b"<< /Type /Page >>"),
    "six_thousand_pages": lambda: _many_pages(6000),
    "flate_bomb_of_zeros": lambda: _flate_bomb(b"\0", 512 * 2**20),
    "flate_bomb_of_text": lambda: _flate_bomb(_TEXT, 128 * 2**20),
    "flate_bomb_of_states": lambda: _flate_bomb(b"q ", 64 * 2**20),
    "flate_bomb_in_flate": _double_bomb,
    "table_far_away": lambda: build_pdf([_CATALOG, _TREE], start=2**40),
    "table_below_zero": lambda: build_pdf([_CATALOG, _TREE], start=-5),
    "table_before_itself": lambda: build_pdf([_CATALOG, _TREE], trailer=b"/Root 1 0 R /Prev 60"),
    "arrays_in_arrays": lambda: build_pdf([_CATALOG, _TREE, b"[" * 200_000]),
    "names_in_names": lambda: build_pdf([b"<< /Type /Catalog /Pages " + b"<< /A " * 100_000, _TREE]),
    "root_of_itself": lambda: build_pdf([b"1 0 R", _TREE]),
    "reference_in_a_ring": lambda: build_pdf([_CATALOG, b"3 0 R", b"2 0 R"]),
    "form_of_itself": _own_form,
    "form_pyramid": _form_pyramid,
    "states_without_end": lambda: build_page(write_stream(b"q " * 500_000 + _TEXT)),
    "texts_without_end": lambda: build_page(write_stream(b"BT " * 300_000)),
    "string_without_end": lambda: build_page(write_stream(b"BT /F1 12 Tf (" + b"x" * 500_000)),
    "array_without_end": lambda: build_page(write_stream(b"BT /F1 12 Tf [" + b"[(x) " * 100_000)),
    "length_too_long": lambda: build_page(write_stream(_TEXT, length=2**31 - 1)),
    "length_below_zero": lambda: build_page(write_stream(_TEXT, length=-7)),
    "length_of_itself": lambda: build_page(b"<< /Length 4 0 R >>\nstream\n" + _TEXT + b"\nendstream"),
    "stream_not_packed": lambda: build_page(write_stream(_TEXT, b"/Filter /FlateDecode")),
    "stream_of_an_unknown_filter": lambda: build_page(write_stream(_TEXT, b"/Filter /Mine")),
    "stream_of_a_thousand_filters": lambda: build_page(
        write_stream(_TEXT, b"/Filter [" + b"/ASCIIHexDecode " * 1000 + b"]")
    ),
    "predictor_of_a_million_columns": lambda: build_page(
        write_stream(
            zlib.compress(_TEXT), b"/Filter /FlateDecode /DecodeParms << /Predictor 12 /Columns 100000000 /Colors 99 >>"
        )
    ),
    "page_of_no_size": lambda: build_page(write_stream(_TEXT), page=b"/MediaBox [0 0 0 0]"),
    "page_of_astronomic_size": lambda: build_page(
        write_stream(_TEXT), page=b"/MediaBox [0 0 1e38 1e38] /UserUnit 1e30"
    ),
    "glyphs_at_odd_places": _odd_glyphs,
    "glyphs_beyond_unicode": _odd_unicode,
    "contents_of_itself": lambda: build_page(b"[4 0 R 4 0 R]"),
    "objects_in_a_stream_of_itself": lambda: build_page(
        write_stream(_TEXT), write_stream(b"6 0 7 0 " + _FONT, b"/Type /ObjStm /N 2000000000 /First 8 /Extends 6 0 R")
    ),
    "picture_of_a_million_squared": lambda: build_page(
        write_stream(b"/I Do"),
        write_stream(b"x", b"/Type /XObject /Subtype /Image /Width 1000000 /Height 1000000 /BitsPerComponent 8"),
        resources=b"/XObject << /I 6 0 R >>",
    ),
}
