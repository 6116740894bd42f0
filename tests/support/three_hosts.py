"""One of several processes that meet, or do not; run by its test: PORT PROCESSES NUMBER."""

import json
import os
import sys
import time

from data_pipeline.errors import BadInput
from sora_jax.parallel import hosts

port, count, me = (int(word) for word in sys.argv[1:4])
hosts.initialize(f"127.0.0.1:{port}", count, me, start_seconds=60)
found = {"first": hosts.is_first(), "numbers": hosts.share("n", me, seconds=30)}
found["once"] = hosts.say_once("word", me)
hosts.barrier("said", seconds=30)
found["heard"], found["nothing"] = hosts.heard("word"), hosts.heard("no word")
sockets = [line.split() for line in open("/proc/net/tcp").readlines()[1:]]
sockets += [line.split() for line in open("/proc/net/tcp6").readlines()[1:]]
listening = [words[1] for words in sockets if words[3] == "0A"]  # TCP_LISTEN
found["listens"] = sorted({a.rpartition(":")[0] for a in listening if a.endswith(f":{port:04X}")})


def fails():
  raise BadInput("mend it")


try:
  hosts.first_does("fails", fails, seconds=30)
except BadInput as error:
  found["bad"] = str(error)
if me != 1:
  try:
    hosts.barrier("late", seconds=2)
  except hosts.LostPeer as error:
    found["lost"] = str(error)
else:
  time.sleep(4)
print(json.dumps(found), flush=True)
hosts.say(f"bye/{me}", True)
end = time.monotonic() + 60
while me == 0 and len(hosts.heard_from("bye")) < count and time.monotonic() < end:
  time.sleep(0.1)
time.sleep(1.0 * (me == 0))  # the coordinator goes last
os._exit(0)
