"""Tests mirror the package. Annotations are checked while they run."""

from beartype import BeartypeConf, beartype

# An int is a float, as everywhere in Python.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
