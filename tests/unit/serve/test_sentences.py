"""Sentences and marks: where they end, and that the way a text is cut into pieces changes nothing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.sentences import WIDE_END, AnswerSplitter, Piece, SentenceSplitter, remove_marks
from tests.fakes.pieces import cut

ALPHABET = 'aB1 .!?\n\t[]()【】,;-:"”)0e.gé`~#+［］^\u200b。質」'
WORDS = ["5 p.m.", " Mon", "Monday", " Sundays", "Jan. 5", " On", "\n", ".", " "]
texts = st.text(alphabet=ALPHABET, max_size=80) | st.lists(st.sampled_from(WORDS), max_size=12).map("".join)


def run_answer(pieces: list[str]) -> list[Piece]:
    splitter = AnswerSplitter()
    return [piece for part in pieces for piece in splitter.feed(part)] + splitter.finish()


def join_answer(pieces: list[str]) -> str:
    return "".join(piece.text for piece in run_answer(pieces))


def run_splitter(pieces: list[str]) -> list[Piece]:
    splitter = SentenceSplitter()
    return [piece for part in pieces for piece in splitter.feed(part)] + splitter.finish()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("The pump runs. It hums.", ["The pump runs.", "It hums."]),
        ("1. Open the valve.\n2. Close it.", ["1. Open the valve.", "2. Close it."]),
        ("1. Open it. Then wait.\n2. Close it.", ["1. Open it. Then wait.", "2. Close it."]),
        ("- One. Two.\n- Three", ["- One. Two.", "- Three"]),
        (
            "Use 3.5 bar, e.g. Brook 40, approx. No. 5 of it. Done",
            ["Use 3.5 bar, e.g. Brook 40, approx. No. 5 of it.", "Done"],
        ),
        ("See https://a.b/c.d?e=1 now. Dr. Smith knows.", ["See https://a.b/c.d?e=1 now.", "Dr. Smith knows."]),
        (
            "Open from 9 a.m. to 5 p.m. Monday to Friday. Call till 5 P.M. EST. At 5 p.m. On Sundays never",
            ["Open from 9 a.m. to 5 p.m. Monday to Friday.", "Call till 5 P.M. EST.", "At 5 p.m.", "On Sundays never"],
        ),
        (
            "It ends at 5 p.m. Mon–Fri. It ends at 5 p.m. Monarchs know. Not 5 p.m.\nSun\n\nTill 5 p.m. Mon",
            [
                "It ends at 5 p.m. Mon–Fri.",
                "It ends at 5 p.m.",
                "Monarchs know.",
                "Not 5 p.m.",
                "Sun",
                "Till 5 p.m. Mon",
            ],
        ),
        (
            "Sent by Jan. 5 to P.O. Box 7, vgl. Abs. 3. In Dec. It ends.",
            ["Sent by Jan. 5 to P.O. Box 7, vgl. Abs. 3.", "In Dec.", "It ends."],
        ),
        ('He said "Stop." Then he left!', ['He said "Stop."', "Then he left!"]),
        ("Is it? No. You must pay.", ["Is it?", "No.", "You must pay."]),
        ("Version 2. is lower case. End", ["Version 2. is lower case.", "End"]),
        ("Wait... Then go… Now", ["Wait...", "Then go…", "Now"]),
        ("Heading\n\nText without an end", ["Heading", "Text without an end"]),
        ("In all there were 7. 8 came later.", ["In all there were 7.", "8 came later."]),
        ("  \n \n", []),
        (
            "It was founded by the sisters\nVerity and Maud. It grew.",
            ["It was founded by the sisters\nVerity and Maud.", "It grew."],
        ),
        (
            "Choose one of\n1. Open it\n2) Close it\n- Leave it",
            ["Choose one of", "1. Open it", "2) Close it", "- Leave it"],
        ),
        ("There are\n12 pumps and\n-5 degrees", ["There are\n12 pumps and\n-5 degrees"]),
        ("Steps:\nGo on\n \nThen stop", ["Steps:", "Go on", "Then stop"]),
        ("1. Open it\nThen this", ["1. Open it", "Then this"]),
        ("wrapped\n12", ["wrapped\n12"]),
        ("## Summary\nThe pump runs.\n# So", ["## Summary", "The pump runs.", "# So"]),
        ("Choose\n+ One. Two\n+ Three", ["Choose", "+ One. Two", "+ Three"]),
        ("#5 of\n#tags and\n####### more", ["#5 of\n#tags and\n####### more"]),
        ("质保期为26个月。请联系「客服。」谢谢！", ["质保期为26个月。", "请联系「客服。」", "谢谢！"]),
        ("- 质保期。谢谢\n- 好", ["- 质保期。谢谢", "- 好"]),
        ("ما هو الضمان؟ الضمان سنة. نعم", ["ما هو الضمان؟", "الضمان سنة.", "نعم"]),
    ],
)
def test_sentences_end_where_people_end_them(text: str, sentences: list[str]) -> None:
    assert [piece.sentence for piece in run_splitter([text]) if piece.sentence] == sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Thirty days [1].", "Thirty days."),
        ("Thirty days.[1][2] More", "Thirty days. More"),
        ("Both [1, 2] and [3-5]; 【6†source】 end", "Both and; end"),
        ("【重要】 and 【2026年】 stay, 【4:0†source】 and 【7】 go", "【重要】 and 【2026年】 stay, and go"),
        ("array[i] and [a] and [ ] stay", "array[i] and [a] and [ ] stay"),
        ("unfinished [12", "unfinished [12"),
        (
            "Take `values[0]` [1]. A lone ` ends [2]\nwith its line [3].",
            "Take `values[0]`. A lone ` ends [2]\nwith its line.",
        ),
        (
            "So [1]:\n```py\nrun(values[0])  # ``x`` [2]\n```\nDone [3].",
            "So:\n```py\nrun(values[0])  # ``x`` [2]\n```\nDone.",
        ),
        ("````\n```\na[0]\n```\nb[1]\n````\nEnd [2]", "````\n```\na[0]\n```\nb[1]\n````\nEnd"),
        ('```py\ns = """\n    ```\n"""\nb[1]\n```\nEnd [2]', '```py\ns = """\n    ```\n"""\nb[1]\n```\nEnd'),
        ("~~~\n```\na[0]\n~~~\nEnd [2]", "~~~\n```\na[0]\n~~~\nEnd"),
        ("Say ```a[0]``` so [1]. And on [2].", "Say ```a[0]``` so. And on."),
        ("What [[1]1] is [[2]] left [【1†x】3] of [ 4 ] them [^5]", "What is left of them"),
        ("Unseen [\u200b1] signs [2\u00a0] and wide ［３］ ones", "Unseen signs and wide ones"),
        ("[[1] see the manual], - [ ] [2] to do", "[ see the manual], - [ ] to do"),
        ("[" * 40 + "1" + "]1" * 40 + "]", "1]" * 9),
    ],
)
def test_the_models_own_marks_go(text: str, expected: str) -> None:
    assert remove_marks(text) == expected


@given(texts, st.lists(st.integers(0, 9), max_size=12))
def test_marks_go_alike_however_the_text_is_cut(text: str, sizes: list[int]) -> None:
    assert join_answer(cut(text, sizes)) == remove_marks(text)


@given(texts, st.lists(st.integers(0, 9), max_size=12))
def test_sentences_end_alike_however_the_text_is_cut(text: str, sizes: list[int]) -> None:
    whole, parts = run_answer([text]), run_answer(cut(text, sizes))
    assert [piece.sentence for piece in parts if piece.sentence] == [
        piece.sentence for piece in whole if piece.sentence
    ]
    assert find_ends(parts) == find_ends(whole)


@pytest.mark.timeout(30)  # a pattern that goes back over them takes hours
def test_long_runs_of_blanks_cost_no_more_than_other_text() -> None:
    assert remove_marks("a" + " " * 1_000_000 + "b") == "a" + " " * 1_000_000 + "b"
    assert join_answer(["a" + " " * 100_000, "b"]) == "a" + " " * 100_000 + "b"
    for begin in (" " * 100_000, "- " * 50_000, "`" * 100_000 + "a`", "```" + "a" * 100_000):
        assert remove_marks(begin + "b") == begin + "b"


@given(texts)
def test_no_mark_is_left(text: str) -> None:
    without_code = re.sub("[`~]", "", text)
    assert not re.search(r"\[\d{1,3}\]", remove_marks(without_code))


def find_ends(pieces: list[Piece]) -> list[int]:
    """Return where in the text each sentence ends."""
    ends, length = [], 0
    for piece in pieces:
        length += len(piece.text)
        if piece.sentence is not None:
            ends.append(length)
    return ends


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Run\n```sh\npump --bar 5.\n\nEnd it.\n```\nThen wait. Go on.", ["Run", "Then wait.", "Go on."]),
        ("```\nIt runs. It hums.\n```", []),
        ("Not closed:\n```\nIt runs.\n", ["Not closed:"]),
        ("Set `bar` to 5. Use `pump[0]` then.", ["Set `bar` to 5.", "Use `pump[0]` then."]),
        ("Use ```bar``` here. Go on.", ["Use ```bar``` here.", "Go on."]),
        ('```py\ns = "```"\nIt runs. It hums.\n```\nGo on.', ["Go on."]),
        ("It runs. Then so\n```\na\n```\n1. Open it. Wait.", ["It runs.", "Then so", "1. Open it. Wait."]),
    ],
)
def test_no_sentence_ends_in_a_block_of_code(text: str, sentences: list[str]) -> None:
    assert [piece.sentence for piece in run_answer([text]) if piece.sentence] == sentences
    assert join_answer([text]) == text


@given(
    texts.map(lambda text: re.sub("[`~]", "", text)),
    st.lists(st.sampled_from(["It runs [1]. It hums.", "", "    ```", "say ```", "``", "~~~", "a[0]"])).map("\n".join),
    texts.map(lambda text: re.sub("[`~]", "", text)),
    st.lists(st.integers(0, 9), max_size=20),
)
def test_a_blocks_bytes_come_through_untouched(before: str, code: str, after: str, sizes: list[int]) -> None:
    block = f"```py [1]\n{code}\n```\n"
    cited = run_answer(cut(f"{before}\n{block}{after}", sizes))
    assert "".join(piece.text for piece in cited) == remove_marks(before) + "\n" + block + remove_marks(after)
    assert [piece.sentence for piece in cited if piece.sentence] == [
        piece.sentence for text in (before, after) for piece in run_answer([text]) if piece.sentence
    ]


@given(texts)
def test_the_pieces_are_the_text(text: str) -> None:
    assert "".join(piece.text for piece in run_splitter([text])) == text


@given(texts)
def test_a_sentence_ends_right_behind_its_last_character(text: str) -> None:
    for end in find_ends(run_splitter([text])):
        assert not text[end - 1].isspace()
        assert end == len(text) or text[end].isspace() or WIDE_END.search(text[:end])


def test_text_flows_while_a_sentence_is_written() -> None:
    splitter = SentenceSplitter()
    assert splitter.feed("The pump ") == [Piece("The pump")]
    assert splitter.feed("runs.") == [Piece(" runs.")]
    assert splitter.feed(" I") == [Piece("", "The pump runs."), Piece(" I")]
