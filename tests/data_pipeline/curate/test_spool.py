"""How the sources of a run are dealt out to its workers."""

import pytest

from data_pipeline.curate.spool import Work, read_sources
from data_pipeline.curate.types import Source


@pytest.mark.parametrize("count, pages", [(0, 0), (1, 1), (7, 7), (201, 201), (1000, 1000)])
def test_few_sources_have_a_page_each(tmp_path, count, pages):
  check_pages(tmp_path, count, pages)


@pytest.mark.parametrize("count", [1001, 2450])
def test_many_sources_share_pages(tmp_path, count):
  check_pages(tmp_path, count, None)


def check_pages(folder, count, pages):
  """Every source is on one page, in order; there are a thousand pages, about, at most."""
  sources = [Source(name=f"v{i}", path=f"/in/{i}", captions=("a",) * (i % 3)) for i in range(count)]
  dealt = Work(folder).write_sources(sources)
  assert [source for page in dealt for source in read_sources(page)] == sources
  assert len(dealt) == pages or pages is None and len(dealt) <= 1000
