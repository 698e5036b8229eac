"""Run a script as it is, in one of several processes on a CPU, where DeepSpeed would first compile an operator of its own."""

import runpy
import sys

import deepspeed.ops

# An all-reduce in shared memory, which takes a C++ compiler and most of a minute; without it gloo's is used.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
