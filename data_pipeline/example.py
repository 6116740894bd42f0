"""`tf.train.Example`, the envelope of TFDS records, through protobuf alone.

    message Example  { Features features = 1; }
    message Features { map<string, Feature> feature = 1; }
    message Feature  { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2;
                                    Int64List int64_list = 3; } }    // each: repeated value = 1
Source: tensorflow/core/example/example.proto and feature.proto. Declared here because TFDS's own
copy costs seconds of imports in every reading process. The messages live in a pool of their own and
so do not clash with TFDS's.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Value = list[Any]  # of int, of float, or of bytes

_Field = descriptor_pb2.FieldDescriptorProto
_LISTS = {
  "bytes_list": ("BytesList", _Field.TYPE_BYTES),
  "float_list": ("FloatList", _Field.TYPE_FLOAT),
  "int64_list": ("Int64List", _Field.TYPE_INT64),
}


def _add_field(message, number: int, name: str, kind, *, repeated=False, type_name=None) -> None:
  label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
  message.field.add(name=name, number=number, type=kind, label=label, type_name=type_name)


def _declare() -> type:
  """Builds the message class Example."""
  file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="e", syntax="proto3")
  feature = descriptor_pb2.DescriptorProto(name="Feature")
  feature.oneof_decl.add(name="kind")
  for number, (name, (type_name, kind)) in enumerate(_LISTS.items(), 1):
    _add_field(file.message_type.add(name=type_name), 1, "value", kind, repeated=True)
    _add_field(feature, number, name, _Field.TYPE_MESSAGE, type_name=f".e.{type_name}")
    feature.field[-1].oneof_index = 0
  file.message_type.append(feature)
  features = file.message_type.add(name="Features")
  entry = features.nested_type.add(name="FeatureEntry")
  entry.options.map_entry = True
  _add_field(entry, 1, "key", _Field.TYPE_STRING)
  _add_field(entry, 2, "value", _Field.TYPE_MESSAGE, type_name=".e.Feature")
  type_name = ".e.Features.FeatureEntry"
  _add_field(features, 1, "feature", _Field.TYPE_MESSAGE, repeated=True, type_name=type_name)
  example = file.message_type.add(name="Example")
  _add_field(example, 1, "features", _Field.TYPE_MESSAGE, type_name=".e.Features")
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("e.Example"))


_Example = _declare()


def serialize(values: Mapping[str, Value]) -> bytes:
  """Lists of int, float or bytes by name, to the bytes of an Example; an empty list is of bytes.

  The same values give the same bytes.
  """
  message = _Example()
  for name, value in values.items():
    feature = message.features.feature[name]
    first = value[0] if value else b""
    kind = "int64_list" if isinstance(first, int) else "float_list"
    chosen = getattr(feature, "bytes_list" if isinstance(first, bytes) else kind)
    chosen.SetInParent()
    chosen.value.extend(value)
  return message.SerializeToString(deterministic=True)


def parse(data: bytes) -> dict[str, Value]:
  """Inverse of `serialize`. Raises google.protobuf.message.DecodeError: not an Example."""
  message = _Example.FromString(data)
  return {
    name: list(getattr(feature, feature.WhichOneof("kind")).value)
    for name, feature in message.features.feature.items()
  }
