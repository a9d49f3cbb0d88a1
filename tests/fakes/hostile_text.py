"""Builds HTML pages and Markdown files that nest, explode, or are not text at all."""

import gzip
import random
from collections.abc import Callable, Mapping

_LAUGHS = '<!ENTITY l0 "lol">' + "".join(f'<!ENTITY l{number} "{f"&l{number - 1};" * 10}">' for number in range(1, 10))
_UNSEEN = "".join(map(chr, (*range(1, 32), 0x202E, 0x2028, 0xFEFF, 0xFFFF, 0xE0041)))


def _page(body: str) -> bytes:
    return f"<!doctype html><html><head><title>Page</title></head><body>{body}</body></html>".encode()


def _note(text: str) -> bytes:
    return f"# Note\n\n{text}\n".encode()


def _front(lines: str) -> bytes:
    return f"---\ntitle: Note\n{lines}\n---\n\nWords after the front matter.\n".encode()


def _noise(length: int) -> bytes:
    return random.Random(0).randbytes(length)


def _spans() -> bytes:
    cell = '<td colspan="99999" rowspan="99999">x</td>'
    return _page(f"<table>{f'<tr>{cell * 50}</tr>' * 300}</table>")


def _aliases() -> bytes:
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]" for number in range(1, 12)]
    return _front("\n".join(lines))


def _stairs() -> bytes:
    return _note("\n".join("  " * depth + "- step" for depth in range(2000)))


HTML_TRAPS: Mapping[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "spaces": lambda: b" \n\t" * 10_000,
    "zeros": lambda: bytes(100_000),
    "noise": lambda: _noise(200_000),
    "picture_misnamed": lambda: b"\x89PNG\r\n\x1a\n" + bytes(1000),
    "pdf_misnamed": lambda: b"%PDF-1.7\n" + bytes(1000),
    "archive_misnamed": lambda: b"PK\x03\x04" + bytes(1000),
    "gzip_misnamed": lambda: gzip.compress(bytes(2**20)),
    "tags_without_text": lambda: _page("<div></div>" * 1000),
    "script_alone": lambda: _page("<script>while(1){}</script>"),
    "nested_blocks": lambda: _page("<div>" * 100_000 + "deep"),
    "nested_two_hundred": lambda: _page("<div>" * 200 + "deep"),
    "nested_tables": lambda: _page("<table><tr><td>" * 30_000 + "deep"),
    "nested_sixty_tables": lambda: _page("<table><tr><td>a<td>" * 60 + "deep"),
    "nested_lists": lambda: _page("<ul><li>" * 100_000 + "deep"),
    "nested_spans": lambda: _page("<b>" * 100_000 + "deep"),
    "nested_formatting": lambda: _page("<b><i><u><a>" * 20_000 + "<p>deep" * 1000),
    "open_brackets": lambda: b"<" * 1_000_000,
    "open_tags": lambda: b"<a " * 500_000,
    "open_comment": lambda: b"<!--" * 300_000,
    "open_attribute": lambda: b'<p title="' + b"x" * 12_000_000,
    "many_attributes": lambda: _page(f"<p {' '.join(f'a{number}=1' for number in range(200_000))}>x"),
    "many_entities": lambda: _page("&lt;" * 1_000_000),
    "many_paragraphs": lambda: _page("<p>a" * 500_000),
    "entities_beyond_unicode": lambda: _page("&#xD800;&#xDFFF;&#1114112;&#99999999999999;&#0;&#x1b;a"),
    "laughs": f"<!DOCTYPE html [{_LAUGHS}]><html><body>&l9;</body></html>".encode,
    "entity_from_a_file": lambda: b'<!DOCTYPE html [<!ENTITY f SYSTEM "file:///etc/passwd">]><p>&f;</p>',
    "declared_as_nothing": lambda: b'<meta charset="mine"><p>caf\xe9 \xff\xfe',
    "declared_as_code": lambda: b'<meta charset="rot13"><p>jbeqf',
    "declared_as_archive": lambda: b'<meta charset="zlib_codec"><p>words',
    "declared_as_escapes": lambda: b'<meta charset="unicode_escape"><p>\\ud800\\x41',
    "declared_as_names": lambda: b'<meta charset="idna"><p>' + b"a" * 200_000,
    "declared_as_undefined": lambda: b'<meta charset="undefined"><p>words',
    "sixteen_bits_cut": lambda: "<p>words</p>".encode("utf-16")[:-1],
    "thirty_two_bits_wrong": lambda: b"\xff\xfe\x00\x00" + b"\xff" * 400,
    "surrogates": lambda: "<p>\ud800\udfff words".encode("utf-8", "surrogatepass"),
    "unseen_signs": lambda: _page(f"<h1>{_UNSEEN}</h1><p>{_UNSEEN}</p>"),
    "vast_spans": _spans,
    "vast_list_number": lambda: _page(f'<ol start="{"9" * 5000}"><li>x</ol><ol start="²"><li>y</ol>'),
    "frames": lambda: b"<frameset><frame src='file:///etc/passwd'></frameset>",
    "plain_text_for_ever": lambda: b"<plaintext>" + b"</p><p>" * 100_000,
    "character_data": lambda: b"<![CDATA[" * 100_000,
    "one_word": lambda: _page("x" * 9_000_000),
    "one_word_too_long": lambda: _page(("x" * 999_999 + "<br>") * 24),
    "heading_of_a_megabyte": lambda: _page(f"<h1>{'long ' * 200_000}</h1><p>x"),
    "definitions_in_definitions": lambda: _page("<dl><dt>a<dd>" * 120 + "deep"),
}

MD_TRAPS: Mapping[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "spaces": lambda: b"\n \t" * 10_000,
    "zeros": lambda: bytes(100_000),
    "zeros_between": lambda: b"a\0b\0c" * 20_000,
    "noise": lambda: _noise(200_000),
    "program_misnamed": lambda: b"\x7fELF" + bytes(1000),
    "database_misnamed": lambda: b"SQLite format 3\0" + bytes(1000),
    "front_alone": lambda: b"---\ntitle: x\n---\n",
    "front_without_end": lambda: b"---\ntitle: x\n" + b"a: b\n" * 100_000,
    "front_sign_beyond_unicode": lambda: _front('a: "\\UFFFFFFFF"'),
    "front_half_a_sign": lambda: _front('a: "\\uD800"\nb\\uDC00: x\n"\\uDFFF": y'),
    "front_of_aliases": _aliases,
    "front_nested": lambda: _front("a: " + "[" * 20_000),
    "front_nested_maps": lambda: _front("a: " + "{a: " * 10_000),
    "front_number": lambda: _front(f"a: {'9' * 10_000}\nb: 0x{'f' * 10_000}\n0x{'f' * 10_000}: c\nd: .inf\ne: -.nan"),
    "front_date": lambda: _front("a: 2024-13-45\nb: 0000-00-00\nc: 2024-01-01T99:99:99Z"),
    "front_sixties": lambda: _front("a: " + ":59" * 10_000 + "\nb: 1" + ":59" * 1000),
    "front_of_code": lambda: _front("a: !!python/object/apply:os.system [echo]\nb: !!binary '!'\nc: !mine x"),
    "front_two_files": lambda: _front("a: b\n--- \n- c"),
    "front_unseen": lambda: _front('a: "\\u202e\\x1b[2J\\n"\n"\\x1b": x'),
    "nested_quotes": lambda: _note(">" * 50_000 + " deep"),
    "nested_lists": lambda: _note("- " * 20_000 + "deep"),
    "nested_numbers": lambda: _note("1. " * 20_000 + "deep"),
    "stairs": _stairs,
    "nested_brackets": lambda: _note("[" * 50_000 + "deep" + "]" * 50_000),
    "nested_pictures": lambda: _note("![" * 30_000 + "deep"),
    "links_open": lambda: _note("[a](" * 50_000),
    "stars": lambda: _note("*a **b " * 40_000),
    "underlines": lambda: _note("_" * 100_000 + "a" + "_" * 100_000),
    "backticks": lambda: _note(" ".join("`" * count for count in range(1, 1200))),
    "fences_open": lambda: _note("```\n" * 50_001),
    "fence_of_a_megabyte": lambda: _note("`" * 1_000_000),
    "tables_wide": lambda: _note("|a" * 5000 + "|\n" + "|-" * 5000 + "|\n" + "|x" * 5000 + "|\n" * 200),
    "tables_many": lambda: _note("|a|b|\n|-|-|\n" * 20_000),
    "definitions_many": lambda: _note("\n".join(f"[{number}]: x" for number in range(60_000))),
    "definitions_same": lambda: _note("[a]: <x> 'y\n" * 40_000),
    "entities": lambda: _note("&#xD800;&#1114112;&amp" * 50_000),
    "tags_open": lambda: _note("<a " * 100_000),
    "tags_nested": lambda: _note("<div>" * 100_000),
    "comments_open": lambda: _note("<!-- " * 100_000),
    "templates_open": lambda: _note("{% " * 100_000),
    "templates_of_links": lambda: _note("]( {{ " * 100_000),
    "headings_many": lambda: _note("######" + " #" * 100_000 + "\n# a" * 50_000),
    "rules_many": lambda: _note("* * * " * 100_000),
    "one_line": lambda: _note("word " * 1_500_000),
    "one_word": lambda: _note("x" * 9_000_000),
    "escapes": lambda: _note("\\" * 500_000),
    "unseen_signs": lambda: _note(_UNSEEN * 100),
    "surrogates": lambda: "# Note\n\n\ud800 words".encode("utf-8", "surrogatepass"),
    "sixteen_bits_wrong": lambda: b"\xff\xfe" + b"\xd8" * 999,
}
