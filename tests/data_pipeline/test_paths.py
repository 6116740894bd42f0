"""Homes, URLs and the folder of caches."""

import os
import tempfile
from pathlib import Path

import pytest

from data_pipeline.errors import BadInput
from data_pipeline.paths import cache_folder, expand_home, is_url


def test_homes_are_expanded_and_nothing_else_is(monkeypatch):
  monkeypatch.setenv("HOME", "/home/ada")
  assert expand_home("~/a b/c") == "/home/ada/a b/c" and expand_home("~") == "/home/ada"
  for path in ("", "a", "./~/a", "a/~", "gs://~/a", "s3://bucket/~ada", "/~"):
    assert expand_home(path) == path


def test_a_home_that_is_not_known_is_no_folder_of_that_name(monkeypatch):
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)
  with pytest.raises(BadInput, match=r"~nobody/a begins with a home .*or \./~nobody/a for"):
    expand_home("~nobody/a")


def test_urls_are_no_paths():
  assert is_url("gs://b/a") and is_url("S3://b") and is_url("file:///a")
  assert not is_url("/a:/b") and not is_url("://a") and not is_url("a/b://c")


def test_caches_have_a_folder_whatever_the_environment_lacks(monkeypatch):
  monkeypatch.setenv("HOME", "/home/ada")
  assert cache_folder({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/sora_jax")
  assert cache_folder({"XDG_CACHE_HOME": "~/c"}) == Path("/home/ada/c/sora_jax")
  assert cache_folder({"XDG_CACHE_HOME": "", "HOME": "/h"}) == Path("/h/.cache/sora_jax")
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user without an entry
  here = Path(tempfile.gettempdir()) / f"sora_jax-{os.getuid()}"
  assert cache_folder({}) == here and cache_folder({"HOME": ""}) == here
