"""A real Slurm of two nodes: what it is asked to requeue ends as if nothing had happened."""

import pytest

from experiments.benchmarks import slurm

pytestmark = pytest.mark.slow

LACKS = slurm.missing()


@pytest.mark.skipif(bool(LACKS), reason=f"a Slurm of its own wants {LACKS}")
def test_a_job_outlives_a_sigterm_and_a_kill(tmp_path):
  log = slurm.run(tmp_path / "slurm", time_limit=False)
  assert log.count("requeues job 1") == 1 and log.count("resumes at step") == 2
