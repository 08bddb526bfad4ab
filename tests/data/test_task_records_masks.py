import json
from pathlib import Path

import pytest

from streamchat_hf.data.annotations import BadRow, BadRows
from streamchat_hf.data.task_records import PngMask, Rle, TaskRecord
from streamchat_hf.data.task_records_masks import read_mevis, read_refer_youtube_vos, read_youtube_vis

FIXTURES = Path(__file__).parents[1] / "fixtures" / "task_records"
REFUSE = BadRows(refuse=True)
VOS, RVOS = "video_object_segmentation", "referring_segmentation"


def edited(tmp_path, name, edit):
    """A copy of a fixture, with its value edited in place."""
    value = json.loads((FIXTURES / name).read_text())
    edit(value)
    path = tmp_path / Path(name).name
    path.write_text(json.dumps(value))
    return str(path)


def test_youtube_vis():
    path = str(FIXTURES / "youtube_vis.json")
    (record,) = read_youtube_vis(path, REFUSE)
    assert record == TaskRecord(
        "0043f",
        f"{path}:2[0]",
        VOS,
        ("giant_panda", "person"),
        frames=("JPEGImages/0043f/00000.jpg", "JPEGImages/0043f/00005.jpg"),
        masks=((Rle(3, 4, (1, 2, 9)), None), (None, Rle(3, 4, (9, 3)))),
    )
    assert record.masks[0][0].decode().nonzero().tolist() == [[1, 0], [2, 0]]
    assert record.masks[1][1].decode().nonzero().tolist() == [[0, 3], [1, 3], [2, 3]]


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value["annotations"][1].update(category_id=7),
        lambda value: value["annotations"][1].update(segmentations=[None]),
        lambda value: value["annotations"][1].update(segmentations=[None, {"size": [3], "counts": [12]}]),
        lambda value: value["annotations"][1].update(segmentations=[None, {"size": [3, 4], "counts": ["x"]}]),
        lambda value: value["annotations"][1].update(segmentations=[None, [[0, 0, 1, 0, 1, 1]]]),
        lambda value: value["annotations"].clear(),
    ],
)
def test_a_bad_object_costs_its_video(tmp_path, edit):
    path = edited(tmp_path, "youtube_vis.json", edit)
    bad = BadRows()
    assert list(read_youtube_vis(path, bad)) == []
    assert sum(bad.counts.values()) == 1
    with pytest.raises(BadRow, match=f"{path}:1"):
        list(read_youtube_vis(path, REFUSE))


def test_refer_youtube_vos():
    path, masks = str(FIXTURES / "refer_youtube_vos/meta_expressions.json"), FIXTURES / "refer_youtube_vos/Annotations"
    records = list(read_refer_youtube_vos(path, REFUSE, str(masks)))
    texts = ("a penguin is on the left", "the other penguin")
    frames = ("00000", "00005")
    assert records == [
        TaskRecord(
            f"003234#{i}",
            f"{path}:1[003234] expression {i}",
            RVOS,
            (texts[i],),
            frames=tuple(f"JPEGImages/003234/{frame}.jpg" for frame in frames),
            masks=(tuple(PngMask(str(masks / "003234" / f"{frame}.png"), i + 1) for frame in frames),),
        )
        for i in range(2)
    ]
    assert records[0].masks[0][0].decode().nonzero().tolist() == [[0, 1], [0, 2], [1, 1]]
    assert not records[0].masks[0][1].decode().any()
    assert records[1].masks[0][1].decode().nonzero().tolist() == [[1, 2], [1, 3], [2, 2]]


def test_an_expression_that_names_no_object_is_bad(tmp_path):
    path = edited(
        tmp_path,
        "refer_youtube_vos/meta_expressions.json",
        lambda value: value["videos"]["003234"]["expressions"]["0"].pop("obj_id"),
    )
    bad = BadRows()
    assert [record.id for record in read_refer_youtube_vos(path, bad, "masks")] == ["003234#1"]
    assert bad.examples == {"wrong layout": [f"{path}:1[003234] expression 0: no field 'obj_id'"]}


def test_mevis():
    path, masks = (str(FIXTURES / "mevis" / name) for name in ("meta_expressions.json", "mask_dict.json"))
    frames = ("JPEGImages/0ab4/00000.jpg", "JPEGImages/0ab4/00001.jpg")
    source = f"{path}:1[0ab4] expression"
    birds = ((Rle(3, 4, "129"), None), (Rle(3, 4, "930"), None))
    records = list(read_mevis(path, REFUSE, masks))
    assert records == [
        TaskRecord("0ab4#0", f"{source} 0", RVOS, ("the birds flying away",), frames=frames, masks=birds),
        TaskRecord("0ab4#1", f"{source} 1", RVOS, ("the fish",), frames=frames),
    ]
    assert records[0].masks[0][0].decode().nonzero().tolist() == [[1, 0], [2, 0]]
    assert records[0].masks[1][0].decode().nonzero().tolist() == [[0, 3], [1, 3], [2, 3]]


def test_masks_that_are_not_there_are_bad(tmp_path):
    def edit(value):
        value["videos"]["0ab4"]["expressions"]["0"]["anno_id"] = [12, 99]

    path = edited(tmp_path, "mevis/meta_expressions.json", edit)
    bad = BadRows()
    masks = str(FIXTURES / "mevis/mask_dict.json")
    assert [record.id for record in read_mevis(path, bad, masks)] == ["0ab4#1"]
    assert bad.examples == {"no masks": [f"{path}:1[0ab4] expression 0: there is no annotation 99 in {masks}"]}
