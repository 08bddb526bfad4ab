import random

import pytest
import torch
from PIL import Image

from streamchat_hf.data.annotations import BadRow, BadRows, Item
from streamchat_hf.data.task_records import (
    PngMask,
    Rle,
    TaskRecord,
    csv_items,
    interval,
    number,
    read_each,
    sentence,
)


def naive_counts(mask):
    """Column by column, how many pixels are outside, then inside ..."""
    counts, inside = [0], False
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if bool(mask[row, column]) != inside:
                counts.append(0)
                inside = not inside
            counts[-1] += 1
    return counts


def naive_string(counts):
    """COCO's compression, as its documentation of `rleToString` has it."""
    text = ""
    for i, count in enumerate(counts):
        x = count - (counts[i - 2] if i > 2 else 0)
        while True:
            bits, x = x & 31, x >> 5
            more = x != -1 if bits & 16 else x != 0
            text += chr((bits | 32 if more else bits) + 48)
            if not more:
                break
    return text


def random_masks():
    generator = torch.Generator().manual_seed(0)
    for height, width, share in ((1, 1, 0.5), (3, 5, 0.5), (40, 30, 0.02), (30, 40, 0.98), (120, 160, 0.001)):
        yield torch.rand(height, width, generator=generator) < share
    yield torch.zeros(200, 300, dtype=torch.bool)
    yield torch.ones(200, 300, dtype=torch.bool)


def test_counts_of_both_forms_give_the_mask():
    for mask in random_masks():
        counts = naive_counts(mask)
        assert torch.equal(Rle(*mask.shape, tuple(counts)).decode(), mask)
        assert torch.equal(Rle(*mask.shape, naive_string(counts)).decode(), mask)


def test_a_string_that_pycocotools_wrote_gives_its_mask():
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[:50, 50:] = True
    assert torch.equal(Rle(100, 100, "Xl4b1b1" + 98 * "0").decode(), mask)


def test_pixels_run_down_the_columns():
    assert Rle(2, 3, (1, 2, 3)).decode().tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize("counts", [(1, 2, 4), (), (7, -1), "12", "6P", "1~9", "1 9"])
def test_a_broken_mask_is_a_bad_row(counts):
    with pytest.raises(BadRow, match="broken mask"):
        Rle(2, 3, counts).decode()


def test_numbers_in_a_picture_are_objects(tmp_path):
    picture = Image.new("P", (3, 2))
    picture.putdata([0, 1, 1, 2, 0, 1])
    picture.putpalette([0, 0, 0, 236, 95, 103, 249, 145, 87])
    picture.save(tmp_path / "p.png")
    assert PngMask(str(tmp_path / "p.png"), 1).decode().tolist() == [[False, True, True], [False, False, True]]
    assert PngMask(str(tmp_path / "p.png"), 2).decode().tolist() == [[False, False, False], [True, False, False]]
    picture.convert("RGB").save(tmp_path / "rgb.png")
    with pytest.raises(BadRow, match="rgb.png has colours"):
        PngMask(str(tmp_path / "rgb.png"), 1).decode()
    with pytest.raises(BadRow, match="missing.png"):
        PngMask(str(tmp_path / "missing.png"), 1).decode()


def test_a_bad_item_is_reported_and_does_not_cost_the_next():
    def make(item):
        if item.value is None:
            raise BadRow("no value", item.key)
        return [TaskRecord(item.key, item.source, "temporal_grounding", (item.value,))] * 2

    items = [Item("f:1", "a", "x"), Item("f:2", "b", None), Item("f:3", "c", "y")]
    bad = BadRows()
    assert [record.texts for record in read_each(items, bad, make)] == [("x",), ("x",), ("y",), ("y",)]
    assert bad.counts == {"no value": 1} and bad.examples == {"no value": ["f:2: b"]}
    with pytest.raises(BadRow, match="f:2: no value: b"):
        list(read_each(items, BadRows(refuse=True), make))


def test_csv_rows_are_known_by_their_lines(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b,c\r\n1,"x,\r\ny",\r\n2,,z\r\n3,"q"x,z\r\n4,w,z\r\n\r\n5\r\n')
    bad = BadRows()
    items = list(csv_items(str(path), bad, ("a", "b")))
    assert [(item.source, item.value["b"]) for item in items] == [(f"{path}:2", "x,\r\ny"), (f"{path}:6", "w")]
    assert bad.counts == {"wrong layout": 2, "not CSV": 1}
    assert bad.examples["wrong layout"] == [f"{path}:4: no b", f"{path}:8: no b"]
    assert bad.examples["not CSV"][0].startswith(f"{path}:5: ")


def test_numbers_may_be_in_quotes_and_have_to_be_finite():
    assert [number(value) for value in (1, 2.5, "92.17")] == [1.0, 2.5, 92.17]
    for value in (True, None, "x", "nan", float("inf"), [1]):
        with pytest.raises(BadRow, match="a number is expected"):
            number(value)


def test_sentences_lose_the_white_space_around_them():
    assert sentence(" She dances.\n") == "She dances."
    with pytest.raises(BadRow, match="empty text"):
        sentence(" ")
    with pytest.raises(BadRow, match="a text is expected, not 3"):
        sentence(3)


def test_intervals_are_cut_to_the_video():
    assert interval([1, 2]) == interval(("1", 2.0), 2.0) == (1.0, 2.0)
    assert interval([1, 5], 3.0) == (1.0, 3.0)
    for value, reason in (
        ([2, 2], "interval ends before it starts"),
        ([3, 2], "interval ends before it starts"),
        ([-1, 2], "interval outside the video"),
        ([3, 4], "interval outside the video"),
        ([1], "wrong layout"),
        ("12", "wrong layout"),
        ([1, None], "wrong layout"),
    ):
        with pytest.raises(BadRow) as error:
            interval(value, 3.0)
        assert error.value.reason == reason


def test_a_record_is_a_value():
    records = [TaskRecord("a", "f:1", "temporal_grounding", ("x",), masks=((Rle(1, 1, "1"), None),)) for _ in "ab"]
    assert len(set(records)) == 1
    assert random.Random(0).choice(records) == records[0]
