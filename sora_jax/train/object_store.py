"""Stores of objects (gs://, s3://): what fsspec, TensorStore and Orbax need to be told of them.

A checkpoint there is whole once its `commit_success.txt` is: such stores cannot rename a folder.
Credentials come from the environment, as the stores' own programs have them: Google's application
default credentials, AWS_ACCESS_KEY_ID and its like, AWS_ENDPOINT_URL for other makes of S3.
"""

import functools
import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import fsspec.config
import fsspec.core
from etils import epath

from data_pipeline.errors import BadInput
from data_pipeline.paths import is_url

DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}  # of fsspec, by scheme
_CACHES = ("gcs", "gs", "s3")


def prepare(url: str) -> None:
  """Makes URLs of a store known; before the first of them is opened.

  Raises:
    BadInput: no such store, its driver is not installed, or the URL is more than a bucket and path.
  """
  parts = urlsplit(url)
  if parts.scheme not in DRIVERS:
    raise BadInput(
      f"storage: {parts.scheme}://… is neither a path nor of {', '.join(DRIVERS)}. Give one."
    )
  odd = "@" in parts.netloc or any(letter in url for letter in "?#*[]")
  if not parts.netloc or odd:
    raise BadInput(
      f"storage: {parts.scheme}://… must be a bucket and a path without ?, #, *, [ and ]. Name one;"
      " credentials come from the environment, never in a URL."
    )
  try:
    importlib.import_module(DRIVERS[parts.scheme])
  except ImportError as error:
    raise BadInput(
      f"storage: {url} wants {DRIVERS[parts.scheme]}. Install the extra: pip install"
      " 'sora_jax[cloud]'."
    ) from error
  for name in _CACHES:  # others write there too: a listing kept from before would hide it
    fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
  _teach_orbax()


def move_folder(source: epath.Path, target: epath.Path) -> None:
  """Moves a folder; in a store of objects, each of them by a copy there."""
  if is_url(source):
    store, root = fsspec.core.url_to_fs(str(source))
    _, other = fsspec.core.url_to_fs(str(target))
    names = [path.removeprefix(f"{root}/") for path in store.find(root)]
    with ThreadPoolExecutor(16) as pool:
      list(pool.map(lambda name: store.cp_file(f"{root}/{name}", f"{other}/{name}"), names))
      list(pool.map(lambda name: store.rm_file(f"{root}/{name}"), names))
  else:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


@functools.cache
def _teach_orbax() -> None:
  """Has Orbax, which knows gs:// as a store of objects, treat s3:// as one."""
  from orbax.checkpoint._src.path import gcs_utils
  from orbax.checkpoint._src.serialization import tensorstore_utils

  theirs = gcs_utils.get_kvstore_for_gcs
  normalize = tensorstore_utils._normalize_path

  def kvstore(path: str) -> dict[str, Any]:
    return s3_kvstore(path) if path.startswith("s3://") else theirs(path)

  gcs_utils._GCS_PATH_PREFIX = ("gs://", "s3://")  # commit files, no renames
  gcs_utils.get_kvstore_for_gcs = kvstore
  tensorstore_utils._use_gcs_driver = lambda path: path.startswith(("gs://", "s3://"))
  tensorstore_utils._normalize_path = lambda path: (
    normalize(path).replace("s3:/", "s3://") if path.startswith("s3://") else normalize(path)
  )


def s3_kvstore(path: str) -> dict[str, Any]:
  """TensorStore's spec of a path, with region and endpoint as AWS' own programs take them."""
  parts = urlsplit(path)
  spec = {"driver": "s3", "bucket": parts.netloc, "path": parts.path.lstrip("/")}
  names = {
    "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "aws_region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
  }
  for key, variables in names.items():
    values = [os.environ[name] for name in variables if os.environ.get(name)]
    spec |= {key: values[0]} if values else {}
  return spec
