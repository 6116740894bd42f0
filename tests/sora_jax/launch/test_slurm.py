"""A real Slurm of two nodes: what it is asked to requeue ends as if nothing had happened."""

import pytest

from experiments.benchmarks import slurm

LACKS = slurm.missing()


@pytest.mark.skipif(bool(LACKS), reason=f"a Slurm of its own wants {LACKS}")
def test_a_job_outlives_a_sigterm_and_a_kill(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")  # a restart finds its programs
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
  log = slurm.run(tmp_path / "slurm", time_limit=False)
  assert log.count("requeues job 1") == 1 and log.count("resumes at step") == 2
