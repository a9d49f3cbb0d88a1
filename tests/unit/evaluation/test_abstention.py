"""evaluation.abstention: an answer that says it has none is known by its words, and a rule that says «not» is none."""

import pytest

from evaluation.abstention import is_abstention


@pytest.mark.parametrize(
    "text",
    [
        "I could not find this in the documents.",
        "The documents do not say whether the shop is open.",
        "I couldn't find it.",
        "I can't answer this question.",
        "I don’t know.",
        "The context does not contain the answer.",
        "This is not mentioned in the provided\npassages.",
        "There is no information about it.",
        "UNANSWERABLE",
        "I am unable to answer that.",
        "That is not in the documents.",
        "This isn’t covered in the handbook.",
        "The handbook does not mention it.",
        "The provided text doesn't specify the price.",
        "The documents do not explicitly state the price.",
        "I couldn't locate that in the manual.",
        "There is nothing about parking in the documents.",
        "The documents don't address this.",
        "The documents contain nothing on this.",
        "It does not appear in the documents.",
        "I don't have enough information to answer.",
        "There isn't enough information in the context.",
        "The passages give insufficient information.",
        "Sorry, I have no data on that.",
        "I cannot determine this from the passages.",
        "I can't tell from the documents.",
        "Not specified.",
        "It is not stated.",
        "None of the documents mention the price.",
        "No document says how long it takes.",
        "The documents are silent on this.",
        "It is unclear from the documents.",
        "I cannot say.",
        "There is no information on parking.",
        "There is no mention of it",
        "Unknown",
        "We were unable to confirm that.",
        "I unfortunately could not find the price.",
        "The search could not find any document.",
        "The answer could not be determined from the passages.",
        "I could not find it. I assume it is not covered in the documents.",
        "I could not find this. Please ask support, they may be able to help within 2 days.",
        "The documents do not mention a price. They probably assume a contract.",
        "The documents do not say. It is likely that HR knows.",
        "The documents do not say when. Goods may be returned within 45 days.",
        "The documents do not say it. Filters must be changed every 6 months.",
        "The documents, which may be 3 years old, do not say.",
        "The documents do not say. Ask the desk; it is open from 9 to 17.",
        "It is not mentioned in the documents. It is covered by rule 3, which is not among them.",
    ],
)
def test_declining_is_recognised(text: str) -> None:
    assert is_abstention(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "45 days.",
        "The pump does not contain oil.",
        "The leaf is not found on old models.",
        "Do not open the cap.",
        "No. 3 is the answer.",
        "Staff can not carry leave over.",
        "If you cannot find the key, look under the lid.",
        "There is no information desk on Sundays.",
        "No answer phone is connected to 3000.",
        "Not stated prices are those of the list.",
        "The pump is not in the cellar.",
        "Write nothing in the field.",
        "Staff cannot say more than the contract allows.",
        "The unknown sender is refused.",
        "No file may be larger than 5 MB.",
        "It tells you when the battery is low.",
        "NASA was unable to locate the tapes.",
        "Customers could not find the valve.",
    ],
)
def test_an_answer_is_no_abstention(text: str) -> None:
    assert not is_abstention(text)


@pytest.mark.parametrize(
    "text",
    [
        "The documents do not say. It is probably 45 days.",
        "I could not find this in the documents, but I think it is 45 days.",
        "I do not know. My guess is Paris.",
        "I'm not sure, but it may be 12 months.",
        "I don’t know, maybe 45 days.",
        "The passages do not state the price. I would guess around 50 euros.",
        "It is likely 45 days, but the documents do not state it.",
        "The context does not mention it. However, it might be about 30 days.",
        "I can't tell from the documents; I'd say it is 20 litres.",
        "The documents do not say. It is 45 days.",
        "I could not find the price in the documents, but it’s about 50 euros.",
        "The documents do not state it. The correct answer is 12 months.",
    ],
)
def test_who_guesses_all_the_same_does_not_decline(text: str) -> None:
    assert not is_abstention(text)
