import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamchat_hf.data.synthesize_prompt import Draft, check_draft
from streamchat_hf.data.synthesize_review import (
    DROP,
    HEADER,
    KEEP,
    NEW,
    ReviewEntry,
    append_review,
    read_review,
    shipped_examples,
)
from streamchat_hf.data.synthesize_segment import Caption, Segment

MADE_BY = {"model": "org/model", "prompt": "0123abcd", "seed": 0}


def entry(name="a", instruction="What is he doing?", answer="He opens a door: slowly, #2.", video="clip.mp4"):
    captions = (Caption(10.0, 14.125, "He: opens a 'door' # slowly"), Caption(14.125, 20.0, "[He] sits"))
    return ReviewEntry(name, Segment(video, captions), Draft(instruction, answer, 10.5, 16.0), NEW, MADE_BY)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "review.yaml"
    append_review(path, [entry("a"), entry("b")])
    return path


def edit(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def test_entries_come_back_as_they_were(path):
    assert read_review(path) == {"a": entry("a"), "b": entry("b")}
    assert path.read_text().startswith(HEADER)
    assert read_review(path.with_name("none.yaml")) == {}


def test_a_new_file_may_have_another_header(path):
    append_review(path, [entry("c")], "# other\n")
    append_review(path.with_name("new.yaml"), [entry("c")], "# other\n")
    assert path.read_text().startswith(HEADER) and "# other" not in path.read_text()
    assert path.with_name("new.yaml").read_text().startswith("# other\n\n- id: c")


@given(st.text(), st.text(), st.text())
@example("", "", "\x85")
def test_any_text_survives(tmp_path_factory, instruction, answer, video):
    path = tmp_path_factory.mktemp("review") / "review.yaml"
    words = [" ".join(text.split()) or "x" for text in (instruction, answer)]
    long = " ".join([words[1]] * 3 + ["and so on"] * 4)
    written = entry("a", words[0], " ".join(long.split()[:20]), video)
    append_review(path, [written])
    assert read_review(path) == {"a": written}


def test_running_text_stands_free_of_quotes(path):
    assert "  answer: >-\n    He opens a door: slowly, #2.\n" in path.read_text()


def test_more_entries_leave_what_a_person_wrote(path):
    edit(path, "- id: a", "# mine\n- id: a")
    before = path.read_text().rstrip("\n")
    path.write_text(before)  # an editor that ends no last line
    append_review(path, [entry("c")])
    append_review(path, [])
    assert path.read_text().startswith(before + "\n")
    assert list(read_review(path)) == ["a", "b", "c"]


def test_edits_are_read(path):
    edit(path, "verdict: new", "verdict: keep")
    edit(path, "    What is he doing?\n", "    What is he\n    up to: tell me\n")
    edit(path, "answer: >-\n    He opens a door: slowly, #2.", 'answer: "Now he sits."')
    edit(path, "start: 10.5", "start: 14")
    a, b = read_review(path).values()
    assert (a.verdict, a.draft) == (KEEP, Draft("What is he up to: tell me", "Now he sits.", 14.0, 16.0))
    assert b == entry("b")


def test_a_dropped_entry_may_be_wrong(path):
    edit(path, "verdict: new", "verdict: drop")
    edit(path, "end: 16.0", "end: 1600")
    assert read_review(path)["a"].verdict == DROP


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("verdict: new", "verdict: good", "verdict", "unknown verdict 'good': expected new, keep, drop"),
        ("verdict: new", "verdict:", "verdict", "verdict is missing"),
        ("  verdict: new\n", "", "- id: a", "verdict is missing"),
        ("start: 10.5", "start: soon", "start", "start cannot be 'soon'"),
        ("start: 10.5", "start: yes", "start", "start cannot be True"),
        ("start: 10.5", "start: 9", "start", "9.0 to 16.0 s is not inside 10.0 to 20.0 s"),
        ("end: 16.0", "end: 10.5", "start", "is not inside"),
        ("end: 16.0", "end: 11.0", "answer", "words per second"),
        ("    What is he doing?\n", "", "instruction", "no instruction"),
        ("  - '[10", "  - '(10", "captions", "expected a caption such as"),
        ("id: b", "id: a", "- id: a\n  verdict: new\n  video: clip.mp4\nX", "a stands here twice"),
        ("made_by:", "made_by: me\n  other:", "made_by", "made_by cannot be 'me'"),
        ("answer: >-\n    He", "answer: He", "answer: He", "mapping values are not allowed"),
        ("- id: a", "- - id: a", "", "YAML"),
    ],
)
def test_a_malformed_edit_is_reported_with_its_line(path, old, new, line, problem):
    edit(path, old, new)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}:\d+: ") as caught:
        read_review(path)
    number, text = re.match(r".*?:(\d+): (.*)", str(caught.value).removeprefix(str(path)), re.DOTALL).groups()
    if line:
        lines = path.read_text().splitlines()
        found = [i for i, content in enumerate(lines, start=1) if content.strip().startswith(line.split("\n")[0])]
        assert int(number) in found
        assert problem in text


def test_all_malformed_edits_are_reported_at_once(path):
    edit(path, "verdict: new", "verdict: good", 2)
    with pytest.raises(ValueError) as caught:
        read_review(path)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\n", r":1: expected a list"),
        ("# x\n- 3\n", r":2: expected an entry"),
        ("- a: \x07\n", "characters are not allowed"),
    ],
)
def test_something_else_is_no_review_file(tmp_path, text, problem):
    path = tmp_path / "review.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem):
        read_review(path)


def test_a_file_of_comments_has_no_entries(tmp_path):
    path = tmp_path / "review.yaml"
    path.write_text(HEADER)
    assert read_review(path) == {}


# When the word can be known at the earliest, in seconds.
TELLING = {
    "soup.mp4": {"go": 16.5, "pot,": 16.5, "stirred": 21.0, "tasted.": 21.0},
    "bicycle.mp4": {"loosening": 45.0, "off,": 52.0, "lay": 52.0},
    "reef.mp4": {"rising": 9.8, "turtle": 9.8},
    "street.mp4": {"green": 6.0, "goes.": 8.0},
    "match.mp4": {"shoots": 68.5, "hits": 70.0, "groans.": 70.0},
}


def test_the_shipped_examples_are_good_and_no_word_runs_ahead():
    examples = shipped_examples()
    assert {shown.segment.video for shown in examples} == TELLING.keys()
    for shown in examples:
        draft = shown.draft
        assert check_draft(draft, shown.segment) == draft
        words = draft.answer.split()
        step = (draft.end - draft.start) / (len(words) - 1)
        assert 1.5 < 1 / step < 3
        for word, earliest in TELLING[shown.segment.video].items():
            assert draft.start + words.index(word) * step >= earliest
