"""Lines of text that people write: by CR, LF or both, and by nothing else."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import BadInput
from data_pipeline.text_lines import read_lines, split_lines

# What str.splitlines takes for an end of line as well.
OTHERS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_lines_of_any_system_are_split_and_others_are_text(end):
  assert split_lines(f"a{OTHERS}b{end}{end}c") == [f"a{OTHERS}b", "", "c"]
  assert split_lines("a\r\n\rb\n\nc") == ["a", "", "b", "", "c"]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))))
def test_what_is_joined_is_split_again(lines):
  for end in ("\n", "\r\n"):
    assert split_lines(end.join(lines)) == (lines or [""])


def test_a_mark_at_the_beginning_is_no_text(tmp_path):
  path = tmp_path / "a.txt"
  path.write_bytes(codecs.BOM_UTF8 + "ä\r\nb".encode())
  assert read_lines(path, "x: file=") == ["ä", "b"]


def test_what_cannot_be_read_is_said(tmp_path):
  with pytest.raises(BadInput, match=r"x: file=.*/a.txt cannot be read \(No such file"):
    read_lines(tmp_path / "a.txt", "x: file=")
  (tmp_path / "a.txt").write_bytes("ä".encode("latin-1"))
  with pytest.raises(BadInput, match="a.txt is not text in UTF-8 .*Save it as that"):
    read_lines(tmp_path / "a.txt", "x: file=")
