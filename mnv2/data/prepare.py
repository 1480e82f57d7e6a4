"""The former name of `python -m mnv2.prepare`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("mnv2.prepare", run_name="__main__")
