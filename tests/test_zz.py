import os
from tiny_run import *
from tiny_run import _study
import time, jax
def test_a(tmp_path):
    t=time.time(); r=_study(tmp_path); print("study", time.time()-t)
    t=time.time(); print(run_main("--config", r/"tiny.py", "--workdir", r/"run")); print("again", time.time()-t)
    c=write_config(tmp_path/"l.py", tiny_config(tmp_path/"subjects", train__steps=150, train__log_every=1))
    t=time.time(); print(run_main("--config", c, "--workdir", r/"run2", "--mode", "train")); print("150", time.time()-t)
    print((r/"run2/log.jsonl").read_text()[-600:])
    t=time.time(); print(run_main("--config", r/"tiny.py", "--workdir", r/"run3", "--mode", "train")); print("same, new", time.time()-t)
    p=start_main("--config", r/"tiny.py", "--workdir", r/"run4", "--mode", "train", env=os.environ|{"JAX_NUM_CPU_DEVICES":"2"})
    print(p.communicate()); print("sub", time.time()-t)
    from ummcsgm import checkpoint
    import subprocess
    from ummcsgm.answer import load_trained
    print([load_trained(r/x).digest for x in ("run", "run3","run4")])
