"""A worker process that does as the model's name says, for tests of what its parent makes of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

channel, job = os.dup(1), json.loads(sys.argv[1])
os.dup2(2, 1)
how = job["step"]["model"]


def send(**message):
    os.write(channel, json.dumps(message).encode() + b"\n")


print("loading the engines")
send(say="working", done=0.5)
send(note="something to know")
if how == "works":
    send(result={"answer": 42})
elif how == "raises":
    send(error="it cannot be", trace=["line 1"])
elif how == "crashes":
    print("CUDA error: an illegal memory access", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
elif how == "leaves":
    sys.exit(7)
elif how == "crashes-late":
    send(result={"answer": 42})
    os.kill(os.getpid(), signal.SIGABRT)
elif how == "cut":
    os.write(channel, b'{"result": {"ans')
elif how == "leaves-a-child":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], pass_fds=(channel,))
    send(result={"answer": 42})
elif how == "hangs-late":
    send(result={"answer": 42})
    time.sleep(100)
elif how == "hangs":
    time.sleep(100)
elif how == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    send(say="deaf", done=None)
    time.sleep(100)
elif how == "polite":
    with contextlib.suppress(KeyboardInterrupt):
        send(say="ready", done=None)
        time.sleep(100)
    print("tidied up", flush=True)
