"""What a picture goes through: operations by name, on the host and on the devices."""

from mnv2.preprocess.text import HOST as HOST
from mnv2.preprocess.text import LABELS as LABELS
from mnv2.preprocess.text import MIX as MIX
from mnv2.preprocess.text import PICTURES as PICTURES
from mnv2.preprocess.text import Pipeline as Pipeline
from mnv2.preprocess.text import parse as parse
