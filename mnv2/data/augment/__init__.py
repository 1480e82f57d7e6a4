"""Random changes of training pictures: operations, and the policies that choose among them."""

from mnv2.data.augment.distortion import DISTORTIONS as DISTORTIONS
from mnv2.data.augment.distortion import distort as distort
from mnv2.data.augment.erasing import erase as erase
from mnv2.data.augment.policies import POLICIES as POLICIES
from mnv2.data.augment.policies import STRENGTHS as STRENGTHS
from mnv2.data.augment.policies import Policy as Policy
from mnv2.data.augment.policies import augment as augment
