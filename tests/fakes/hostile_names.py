"""One hundred names that a file, a store or a member of an archive should not be able to do harm with (promise H3)."""

_STEPS = (
    *("../escaped", "../../escaped", "../../../../../../../../tmp/escaped", "a/../../escaped", "./../escaped", ".."),
    *(".", "../", "..\\escaped", "..\\..\\escaped", "a\\..\\..\\escaped", "....//....//escaped", "..;/escaped"),
    *("%2e%2e%2fescaped", "%252e%252e%252fescaped", "..%2fescaped", "..%5cescaped", "..%c0%afescaped", "..%00/escaped"),
    *(
        "\u2025/escaped",
        "\uff0e\uff0e\uff0fescaped",
        "..\u2215escaped",
        "..\u2044escaped",
        "~/escaped",
        "~root/escaped",
    ),
)
_ABSOLUTE = (
    *("/escaped", "/tmp/escaped", "//escaped", "///tmp/escaped", "/dev/null", "/dev/shm/escaped", "/proc/self/cwd/x"),
    *("C:\\escaped", "C:escaped", "\\\\host\\share\\escaped", "\\\\?\\C:\\escaped", "file:///tmp/escaped"),
    *("http://127.0.0.1/escaped", "$HOME/escaped", "${TMPDIR}/escaped", "`touch escaped`", "$(touch escaped)"),
)
_UNSEEN = (
    *("nul\0.md", "\0", "../escaped\0.md", "line\nbreak.md", "return\rline.md", "both\r\nX-Injected: 1.md", "tab\t.md"),
    *(
        "\x1b[2J\x1b[1;1Hwipe.md",
        "\x1b]0;title\x07.md",
        "bell\x07.md",
        "back\b\b\b.md",
        "delete\x7f.md",
        "c1\x9b31m.md",
    ),
    *("next\x85line.md", "line\u2028separator.md", "page\u2029.md", "right\u202eto left.md", "\u2066isolate\u2069.md"),
    *(
        "zero\u200bwidth.md",
        "\ufeffmark.md",
        "tag\U000e0041.md",
        "soft\u00adhyphen.md",
        "half\ud800.md",
        "half\udfff.md",
    ),
    *("byte\udcff.md", "byte\udce9\udcfe.md", "\ufffe.md", "\x00\x01\x02\x03\x04\x05"),
)
_DEVICES = (
    *("CON", "con.md", "PRN.md", "AUX.md", "NUL", "COM1.md", "LPT9.md", "CONIN$", "aux.tar.gz", "name.md:stream"),
    *(
        "trailing dot.",
        "trailing dots...",
        "trailing space ",
        " leading space.md",
        " ",
        "   .md",
        ".hidden",
        "...",
        "-rf",
    ),
)
_LONG = (
    *("n" * 255, "n" * 4096, "n" * 4096 + ".md", "../" * 1365 + "escaped", "d/" * 2000 + "escaped", "\u0301" * 4000),
    *("<script>alert(1)</script>.md", '"; filename="x.md', "'; DROP TABLE files; --.md", "{{7*7}}.md", "[bold]x[/].md"),
)
HOSTILE_NAMES = (*_STEPS, *_ABSOLUTE, *_UNSEEN, *_DEVICES, *_LONG)
