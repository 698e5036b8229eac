"""Run a script as it is, in one of several processes on a CPU, where accelerate would not shard."""

import os
import runpy
import sys

from tests.in_training.fsdp_on_cpu import shard_on_cpu

from lorank.processes import leave_processes

os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"  # older transformers take it from here alone
shard_on_cpu()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
leave_processes()
