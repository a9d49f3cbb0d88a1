"""Markdown and HTML: what is content, how it is written, and what an author may not smuggle in."""

import pytest

from core.errors import InvalidFile
from retrieval.document import Document
from retrieval.loaders.html import load_html, load_markup
from retrieval.loaders.markdown import load_markdown
from retrieval.loaders.outline import Outline


def read_markdown(text: str) -> Document:
    outline = Outline()
    load_markdown(text, outline)
    return outline.build()


def read_html(markup: str) -> Document:
    outline = Outline()
    load_markup(markup, outline)
    return outline.build()


def headings(document: Document) -> list[str | None]:
    return [section.heading for section in document.sections]


def test_markdown_marks_are_removed_and_structure_stays() -> None:
    document = read_markdown(
        "# Returns\n\nSee the [policy](https://a.example/b) and *all* **terms**; ![the form](form.png).\n\n"
        "- one\n- two\n  1. inner\n\n```python\nx  = 1\n```\n\n"
        "## Costs\n\n| Item | Price |\n|---|---|\n| Reed | £57 |\n"
    )
    assert headings(document) == ["Returns", "Returns > Costs"]
    assert document.text == (
        "See the policy and all terms; the form.\n\n- one\n- two\n  1. inner\n\nx  = 1\n\nItem: Reed | Price: £57"
    )


@pytest.mark.parametrize(
    ("front", "body", "wanted"),
    [
        ("title: Leave\nowner: hr", "Text", "Leave"),
        ('title: "Leave <em>and</em> rest"', "Text", "Leave and rest"),
        ("title: Leave", "# Holidays\n\nText", "Holidays"),
        ("owner: hr", "Text", None),
    ],
)
def test_front_matter_goes_and_its_title_heads_a_page_without_one(front: str, body: str, wanted: str | None) -> None:
    document = read_markdown(f"---\n{front}\n---\n{body}")
    assert document.text == "Text"
    assert headings(document) == [wanted]


def test_a_rule_at_the_top_is_no_front_matter() -> None:
    assert read_markdown("---\n\nText").text == "Text"


def test_what_only_looks_like_a_tag_is_text() -> None:
    assert read_markdown("Type <your-name> and <b>press</b> enter.").text == "Type <your-name> and press enter."


def test_template_tags_keep_what_reads_as_text() -> None:
    text = 'Ask in {% channel "help desk" %}, see [Tools]({% page "/tools/" %}). {% include "box.html" %}`{% raw %}`'
    assert read_markdown(text).text == "Ask in help desk, see Tools. {% raw %}"


def test_html_boilerplate_goes() -> None:
    document = read_html(
        "<html><head><title>Leave</title><style>p{}</style></head><body><nav>Home</nav><header>Acme</header>"
        "<p>Text<script>alert()</script></p><div hidden>no</div><p style='display: none'>no</p>"
        "<p aria-hidden='true'>no</p><footer>2026</footer></body></html>"
    )
    assert (document.text, headings(document)) == ("Text", ["Leave"])


def test_only_main_is_read_where_there_is_one() -> None:
    document = read_html("<h1>Portal</h1><p>Menu</p><main><h2>Leave</h2><p>Text</p></main>")
    assert (document.text, headings(document)) == ("Text", ["Portal > Leave"])


def test_a_header_inside_an_article_is_content() -> None:
    document = read_html("<article><header><h1>Leave</h1><p>By HR</p></header><p>Text</p></article>")
    assert document.text == "By HR\n\nText"


def test_white_space_is_collapsed_and_breaks_stay() -> None:
    assert read_html("<p>a\n   b<br>c &amp; d</p>tail<pre>x\n  y</pre>").text == "a b\nc & d\n\ntail\n\nx\n  y"


def test_cells_over_rows_and_columns_keep_their_names() -> None:
    document = read_html(
        "<table><caption>Prices</caption><tr><th>Shop</th><th colspan=2>Price</th></tr>"
        "<tr><td rowspan=2>A</td><td>1<br>2</td><td>3</td></tr><tr><td>4</td><td>5</td></tr></table>"
    )
    assert document.text == "Prices\nShop: A | Price: 1 2 | Price: 3\nShop: A | Price: 4 | Price: 5"


def test_names_in_the_first_column_are_names() -> None:
    table = "<table><tr><th>Power</th><td>145 watts</td></tr><tr><th>Noise:</th><td>41 dB</td></tr></table>"
    assert read_html(table).text == "Power: 145 watts\nNoise: 41 dB"


def test_a_table_for_layout_is_read_as_blocks() -> None:
    document = read_html("<table><tr><td><h2>Left</h2><p>a</p></td><td><p>b</p></td></tr></table>")
    assert (document.text, headings(document)) == ("a\n\nb", ["Left"])
    nested = "<table><tr><th>Part<th>Price<tr><td>Reed<td>4<td><table><tr><th>x<th>y<tr><td>1<td>2</table></table>"
    assert read_html(nested).text == "Part Price\n\nReed 4\n\nx: 1 | y: 2"


def test_lists_and_definitions() -> None:
    document = read_html("<ol start=3><li>c<ul><li>x</li></ul></li><li><p>d</p><p>e</p></li></ol><dl><dt>T<dd>M</dl>")
    assert document.text == "3. c\n  - x\n4. d\n  e\n\nT: M"


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ('<meta charset="iso-8859-2"><p>čaj</p>'.encode("iso-8859-2"), "čaj"),
        ("<p>Größe: 5 €</p>".encode("cp1252"), "Größe: 5 €"),
        ('<meta charset="iso-8859-1"><p>“Größe”: 5 €</p>'.encode("cp1252"), "“Größe”: 5 €"),
        ("<p>Größe</p>".encode("utf-16"), "Größe"),
        ('<meta charset="UTF-16"><p>Größe</p>'.encode(), "Größe"),
        (b'<?xml version="1.0" encoding="utf-8"?><html><p>x</p></html>', "x"),
    ],
)
def test_the_encoding_is_found(data: bytes, wanted: str) -> None:
    outline = Outline()
    load_html(data, outline)
    assert outline.build().text == wanted


def test_spans_that_claim_the_world_are_bounded() -> None:
    cells = "<td colspan=99999999 rowspan=99999999>x</td>" * 20
    assert len(read_html(f"<table><tr>{cells}</tr><tr>{cells}</tr></table>").text) < 100_000


def test_what_the_parser_would_drop_silently_is_refused() -> None:
    with pytest.raises(InvalidFile, match="256 deep"):
        read_html("<p>Before</p>" + "<span>" * 300 + "<p>After</p>")


def test_entities_of_a_doctype_are_not_expanded() -> None:
    markup = '<!DOCTYPE html [<!ENTITY f SYSTEM "file:///etc/passwd">]><p>a &f; b</p>'
    assert "root:" not in read_html(markup).text


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (b'<meta charset="undefined"><p>words', "words"),
        (b'<meta charset="rot13"><p>words', "words"),
        (f'<ol start="{"9" * 5000}"><li>words</ol>'.encode(), "1. words"),
        ('<ol start="²"><li>words</ol>'.encode(), "1. words"),
    ],
)
def test_odd_declarations_break_nothing(page: bytes, words: str) -> None:
    outline = Outline()
    load_html(page, outline)
    assert outline.build().text == words
