"""The fields that all configs share, with their default values: see docs/fields.md."""

from mnv2.training.config import defaults as defaults
