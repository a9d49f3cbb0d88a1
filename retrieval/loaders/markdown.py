"""Loads Markdown: CommonMark with tables, rendered to HTML and read from there.

Owns: front matter and the mark-up that is not meant as HTML. Rendering first means that lists, tables and embedded HTML
are read by one piece of code.
"""

import re

from lxml.html import defs
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from retrieval.loaders.html import load_markup
from retrieval.loaders.outline import Outline

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)?(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*(.+)$", re.MULTILINE)
_KNOWN_TAG = re.compile(r"</?[a-z]{1,10}/?>", re.IGNORECASE)
_TAG = re.compile(r"<(?=/?([A-Za-z][\w:.-]*))")
# The tags of static-site generators (Jekyll, Eleventy, Hugo). Code is matched first, so that it stays as it is.
_TEMPLATE = re.compile(
    r"(?P<code>^(?P<fence>`{3,}+|~{3,}+).*?^(?P=fence)|`[^`\n]{1,500}`)"
    r"|(?P<link>\]\()\s*(?:\{%[^%\n]{0,300}%\}|\{\{[^{}\n]{0,300}\}\})"
    r"|\{%-?(?P<tag>[^%\n]{0,300})%\}",
    re.MULTILINE | re.DOTALL,
)
_SPOKEN_ARGUMENT = re.compile(r"""["']([\w #@&'’-]+)["']""")


def load_markdown(text: str, outline: Outline) -> None:
    """Add a Markdown file; a title in its front matter is the first heading where the text has no heading of level 1.

    Raises:
        InvalidFile: The HTML that it renders to cannot be parsed.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    title = ""
    if front := _FRONT_MATTER.match(text):
        from retrieval.loaders.front_matter import parse_front_matter

        outline.state_attributes(parse_front_matter(front.group(1) or ""))
        named = _FRONT_TITLE.search(front.group(1) or "")
        title = _KNOWN_TAG.sub("", named.group(1).strip().strip("\"'")) if named else ""
        text = text[front.end() :]
    body = _build_parser().render(_TEMPLATE.sub(_write_template, text))
    load_markup(f"<html><head><title>{title}</title></head><body>{body}</body></html>", outline)


def _write_template(match: re.Match[str]) -> str:
    """Keep a tag's argument where it reads as text: {% channel "help-desk" %} names one, {% include "a.html" %} not."""
    if match["code"]:
        return match["code"]
    if match["link"]:
        return match["link"]
    argument = _SPOKEN_ARGUMENT.search(match["tag"])
    return argument.group(1) if argument else ""


def _build_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"maxNesting": 100}).enable(["table", "strikethrough"])
    parser.add_render_rule("html_inline", _render_html)
    parser.add_render_rule("html_block", _render_html)
    return parser


def _render_html(_renderer: RendererHTML, tokens: list[Token], index: int, _options: OptionsDict, _env: EnvType) -> str:
    """Pass real tags on and escape what only looks like one, such as <your-name>, which is text to its reader."""
    return _TAG.sub(lambda tag: "<" if tag.group(1).lower() in defs.tags else "&lt;", tokens[index].content)
