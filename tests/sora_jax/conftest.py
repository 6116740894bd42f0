"""What tests of storage share."""

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "word", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="session")  # fsspec keeps what it has opened
def s3():
  """A server of the S3 protocol with a bucket; the URL of a folder there."""
  server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
  server.start()
  with pytest.MonkeyPatch.context() as patch:
    host, port = server.get_host_and_port()
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
      patch.setenv(name, value)
    boto3 = pytest.importorskip("boto3")
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
    yield "s3://bucket/runs"
  server.stop()
