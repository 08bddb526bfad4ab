import json
from pathlib import Path

import pytest

from streamchat_hf.data.annotations import BadRows
from streamchat_hf.data.annotations_chat import read_jsonl, read_llava, read_messages

FIXTURES = Path(__file__).parents[1] / "fixtures" / "annotations"


def good(reader, name):
    """The annotations of a fixture, in which nothing is bad: source without the folder, kind, media and turns."""
    found = reader(str(FIXTURES / name), BadRows(refuse=True))
    return [(a.source.removeprefix(f"{FIXTURES}/"), a.id, a.kind, a.media, turns(a)) for a in found]


def turns(annotation):
    return [(turn.instruction, turn.answer, turn.start, turn.end) for turn in annotation.turns]


def one(reader, tmp_path, row):
    """What becomes of a single row: the annotation, or what is bad."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    bad = BadRows()
    found = list(reader(str(path), bad))
    assert len(found) + sum(bad.counts.values()) == 1
    return found[0] if found else str(bad).replace(str(path), "rows.jsonl")


def test_plain_rows():
    assert good(read_jsonl, "rows.jsonl") == [
        (
            "rows.jsonl:1",
            "1",
            "dense",
            ("kitchen.mp4",),
            [("What is the person in the video doing now?", "The person is cooking right now.", 5, 10)],
        ),
        (
            "rows.jsonl:2",
            "two",
            "dense",
            ("kitchen.mp4",),
            [("Keep telling me what you see.", "A pot. Steam rises.", 1.5, None), ("And now?", "Soup.", 8, 9)],
        ),
        ("rows.jsonl:4", "4", "video", ("kitchen.mp4",), [("What was cooked?", "Soup.", None, None)]),
        ("rows.jsonl:5", "5", "image", ("dog.png",), [("What is this?", "A dog.", None, None)]),
        ("rows.jsonl:6", "6", "text", (), [("Hello!", "Hello to you.", None, None)]),
    ]


def test_a_turn_is_known_by_its_number_if_there_are_several():
    first, second, *_ = read_jsonl(str(FIXTURES / "rows.jsonl"), BadRows(refuse=True))
    assert [turn.source for turn in first.turns] == [f"{FIXTURES}/rows.jsonl:1"]
    assert [turn.source for turn in second.turns] == [f"{FIXTURES}/rows.jsonl:2 turn {n}" for n in (1, 2)]


TURN = {"instruction": "What?", "answer": "This."}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([1], "an object is expected, not [1]"),
        ({"instruction": "What?"}, "no field 'answer'"),
        ({**TURN, "answer": 3}, "'answer' is 3"),
        ({**TURN, "video": "a.mp4", "start": "5"}, 'a time in seconds is expected, not "5"'),
        ({**TURN, "video": "a.mp4", "end": 5}, "an end without a start"),
        ({**TURN, "image": "a.png", "start": 5, "end": 6}, "times without a video"),
        ({**TURN, "start": 5, "end": 6}, "times without a video"),
        ({"turns": {}}, "'turns' is {}"),
        ({"turns": [TURN, 3]}, "an object is expected, not 3"),
        ({**TURN, "video": 3}, "the path of an image or a video is expected, not 3"),
        ({**TURN, "video": ""}, "the path of an image or a video is expected, not ''"),
    ],
)
def test_a_plain_row_of_another_layout_is_named(tmp_path, row, problem):
    assert one(read_jsonl, tmp_path, row) == f"1 × wrong layout (rows.jsonl:1: {problem})"


def test_bad_rows_do_not_hide_the_next(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [TURN, {}, TURN, 7, TURN])))
    bad = BadRows()
    assert [annotation.source for annotation in read_jsonl(str(path), bad)] == [f"{path}:{n}" for n in (1, 3, 5)]
    assert bad.counts == {"wrong layout": 2}


def test_llava_conversations():
    assert good(read_llava, "llava.json") == [
        (
            "llava.json:2[0]",
            "1006-89",
            "video",
            ("NextQA/NExTVideo/1006/89.mp4",),
            [
                (" What happens?", "A dog runs.", None, None),
                ("Where to?", "To its owner.", None, None),
            ],
        ),
        (
            "llava.json:13[1]",
            "000000001",
            "image",
            ("coco/train2017/0001.png",),
            [("What colour is the dog? ", "Brown.", None, None)],
        ),
        # Without an image or a video it is no placeholder.
        ("llava.json:18[2]", "text-7", "text", (), [("How do I show a clip on a page?", "With <video>.", None, None)]),
    ]


def said(*texts, first="human"):
    names = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": names[i % 2], "value": text} for i, text in enumerate(texts)]


def test_llava_placeholders_within_a_question(tmp_path):
    row = {"video": "a.mp4", "conversations": said("Is <video> or\n<image>\nbetter?", "Neither <image>.")}
    assert turns(one(read_llava, tmp_path, row)) == [("Is or better?", "Neither <image>.", None, None)]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"video": "a.mp4"}, "wrong layout (rows.jsonl:1: no field 'conversations')"),
        ({"conversations": [{"value": "Hi"}]}, "wrong layout (rows.jsonl:1: no field 'from')"),
        ({"conversations": said("Hi", "Hi", "Bye")}, "not question and answer in turn: user, assistant, user)"),
        ({"conversations": said("Hi", "Hi", first="gpt")}, "not question and answer in turn: assistant, user)"),
        ({"conversations": [{"from": "bing", "value": "Hi"}]}, "unknown speaker 'bing'"),
        (
            {"image": ["a.png", "b.png"], "conversations": said("Hi", "Hi")},
            "several media (rows.jsonl:1: a.png, b.png)",
        ),
        ({"image": "a.png", "video": "b.mp4", "conversations": said("Hi", "Hi")}, "several media"),
    ],
)
def test_a_conversation_of_another_layout_is_named(tmp_path, row, problem):
    assert problem in one(read_llava, tmp_path, row)


def test_a_list_of_one_image_is_an_image(tmp_path):
    row = {"image": ["a.png"], "conversations": said("Hi", "Hi")}
    assert one(read_llava, tmp_path, row).media == ("a.png",)


def test_messages():
    assert good(read_messages, "messages.jsonl") == [
        (
            "messages.jsonl:1",
            "1",
            "video",
            ("kitchen.mp4",),
            [("Be brief.\n\nWhat happens?", "Somebody cooks.", None, None)],
        ),
        (
            "messages.jsonl:2",
            "2",
            "image",
            ("dog.png",),
            [("Colour?", "Blue", None, None), ("Sure?", "Yes.", None, None)],
        ),
        ("messages.jsonl:3", "3", "text", (), [("Hello!", "Hello to you.", None, None)]),
    ]


def ask(*parts, **columns):
    content = [*parts, {"type": "text", "text": "What?"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "This."}], **columns}


@pytest.mark.parametrize(
    ("row", "kind", "path"),
    [
        (ask({"type": "video", "video": "a.mp4"}), "video", "a.mp4"),
        (ask({"type": "video", "path": "/data/a b.mp4"}), "video", "/data/a b.mp4"),
        (ask({"type": "video", "url": "file:///data/a%20b.mp4"}), "video", "/data/a b.mp4"),
        (ask({"type": "image", "image": "a.png"}, images=["a.png"]), "image", "a.png"),
        (ask({"type": "image", "text": None}, images=[{"path": "a.png", "bytes": None}]), "image", "a.png"),
        (ask({"type": "image"}, image="a.png"), "image", "a.png"),
        (ask({"type": "video"}, videos=["a.mp4"], images=None), "video", "a.mp4"),
    ],
)
def test_where_messages_may_name_their_file(tmp_path, row, kind, path):
    annotation = one(read_messages, tmp_path, row)
    assert (annotation.kind, annotation.media) == (kind, (path,))
    assert turns(annotation) == [("What?", "This.", None, None)]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Hi"}, "no field 'messages'"),
        (ask({"type": "audio", "audio": "a.wav"}), "a part of type 'audio'"),
        (ask({"type": "image"}), "neither a part nor a column names the file"),
        (ask({"type": "image"}, images=[{"bytes": "..."}]), "the path of an image or a video is expected, not None"),
        (ask({"type": "image"}, images=["a.png", "b.png"]), "several media"),
        (ask("Hi"), 'an object is expected, not "Hi"'),
        ({"messages": [{"role": "tool", "content": "3"}]}, "unknown speaker 'tool'"),
        ({"messages": [{"role": "user", "content": None}]}, "'content' is null"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "not question and answer in turn: user"),
    ],
)
def test_messages_of_another_layout_are_named(tmp_path, row, problem):
    assert problem in one(read_messages, tmp_path, row)
