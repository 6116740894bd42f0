"""What makes a folder of shards a TFDS dataset: features.json and dataset_info.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import records
from data_pipeline.column import Column
from data_pipeline.stored import stored_columns


def write_metadata(
  folder: Path,
  kind: str,
  *,
  name: str,
  storage: str | None,
  tokenizers: Sequence[str],
  shards: Mapping[str, Sequence[Mapping[str, int]]],
) -> None:
  """Writes the two files, so that `tfds.builder_from_directory(folder)` reads the shards there.

  Args:
    folder: holds the shards under their final names.
    kind: of the records.
    name: of the dataset.
    storage: of the videos, one of `records.STORAGES`; None of latents.
    tokenizers: of latents.
    shards: `records` and `bytes` of every shard, by split.
  """
  # Seconds of imports that only the end of writing needs, not the processes that read.
  import tensorflow_datasets as tfds

  template = tfds.core.ShardedFileTemplate(
    data_dir=tfds.core.Path(folder), dataset_name=name, filetype_suffix="array_record"
  )
  splits = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[size["records"] for size in sizes],
      num_bytes=sum(size["bytes"] for size in sizes),
      filename_template=template.replace(split=split),
    )
    for split, sizes in shards.items()
  ]
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features(kind, storage or "raw", tokenizers),
    split_infos=splits,
    version=f"{records.VERSIONS[kind]}.0.0",
    filename_template=template,
    check_data=False,  # would need TensorFlow
  )


def features(kind: str, storage: str = "raw", tokenizers: Sequence[str] = ()):
  """The `tfds.features.FeaturesDict` of a kind of record, as it is stored.

  What is stored by tokenizer is a dict of its own, as TFDS names what is in one with a slash.
  """
  from tensorflow_datasets.core import features as tfds_features

  table: dict[str, Any] = {}
  for name, column in stored_columns(kind, storage, tokenizers).items():
    group, _, inner = name.rpartition("/")
    (table.setdefault(group, {}) if group else table)[inner] = _feature(column)
  return tfds_features.FeaturesDict(table)


def _feature(column: Column):
  from tensorflow_datasets.core import features as tfds_features

  unit = f" [{column.unit}]" if column.unit else ""
  doc = column.meaning + unit
  if column.is_text:
    text = tfds_features.Tensor(shape=(), dtype=np.object_, doc=doc)
    return tfds_features.Sequence(text, doc=doc) if column.shape else text
  shape = tuple(None if isinstance(side, str) else side for side in column.shape)
  # Sides of an encoded video are numbers, as TFDS itself stores those of arrays.
  encoding = "bytes" if shape and column.dtype != "int64" else "none"
  return tfds_features.Tensor(
    shape=shape, dtype=column.stored_dtype.type, encoding=encoding, doc=doc
  )
