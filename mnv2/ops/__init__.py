"""The operations that stock XLA does badly on some platform, each with its reason."""

from mnv2.ops.batch_norm import BatchNorm as BatchNorm
from mnv2.ops.conv import conv as conv
from mnv2.ops.depthwise import depthwise_conv as depthwise_conv
from mnv2.ops.padding import Padding as Padding
from mnv2.ops.padding import explicit_padding as explicit_padding
from mnv2.ops.pointwise import pointwise_conv as pointwise_conv
