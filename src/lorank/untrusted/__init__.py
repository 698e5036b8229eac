"""What strangers wrote and other packages run: tried with limits of time and memory, in a process of its own, before its use."""
