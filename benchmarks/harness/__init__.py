"""The parts of ``run.py``: processes, peers, load, and figures."""
