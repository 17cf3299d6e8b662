"""The images of a CSV file."""

import unicodedata

import pytest

from pipeline.data.csv_files import list_csv
from pipeline.errors import InputError


def write(folder, text, encoding="utf-8"):
    """A CSV file, and the images that its tests name."""
    for name in ("1.png", "2.png", "deep/3.png", "été.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "images.csv").write_bytes(text.encode(encoding))
    return folder / "images.csv"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_paths_are_relative_to_the_file_and_labels_are_sorted(delimiter, encoding, tmp_path):
    rows = ["Path,Label,weight", "2.png,b c,1", "", "deep/3.png, a ,2", "été.png,b c,3", '"1.png","a",4']
    found = list_csv(write(tmp_path, "\r\n".join(rows).replace(",", delimiter), encoding))
    assert found.class_names == ["a", "b c"]
    assert found.paths == [tmp_path / name for name in ("2.png", "deep/3.png", "été.png", "1.png")]
    assert found.labels == [1, 0, 1, 0]
    assert found.names == ["2.png", "deep/3.png", "été.png", "1.png"]
    assert (found.parts, found.groups) == (["train"] * 4, [""] * 4)


def test_one_file_under_several_paths_is_a_problem_and_does_not_change_the_split(tmp_path):
    rows = ["path,label", "deep/3.png,a", "./1.png,b", "deep/../deep/3.png,a", "deep\\3.png,a"]
    with pytest.raises(InputError, match=r"line 4: the same file as in line 2\n  line 5: the same file as in line 2$"):
        list_csv(write(tmp_path, "\n".join(rows)))
    assert list_csv(write(tmp_path, "path,label\ndeep\\3.png,a\n./1.png,b\n")).names == ["deep/3.png", "1.png"]


def test_splits_and_groups(tmp_path):
    text = "path,label,split,group,\n1.png,a,Training,x,\n2.png,b,train,\ndeep/3.png,a,val,y\nété.png,b,TEST,z\n"
    found = list_csv(write(tmp_path, text))
    assert found.parts == ["train", "train", "validation", "test"]
    assert found.groups == ["x", "", "y", "z"]
    assert list_csv(write(tmp_path, text.replace("train,\n", "train,x\n"))).groups == ["x", "x", "y", "z"]


def test_rows_that_cannot_be_used_are_named_with_their_lines_at_once(tmp_path):
    rows = ["path,label,split,group", "1.png,a,train,g", "gone.png,a,train,", "2.png,,train,", "été.png,b,nowhere,"]
    rows += ["1.png,b,train,", ",a,train,", "deep/3.png,a,test,g", "2.png,red, white,train,"]
    with pytest.raises(InputError) as raised:
        list_csv(write(tmp_path, "\n".join(rows)))
    rule, *lines = str(raised.value).split("\n  ")
    assert rule.startswith("`DATASET` must have rows that can all be used") and rule.endswith("images.csv")
    assert lines == [
        f"line 3: no file {str(tmp_path / 'gone.png')!r}",
        "line 4: no label",
        "line 5: split 'nowhere' is none of train, validation, test",
        "line 6: the same file as in line 2",
        "line 7: no path",
        "line 8: group 'g' is also in another split",
        "line 9: 5 fields, but 4 columns; quote fields with commas",
        "line 9: split 'white' is none of train, validation, test",
        "line 9: the same file as in line 4",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("image,class\n1.png,a\n", "columns path and label.*'image', 'class'"),
        ("", "columns path and label"),
        ("path,label\n", "no row has an image"),
        ("path,label,label\n1.png,a,b\n", "each column once"),
        ("path,label,split\n1.png,a,train\n2.png,b,val\n", "no row has the split test"),
    ],
)
def test_files_that_cannot_be_used_are_refused(text, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        list_csv(write(tmp_path, text))


def test_a_file_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(InputError, match="in UTF-8"):
        list_csv(write(tmp_path, "path,label\nété.png,a\n", "latin-1"))


def test_a_path_may_have_backslashes_or_accents_composed_otherwise_and_excels_first_line_is_skipped(tmp_path):
    decomposed = unicodedata.normalize("NFD", "été.png")
    found = list_csv(write(tmp_path, f"sep=;\n\npath;label\ndeep\\3.png;a\n{decomposed};b\n"))
    assert [path.resolve() for path in found.paths] == [tmp_path / "deep" / "3.png", tmp_path / "été.png"]
    with pytest.raises(InputError, match="line 5: no label"):
        list_csv(write(tmp_path, "sep=,\n\npath,label\n1.png,a\n2.png,\n"))
